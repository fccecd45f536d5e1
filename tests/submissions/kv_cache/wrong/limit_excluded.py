"""Never reaches the limit itself: the bisection ends one below.

fails: test_length_examples test_length_is_the_largest test_length_of_huge_limit
"""


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(block_size, "block_size", 1)
    check_count(limit, "limit", 1)
    kv_bytes_per_token(spec, tp)
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        try:
            fits = max_concurrency(spec, budget, middle, block_size, tp) >= concurrency
        except InfeasibleError:
            return 0
        if fits:
            low = middle
        else:
            high = middle
    return low
