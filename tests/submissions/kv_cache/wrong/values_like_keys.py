"""Doubles the bytes of the keys: wrong where values have another length.

fails: test_bytes_per_kv_head test_bytes_quantized test_cache_equals_counted_slots test_concurrency_mixed_layers
fails: test_length_is_the_largest
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
        heads = max(1, layer.n_kv_heads // tp)
        for dim in (layer.head_dim, layer.head_dim):
            if layer.quantization is None:
                total += heads * dim * layer.dtype_bytes
            else:
                q = layer.quantization
                total += heads * dim * q.bits // 8
                total += heads * (dim // q.group_size) * (q.scale_bytes + q.zero_point_bytes)
    return total
