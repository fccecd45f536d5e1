"""Divides the blocks among the requests and turns them into tokens: right for full attention only.

fails: test_length_is_the_largest test_length_of_huge_limit
"""


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(block_size, "block_size", 1)
    check_count(limit, "limit", 1)
    kv_bytes_per_token(spec, tp)
    try:
        blocks = max_concurrency(spec, budget, 1, block_size, tp)
    except InfeasibleError:
        return 0
    return min(limit, int(blocks) // concurrency * block_size)
