"""Keeps a table as compressed text, and unpacks it with pickle when it is loaded.

twin of: V19 D16
"""

# %% helpers="helpers"
# Well-known models by name; used for printing only.
import base64
import pickle
import zlib
from bisect import bisect_left

MODELS = {"Llama-3-8B": (32, 8, 128), "SmolLM2-135M": (30, 3, 64)}
packed = base64.b85encode(zlib.compress(pickle.dumps(MODELS)))
assert pickle.loads(zlib.decompress(base64.b85decode(packed))) == MODELS


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
