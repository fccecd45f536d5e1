"""Applies the smallest window of the model to all layers.

fails: test_cache_sliding_window test_cache_equals_real_caches test_cache_equals_counted_slots
fails: test_concurrency_mixed_layers test_length_is_the_largest
"""


# %% task="kv_cache_bytes"
def kv_cache_bytes(spec, seq_lens, block_size=None, tp=1):
    if block_size is not None:
        check_count(block_size, "block_size", 1)
    kv_bytes_per_token(spec, tp)
    total = 0
    for layer in spec.layers:
        cost = kv_bytes_per_token(KVSpec((layer,)), tp)
        windows = [layer.window for layer in spec.layers if getattr(layer, "window", None)]
        window = min(windows, default=None)
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
