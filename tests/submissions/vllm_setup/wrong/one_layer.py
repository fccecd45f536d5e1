"""Counts one layer.

fails: test_plan_*
"""

# %% task="kv_plan"
def kv_plan(config: LlamaConfig, dtype: str, kv_cache_bytes: int, block_size: int, max_model_len: int) -> KVPlan:
    """The KV cache that vLLM makes of `kv_cache_bytes` bytes.

    Args:
        config: the model's sizes.
        dtype: one of `DTYPE_BYTES`: how keys and values are stored.
        kv_cache_bytes: the bytes that there are for it, at least 0.
        block_size: tokens per block, at least 1.
        max_model_len: the longest request in tokens, at least 1.

    Raises:
        TypeError, ValueError: see "Rules for all tasks"; the text has the argument's name.
        ValueError: `dtype` is not in `DTYPE_BYTES`. The text has `dtype`.
        InfeasibleError: not even one request of `max_model_len` tokens fits. `missing_bytes` says what it lacks.
    """
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype must be one of {sorted(DTYPE_BYTES)}, not {dtype!r}")
    check_count(kv_cache_bytes, "kv_cache_bytes")
    check_count(block_size, "block_size", 1)
    check_count(max_model_len, "max_model_len", 1)
    values = 2 * config.num_key_value_heads * config.head_dim
    page_bytes = values * DTYPE_BYTES[dtype] * block_size
    blocks = kv_cache_bytes // page_bytes
    per_request = math.ceil(max_model_len / block_size)
    if blocks < per_request:
        missing = per_request * page_bytes - kv_cache_bytes
        raise InfeasibleError(f"one request of {max_model_len} tokens needs {missing:,} more bytes", missing)
    return KVPlan(page_bytes, blocks, blocks * max_model_len // per_request, blocks / per_request)
