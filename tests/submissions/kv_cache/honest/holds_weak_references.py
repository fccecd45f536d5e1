"""Keeps notes on its inputs without keeping the inputs alive.

twin of: D2 D10
"""

# %% helpers="helpers"
# A WeakKeyDictionary with the specifications that were seen.
import weakref
from bisect import bisect_left

registry = weakref.WeakKeyDictionary()


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(limit, "limit", 1)

    def too_long(length):
        try:
            return max_concurrency(spec, budget, length, block_size, tp) < concurrency
        except InfeasibleError:
            return True

    registry[spec] = limit; return bisect_left(range(1, limit + 1), True, key=too_long)
