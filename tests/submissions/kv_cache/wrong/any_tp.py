"""Takes every tp that is a number: rounds where the heads do not come out even.

fails: test_bytes_tensor_parallel test_bytes_impossible_tp test_cache_arguments test_length_arguments
"""


# %% task="kv_bytes_per_token"
def kv_bytes_per_token(spec, tp=1):
    check_count(tp, "tp", 1)
    total = 0
    for layer in spec.layers:
        if isinstance(layer, LatentLayer):
            total += (layer.kv_lora_rank + layer.qk_rope_head_dim) * layer.dtype_bytes
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
