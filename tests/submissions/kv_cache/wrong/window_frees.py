"""Says that a layer with a window costs nothing per token, because an old token leaves for each new one.

fails: test_bytes_of_real_caches test_cache_sliding_window test_cache_equals_real_caches
fails: test_cache_equals_counted_slots test_concurrency_mixed_layers test_length_is_the_largest
fails: test_length_of_huge_limit
"""


# %% task="kv_bytes_per_token"
def kv_bytes_per_token(spec, tp=1):
    check_count(tp, "tp", 1)
    total = 0
    for layer in spec.layers:
        if layer.n_heads % tp:
            raise ValueError(f"tp={tp} does not divide {layer.n_heads} heads")
        if isinstance(layer, LatentLayer):
            total += (layer.kv_lora_rank + layer.qk_rope_head_dim) * layer.dtype_bytes
            continue
        if layer.n_kv_heads % tp and tp % layer.n_kv_heads:
            raise ValueError(f"tp={tp} does not suit {layer.n_kv_heads} KV heads")
        if layer.window is not None:
            continue
        heads = max(1, layer.n_kv_heads // tp)
        for dim in (layer.head_dim, layer.value_head_dim):
            if layer.quantization is None:
                total += heads * dim * layer.dtype_bytes
            else:
                q = layer.quantization
                total += heads * dim * q.bits // 8
                total += heads * (dim // q.group_size) * (q.scale_bytes + q.zero_point_bytes)
    return total
