"""Replaces methods of its own classes and functions of its own module after they were defined.

twin of: T2 V8
"""

# %% helpers="helpers"
# A counter that learns to count by two, and gets a __call__ from outside.
import sys
from bisect import bisect_left
from unittest import mock


class Counter:
    step = 1

    def add(self, number):
        return number + self.step


Counter.add = lambda self, number: number + 2 * self.step
Counter.__call__ = Counter.add
setattr(sys.modules[__name__] if __name__ in sys.modules else Counter, "patched", True)
with mock.patch.object(Counter, "step", 5):
    assert Counter()(1) == 11


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
