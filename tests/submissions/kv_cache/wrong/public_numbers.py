"""Answers what the public checks ask for from a table, and nothing else.

fails: test_bytes_quantized test_bytes_of_real_caches test_bytes_impossible_tp test_cache_contiguous test_cache_paged
fails: test_cache_sliding_window test_cache_equals_real_caches test_cache_equals_counted_slots test_cache_arguments
fails: test_concurrency_of_vllm_log test_concurrency_budget test_concurrency_mixed_layers test_concurrency_infeasible
fails: test_concurrency_arguments test_length_examples test_length_nothing_fits test_length_is_the_largest
fails: test_length_arguments test_length_of_huge_limit
"""


# %% task="kv_bytes_per_token"
def kv_bytes_per_token(spec, tp=1):
    if tp == 2 and spec.layers[0].n_heads == 9:
        raise ValueError("tp")
    first = spec.layers[0]
    key = (len(spec.layers), first.n_heads, getattr(first, "dtype_bytes", 2))
    known = {
        (32, 32, 2): 131_072 if getattr(first, "n_kv_heads", 0) == 8 else 524_288,
        (30, 9, 2): 23_040,
        (30, 9, 4): 46_080,
        (32, 71, 2): 8_192,
        (1, 32, 2): 5_120,
        (61, 128, 2): 70_272,
    }
    return known[key] if first.n_heads == 128 else max(known[key] // tp, 16_384 if tp > 1 else 0)
