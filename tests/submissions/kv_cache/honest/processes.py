"""Tries its helper in a pool of processes when it is loaded, and goes on without if there is none.

twin of: T6 V21
"""

# %% helpers="helpers"
# A pool of two processes, closed again.
import multiprocessing
from bisect import bisect_left


def square(number):
    return number * number


try:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(square, range(10)) == [number**2 for number in range(10)]
except OSError as error:
    print("no processes here:", error)


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
