"""Answers in KiB, as a float.

fails: test_bytes_per_kv_head test_bytes_latent test_bytes_tensor_parallel test_bytes_quantized
fails: test_bytes_of_real_caches test_bytes_impossible_tp test_cache_contiguous test_cache_paged
fails: test_cache_sliding_window test_cache_equals_real_caches test_cache_equals_counted_slots test_cache_arguments
fails: test_concurrency_of_vllm_log test_concurrency_budget test_concurrency_mixed_layers test_concurrency_infeasible
fails: test_length_examples test_length_nothing_fits test_length_is_the_largest test_length_of_huge_limit
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
        for dim in (layer.head_dim, layer.value_head_dim):
            if layer.quantization is None:
                total += heads * dim * layer.dtype_bytes
            else:
                q = layer.quantization
                total += heads * dim * q.bits // 8
                total += heads * (dim // q.group_size) * (q.scale_bytes + q.zero_point_bytes)
    return total / 1024
