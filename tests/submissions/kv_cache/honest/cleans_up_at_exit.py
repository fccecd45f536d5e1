"""Registers functions for its own end, and catches exits of its own.

twin of: V5
"""

# %% helpers="helpers"
# atexit, SystemExit, finally, weakref.finalize.
import atexit
import contextlib
import sys
import weakref
from bisect import bisect_left


class Resource:
    pass


resource = Resource()
weakref.finalize(resource, print, "finalized")
atexit.register(print, "at exit")
with contextlib.suppress(SystemExit):
    sys.exit(0)
try:
    raise KeyboardInterrupt
except KeyboardInterrupt:
    pass


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
