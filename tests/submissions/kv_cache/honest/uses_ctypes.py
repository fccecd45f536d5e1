"""Calls C functions, to see how large things are in memory.

twin of: T3
"""

# %% helpers="helpers"
# sizeof, a struct, libc.
import ctypes
import mmap
from bisect import bisect_left


class Block(ctypes.Structure):
    _fields_ = [("number", ctypes.c_int32), ("holders", ctypes.c_int32), ("after", ctypes.c_void_p)]


assert ctypes.sizeof(Block) == 16 and ctypes.CDLL(None).strlen(b"four") == 4
page = mmap.mmap(-1, mmap.PAGESIZE)
page[:5] = b"bytes"
page.close()


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
