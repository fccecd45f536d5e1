"""Rounds the sum of all lengths up to blocks, as if sequences shared their last block.

fails: test_cache_paged test_cache_equals_counted_slots test_cache_arguments
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
            check_count(length, "seq_lens")
        for length in [sum(seq_lens)] if block_size else seq_lens:
            if block_size is None:
                kept = length if window is None else min(length, window - 1)
            else:
                blocks = -(-length // block_size)
                if window is not None:
                    blocks = min(blocks, -(-window // block_size) + 1)
                kept = blocks * block_size
            total += kept * cost
    return total
