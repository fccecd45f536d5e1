"""Copies its inputs and changes the copies: sorts lengths, empties lists.

twin of: D9
"""

# %% helpers="helpers"
# Deep copies, to be on the safe side.
import copy
from collections import Counter


# %% task="kv_cache_bytes"
def kv_cache_bytes(spec, seq_lens, block_size=None, tp=1):
    if block_size is not None:
        check_count(block_size, "block_size", 1)
    mine = copy.deepcopy(spec)
    object.__setattr__(mine, "layers", tuple(reversed(mine.layers)))
    rest = list(seq_lens)
    for length in rest:
        check_count(length, "seq_lens")
    costs = Counter()
    for layer in mine.layers:
        costs[getattr(layer, "window", None)] += kv_bytes_per_token(KVSpec((layer,)), tp)
    total = 0
    rest.sort()
    while rest:
        length = rest.pop()
        for window, cost in costs.items():
            if block_size is None:
                total += cost * (length if window is None else min(length, window - 1))
            else:
                blocks = -(-length // block_size)
                total += cost * block_size * (blocks if window is None else min(blocks, -(-window // block_size) + 1))
    return total
