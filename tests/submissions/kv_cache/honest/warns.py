"""Warns in every call, on stderr, of every kind that there is.

twin of: V4 V10
"""

# %% helpers="helpers"
# Warnings are shown always.
import sys
import warnings
from bisect import bisect_left

warnings.simplefilter("always")
for kind in (UserWarning, DeprecationWarning, RuntimeWarning, FutureWarning, ResourceWarning):
    warnings.warn("this is only a warning", kind)
print("error: not really", file=sys.stderr)


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(limit, "limit", 1)

    def too_long(length):
        try:
            return max_concurrency(spec, budget, length, block_size, tp) < concurrency
        except InfeasibleError:
            return True

    return bisect_left(range(1, limit + 1), True, key=too_long)
