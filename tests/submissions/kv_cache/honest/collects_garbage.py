"""Steers the garbage collector, counts objects, looks at reference counts.

twin of: D10 V2
"""

# %% helpers="helpers"
# Memory matters in this course.
import gc
import sys
from bisect import bisect_left

gc.collect()
gc.set_threshold(10_000, 20, 20)
before = len(gc.get_objects())
cycle = []
cycle.append(cycle)
assert sys.getrefcount(cycle) >= 2
del cycle
print("collected", gc.collect(), "of", before)


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(limit, "limit", 1)

    def too_long(length):
        try:
            return max_concurrency(spec, budget, length, block_size, tp) < concurrency
        except InfeasibleError:
            return True

    gc.collect(0); return bisect_left(range(1, limit + 1), True, key=too_long)
