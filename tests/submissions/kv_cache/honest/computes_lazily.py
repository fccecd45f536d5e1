"""Works with generators, closures and promises inside, and gives a plain number at the end.

twin of: T7 T9
"""

# %% helpers="helpers"
# Nothing is computed before it is needed.
import functools
import itertools
from bisect import bisect_left


class Lazy:
    @functools.cached_property
    def value(self):
        return sum(itertools.islice(itertools.count(), 10))


def promise(function, *args):
    return functools.partial(function, *args)


assert Lazy().value == promise(sum, range(10))() == 45
stream = (number * number for number in itertools.count())
assert next(stream) + next(stream) == 1


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
