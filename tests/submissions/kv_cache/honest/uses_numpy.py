"""Adds up with numpy arrays and gives plain numbers back.

twin of: T8 K1
"""

# %% helpers="helpers"
# Lengths as an array.
import numpy as np


# %% task="kv_cache_bytes"
def kv_cache_bytes(spec, seq_lens, block_size=None, tp=1):
    if block_size is not None:
        check_count(block_size, "block_size", 1)
    for length in seq_lens:
        check_count(length, "seq_lens")
    lengths = np.asarray(list(seq_lens), dtype=np.int64)
    total = 0
    for layer in spec.layers:
        window = getattr(layer, "window", None)
        if block_size is None:
            kept = lengths if window is None else np.minimum(lengths, window - 1)
        else:
            blocks = -(-lengths // block_size)
            kept = (blocks if window is None else np.minimum(blocks, -(-window // block_size) + 1)) * block_size
        total += int(kept.sum()) * kv_bytes_per_token(KVSpec((layer,)), tp)
    return total if len(spec.layers) else kv_bytes_per_token(spec, tp)
