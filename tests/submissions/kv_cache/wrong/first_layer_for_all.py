"""Takes the first layer for all: right for uniform models only.

fails: test_bytes_impossible_tp test_concurrency_mixed_layers test_length_is_the_largest
"""


# %% task="kv_bytes_per_token"
def kv_bytes_per_token(spec, tp=1):
    spec = KVSpec((spec.layers[0],) * len(spec.layers))
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
        for dim in (layer.head_dim, layer.value_head_dim):
            if layer.quantization is None:
                total += heads * dim * layer.dtype_bytes
            else:
                q = layer.quantization
                total += heads * dim * q.bits // 8
                total += heads * (dim // q.group_size) * (q.scale_bytes + q.zero_point_bytes)
    return total
