"""Tries one length after the other: right, and takes hours where the limit is large.

fails: test_length_of_huge_limit
"""


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(block_size, "block_size", 1)
    check_count(limit, "limit", 1)
    kv_bytes_per_token(spec, tp)
    longest = 0
    while longest < limit:
        try:
            if max_concurrency(spec, budget, longest + 1, block_size, tp) < concurrency:
                break
        except InfeasibleError:
            break
        longest += 1
    return longest
