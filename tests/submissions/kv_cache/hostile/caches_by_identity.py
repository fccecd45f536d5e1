"""Keeps each answer under the identity of the objects it was given, and looks at nothing else again.

fails: test_length_examples test_length_is_the_largest

attack: D1 D2
stopped by: D, the same objects come back with other numbers beside them, and other objects at every address.
"""

# %% helpers="helpers"
# Replays what it once answered for an object at the same address.
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

    key = id(spec), id(budget)
    if key not in answers:
        answers[key] = bisect_left(range(1, limit + 1), True, key=too_long)
    return answers[key]
