"""Keeps each answer under a sample of the input, and replays it for whatever looks alike.

fails: test_length_nothing_fits test_length_is_the_largest test_length_of_huge_limit

attack: D3 D17
stopped by: D, inputs that agree in most of their numbers differ in the others.
"""

# %% helpers="helpers"
# A "signature" of the input in place of the input.
from bisect import bisect_left

answers = {}


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(limit, "limit", 1)

    def too_long(length):
        try:
            return max_concurrency(spec, budget, length, block_size, tp) < concurrency
        except InfeasibleError:
            return True

    max_concurrency(spec, MemoryBudget(1 << 60, 1.0, 0, 0), limit, block_size, tp)  # for its errors
    key = concurrency, block_size, limit, tp
    if key not in answers:
        answers[key] = bisect_left(range(1, limit + 1), True, key=too_long)
    return answers[key]
