"""Measures its own functions with a decorator, keeps the fastest, and prints what it measured.

twin of: T1 T10
"""

# %% helpers="helpers"
# A decorator that times.
import functools
import time
from bisect import bisect_left

best = {}


def timed(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds = time.perf_counter() - began
            best[function.__name__] = min(seconds, best.get(function.__name__, seconds))

    return wrapper


check_count = timed(check_count)
now = time.perf_counter  # a shorter name


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
