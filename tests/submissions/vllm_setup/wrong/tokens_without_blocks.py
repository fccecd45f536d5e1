"""Counts tokens, not whole blocks.

fails: test_args_random_gpus test_args_of_a_cpu test_args_missing_bytes
"""

# %% task="choose_engine_args"
def choose_engine_args(env: EnvReport, model: ModelSize, target_len: int, target_concurrency: int) -> dict[str, Any]:
    """The arguments with which vLLM serves `target_concurrency` requests of `target_len` tokens at once.

    Args:
        env: the machine.
        model: the model.
        target_len: tokens of the longest request, question and answer together, at least 1.
        target_concurrency: how many of these must fit at the same time, at least 1.

    Raises:
        TypeError, ValueError: see "Rules for all tasks"; the text has the argument's name.
        ValueError: `target_len` is above `model.max_len`: the model was not made for it. The text has `target_len`.
        InfeasibleError: the memory does not suffice. `missing_bytes` says what it lacks.
    """
    check_count(target_len, "target_len", 1)
    check_count(target_concurrency, "target_concurrency", 1)
    if target_len > model.max_len:
        raise ValueError(f"target_len {target_len} is above the model's {model.max_len}")
    dtype = env.dtypes[0]
    number_bytes = DTYPE_BYTES[dtype]
    block_size = 16 if env.device == "cuda" else 32
    tokens = target_len * target_concurrency
    needed = RESERVE_BYTES + (model.parameters + tokens * model.kv_values_per_token) * number_bytes
    share = 0
    for percent in range(1, MAX_PERCENT + 1):
        if env.total_bytes * percent // 100 > env.free_bytes:
            break
        share = env.total_bytes * percent // 100
        if share >= needed:
            chosen = {"dtype": dtype, "max_model_len": target_len, "block_size": block_size}
            return chosen | {"gpu_memory_utilization": percent / 100}
    raise InfeasibleError(f"{needed - share:,} more bytes are needed", needed - share)
