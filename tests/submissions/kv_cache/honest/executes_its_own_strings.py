"""Writes code into strings and executes it, as dataclasses and namedtuple do.

twin of: V19
"""

# %% helpers="helpers"
# Makes functions from a template.
from bisect import bisect_left
from collections import namedtuple

made = {}
for unit, factor in (("KiB", 2**10), ("MiB", 2**20)):
    exec(f"def to_{unit}(size):\n    return size / {factor}", made)
assert made["to_KiB"](1024) == eval("made['to_MiB'](1 << 20)")
Point = namedtuple("Point", "x y")
code = compile("sum(range(10))", "<mine>", "eval")
assert eval(code, {"__builtins__": {"sum": sum, "range": range}}) == 45


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
