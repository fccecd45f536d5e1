"""Passes settings down in context variables instead of arguments.

twin of: T11
"""

# %% helpers="helpers"
# The current number of ranks.
import contextvars
from bisect import bisect_left

current = contextvars.ContextVar("tp", default=1)
context = contextvars.copy_context()
context.run(current.set, 2)
assert current.get() == 1


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(limit, "limit", 1)

    def too_long(length):
        try:
            return max_concurrency(spec, budget, length, block_size, tp) < concurrency
        except InfeasibleError:
            return True

    current.set(tp); return bisect_left(range(1, limit + 1), True, key=too_long)
