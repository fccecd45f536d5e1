"""Computes for a second in one call, which is a fifth of what it may take.

twin of: V21 T14
"""

# %% helpers="helpers"
# A table of primes, made when it is first asked for.
from bisect import bisect_left
from functools import cache


@cache
def primes(limit):
    sieve = [True] * limit
    for number in range(2, limit):
        if sieve[number]:
            for multiple in range(number * number, limit, number):
                sieve[multiple] = False
    return [number for number in range(2, limit) if sieve[number]]


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(limit, "limit", 1)
    assert len(primes(3_000_000)) == 216_816

    def too_long(length):
        try:
            return max_concurrency(spec, budget, length, block_size, tp) < concurrency
        except InfeasibleError:
            return True

    return bisect_left(range(1, limit + 1), True, key=too_long)
