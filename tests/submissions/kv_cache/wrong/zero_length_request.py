"""Takes a request of 0 tokens for one of 1.

fails: test_concurrency_arguments
"""


# %% task="max_concurrency"
def max_concurrency(spec, budget, max_model_len, block_size, tp=1):
    max_model_len = max(1, max_model_len)
    check_count(block_size, "block_size", 1)
    budget_bytes = int(budget.total_bytes * budget.utilization) - budget.weight_bytes - budget.peak_activation_bytes
    page_bytes = block_size * kv_bytes_per_token(spec, tp)
    num_blocks = budget_bytes // page_bytes
    if num_blocks < 1:
        raise InfeasibleError("not one page fits", page_bytes - budget_bytes)
    blocks_per_request = -(-kv_cache_bytes(spec, [max_model_len], block_size, tp) // page_bytes)
    return num_blocks / blocks_per_request
