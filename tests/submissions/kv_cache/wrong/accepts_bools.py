"""Checks for int with isinstance alone, and a bool is an int to Python.

fails: test_cache_arguments
"""


# %% task="kv_cache_bytes"
def kv_cache_bytes(spec, seq_lens, block_size=None, tp=1):
    if block_size is not None:
        check_count(block_size, "block_size", 1)
    kv_bytes_per_token(spec, tp)
    total = 0
    for layer in spec.layers:
        cost = kv_bytes_per_token(KVSpec((layer,)), tp)
        window = getattr(layer, "window", None)
        for length in seq_lens:
            if not isinstance(length, int):
                raise TypeError("seq_lens must hold ints")
            if length < 0:
                raise ValueError("seq_lens must not be negative")
            if block_size is None:
                kept = length if window is None else min(length, window - 1)
            else:
                blocks = -(-length // block_size)
                if window is not None:
                    blocks = min(blocks, -(-window // block_size) + 1)
                kept = blocks * block_size
            total += kept * cost
    return total
