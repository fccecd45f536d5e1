"""Defines equality, order and hashes of its own classes, among them one that equals everything.

twin of: V6
"""

# %% helpers="helpers"
# Used inside only; what is returned is an int.
import functools
from bisect import bisect_left


class Any:
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0


@functools.total_ordering
class Size:
    def __init__(self, size):
        self.size = size

    def __eq__(self, other):
        return self.size == other.size

    def __lt__(self, other):
        return self.size < other.size


assert max(Size(1), Size(2)).size == 2 and [1, Any()] == [1, "anything"]


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
