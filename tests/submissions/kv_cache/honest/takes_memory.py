"""Takes a gigabyte for a moment, which is allowed, and gives it back.

twin of: V21
"""

# %% helpers="helpers"
# A table that is larger than it needs to be.
from array import array
from bisect import bisect_left

table = array("q", bytes(1 << 29))
table[-1] = 1
big = bytearray(1 << 28)
big[::4096] = b"\1" * len(big[::4096])
assert sum(big[::4096]) == 1 << 16
del table, big


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
