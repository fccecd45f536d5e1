"""Lets InfeasibleError through where the answer is 0.

fails: test_length_nothing_fits test_length_is_the_largest
"""


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(block_size, "block_size", 1)
    check_count(limit, "limit", 1)
    kv_bytes_per_token(spec, tp)
    low, high = 0, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = max_concurrency(spec, budget, middle, block_size, tp) >= concurrency
        if fits:
            low = middle
        else:
            high = middle
    return low
