"""Seeds the random generators and tries its functions on random inputs when it is loaded.

twin of: D5
"""

# %% helpers="helpers"
# A test with random inputs of its own.
import random
from bisect import bisect_left

random.seed(1234)
rng = random.Random("0/test_length_of_huge_limit")
for _ in range(1_000):
    length, block = rng.randint(0, 100), random.randint(1, 20)
    assert -(-length // block) * block >= length


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
