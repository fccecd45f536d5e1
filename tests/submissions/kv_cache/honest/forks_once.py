"""Forks a child that computes something and reports through a pipe, and waits for it.

twin of: V21 V22
"""

# %% helpers="helpers"
# fork, pipe, wait: an exercise of an operating systems course.
import os
from bisect import bisect_left

read, write = os.pipe()
child = os.fork()
if child == 0:
    os.write(write, b"42")
    os._exit(0)
os.close(write)
assert os.read(read, 10) == b"42"
os.waitpid(child, 0)
os.close(read)


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
