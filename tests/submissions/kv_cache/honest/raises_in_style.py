"""Raises groups, notes and chained exceptions, and catches them all.

twin of: V5 T11
"""

# %% helpers="helpers"
# Exceptions as a way to say more.
from bisect import bisect_left


class Refused(ValueError):
    def __init__(self, text, *, limit):
        super().__init__(text)
        self.limit = limit

    def __str__(self):
        return f"{super().__str__()} (limit {self.limit})"


try:
    try:
        raise Refused("too much", limit=3)
    except Refused as error:
        error.add_note("really")
        raise ExceptionGroup("several", [error, TypeError("too")]) from error
except* ValueError as group:
    print(group.exceptions)
except* TypeError:
    pass


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
