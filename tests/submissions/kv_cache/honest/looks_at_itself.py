"""Uses inspect and frames on its own functions: sources, signatures, the name of who called.

twin of: V15 T2
"""

# %% helpers="helpers"
# Says where it was called from, as some debugging helpers do.
import inspect
import sys
import traceback
from bisect import bisect_left


def here():
    return sys._getframe(1).f_code.co_name


def caller():
    return here()


assert caller() == "caller"
assert "value" in inspect.signature(check_count).parameters
print(inspect.getsource(caller), [frame.name for frame in traceback.extract_stack()][-1], sorted(globals())[:3])
caller.__doc__ = "Changed."
caller.__globals__["own_name"] = caller.__code__.co_name


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
