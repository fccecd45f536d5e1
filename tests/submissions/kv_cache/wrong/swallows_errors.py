"""Takes every ValueError for "does not fit", and answers 0 to arguments that make no sense.

fails: test_length_arguments
"""


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    low, high = 0, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        try:
            fits = max_concurrency(spec, budget, middle, block_size, tp) >= concurrency
        except ValueError:
            return 0
        if fits:
            low = middle
        else:
            high = middle
    return low
