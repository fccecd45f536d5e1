"""Writes a module of its own to disk and imports it, and shadows a name of the standard library with it.

twin of: V9
"""

# %% helpers="helpers"
# As with %%writefile in a notebook.
import importlib
import pathlib
import sys
from bisect import bisect_left

pathlib.Path("queue_helpers.py").write_text("def first(items):\n    return items[0]\n")
sys.path.insert(0, ".")
helpers = importlib.import_module("queue_helpers")
importlib.reload(helpers)
assert helpers.first([1, 2]) == 1
sys.modules["student_helpers"] = helpers


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
