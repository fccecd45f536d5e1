"""Divides bytes by bytes: forgets that only whole pages can be handed out.

fails: test_concurrency_of_vllm_log test_concurrency_budget test_concurrency_mixed_layers test_length_is_the_largest
"""


# %% task="max_concurrency"
def max_concurrency(spec, budget, max_model_len, block_size, tp=1):
    check_count(max_model_len, "max_model_len", 1)
    check_count(block_size, "block_size", 1)
    budget_bytes = int(budget.total_bytes * budget.utilization) - budget.weight_bytes - budget.peak_activation_bytes
    page_bytes = block_size * kv_bytes_per_token(spec, tp)
    num_blocks = budget_bytes // page_bytes
    if num_blocks < 1:
        raise InfeasibleError("not one page fits", page_bytes - budget_bytes)
    blocks_per_request = -(-kv_cache_bytes(spec, [max_model_len], block_size, tp) // page_bytes)
    return budget_bytes / kv_cache_bytes(spec, [max_model_len], block_size, tp)
