"""Searches by recursion, and raises the limit of recursion to be safe.

twin of: V21
"""

# %% helpers="helpers"
# Recursive helpers.
import sys

sys.setrecursionlimit(20_000)


def depth(number):
    return 0 if number == 0 else 1 + depth(number - 1)


assert depth(5_000) == 5_000


def search(low, high, fits):
    """The largest in low … high - 1 that fits, where low does."""
    if high - low <= 1:
        return low
    middle = (low + high) // 2
    return search(middle, high, fits) if fits(middle) else search(low, middle, fits)


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(limit, "limit", 1)

    def fits(length):
        try:
            return max_concurrency(spec, budget, length, block_size, tp) >= concurrency
        except InfeasibleError:
            return False

    return search(0, limit + 1, fits)
