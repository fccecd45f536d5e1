"""Shares memory between a parent and a child, and removes it again.

twin of: V22
"""

# %% helpers="helpers"
# multiprocessing.shared_memory, or none where there is none.
from bisect import bisect_left
from multiprocessing import shared_memory

try:
    block = shared_memory.SharedMemory(create=True, size=1024)
    block.buf[:3] = b"abc"
    again = shared_memory.SharedMemory(name=block.name)
    assert bytes(again.buf[:3]) == b"abc"
    again.close()
    block.close()
    block.unlink()
except OSError as error:
    print("no shared memory here:", error)


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
