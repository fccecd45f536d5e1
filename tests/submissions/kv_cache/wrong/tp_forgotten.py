"""Accepts tp and does not pass it on.

fails: test_cache_contiguous test_cache_equals_counted_slots test_concurrency_budget test_concurrency_mixed_layers
fails: test_length_is_the_largest
"""


# %% task="kv_cache_bytes"
def kv_cache_bytes(spec, seq_lens, block_size=None, tp=1):
    if block_size is not None:
        check_count(block_size, "block_size", 1)
    kv_bytes_per_token(spec, tp)
    total = 0
    for layer in spec.layers:
        cost = kv_bytes_per_token(KVSpec((layer,)))
        window = getattr(layer, "window", None)
        for length in seq_lens:
            check_count(length, "seq_lens")
            if block_size is None:
                kept = length if window is None else min(length, window - 1)
            else:
                blocks = -(-length // block_size)
                if window is not None:
                    blocks = min(blocks, -(-window // block_size) + 1)
                kept = blocks * block_size
            total += kept * cost
    return total
