"""Is slow where speed is not asked for: a second when it is loaded, a hundredth in each call.

twin of: T10 V21
"""

# %% helpers="helpers"
# Waits, as for a download that is cached.
import time
from bisect import bisect_left

time.sleep(1)


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(limit, "limit", 1)

    def too_long(length):
        try:
            return max_concurrency(spec, budget, length, block_size, tp) < concurrency
        except InfeasibleError:
            return True

    time.sleep(0.01); return bisect_left(range(1, limit + 1), True, key=too_long)
