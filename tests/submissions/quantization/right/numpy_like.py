"""numpy for all arithmetic on codes; torch only at the edges."""

# %% helpers="helpers"
# From torch to numpy and back; NF4 as a table and a binary search.
import statistics

import numpy as np


def array(x, name):
    check_floats(x, name)
    return x.detach().to(torch.float32).numpy()


def tensor(a, dtype):
    return torch.from_numpy(np.ascontiguousarray(a).astype(dtype))


def safe(a):
    return np.where(a == 0, np.float32(1), a).astype(np.float32)


def quantile(p):
    return statistics.NormalDist().inv_cdf(float(p))


# %% task="absmax_int8"
def absmax_int8(x, dim=None):
    a = array(x, "x")
    peak = np.abs(a).max(axis=dim, keepdims=True)
    scale = safe(peak / np.float32(127))
    return tensor(np.clip(np.rint(a / scale), -127, 127), np.int8), tensor(scale, np.float32)


# %% task="zeropoint_uint8"
def zeropoint_uint8(x):
    a = array(x, "x").astype(np.float64)
    lo, hi = min(a.min(), 0.0), max(a.max(), 0.0)
    if hi - lo == 0:
        return tensor(a * 0, np.uint8), 1.0, 0
    scale = float(hi - lo) / 255
    zero = int(np.rint(-lo / scale))
    return tensor(np.clip(np.rint(a / scale) + zero, 0, 255), np.uint8), scale, zero


# %% task="groupwise_int4"
def groupwise_int4(w, group_size, symmetric=True):
    a = array(w, "w")
    check_count(group_size, "group_size", 1)
    if a.ndim != 2:
        raise ValueError("w is no matrix")
    n, m = a.shape
    if m % group_size != 0:
        raise ValueError("group_size must divide the number of columns")
    a = a.reshape(n, -1, group_size)
    if symmetric:
        scale = safe(np.abs(a).max(-1) / np.float32(7))
        zero = np.full(scale.shape, 8.0)
    else:
        lo, hi = np.minimum(a.min(-1), 0), np.maximum(a.max(-1), 0)
        scale = safe((hi - lo) / np.float32(15))
        zero = np.rint(-lo / scale)
    codes = np.clip(np.rint(a / scale[..., None]) + zero[..., None], 0, 15)
    return tensor(codes.reshape(n, m), np.uint8), tensor(scale, np.float32), tensor(zero, np.uint8)


def dequantize_int4(codes, scale, zero):
    n, m = codes.shape
    a = codes.numpy().reshape(n, scale.shape[1], -1).astype(np.float32) - zero.numpy()[..., None]
    return tensor((a * scale.numpy()[..., None]).reshape(n, m), np.float32)


def pack_int4(codes):
    a = codes.numpy()
    if a.shape[-1] % 2 or (a.size and a.max() > 15):
        raise ValueError("these codes cannot be packed")
    pairs = a.reshape(*a.shape[:-1], -1, 2)
    return tensor(pairs[..., 0] * 16 + pairs[..., 1], np.uint8)


def unpack_int4(packed):
    high, low = np.divmod(packed.numpy(), 16)
    return tensor(np.stack([high, low], -1).reshape(*packed.shape[:-1], -1), np.uint8)


# %% task="quantize_nf4"
def nf4_codebook():
    o = 0.9677083
    levels = [quantile(p) for p in np.linspace(o, 0.5, 9)[:8]] + [0.0]
    levels += [-quantile(p) for p in np.linspace(o, 0.5, 8)[:7]]
    return tensor(np.array(sorted(levels)) / max(levels), np.float32)


def quantize_nf4(w, blocksize=64):
    a = array(w, "w").ravel()
    check_count(blocksize, "blocksize", 1)
    if blocksize not in [2**k for k in range(5, 13)]:
        raise ValueError("blocksize is not one of bitsandbytes'")
    starts = np.arange(0, a.size, blocksize)
    peak = np.maximum.reduceat(np.abs(a), starts)
    normed = a / np.repeat(safe(peak), blocksize)[: a.size]
    book = nf4_codebook().numpy().astype(np.float64)
    codes = np.searchsorted((book[1:] + book[:-1]) / 2, normed.astype(np.float64), side="left").astype(np.uint8)
    if codes.size % 2:
        codes = np.append(codes, np.uint8(7))
    return tensor(codes[0::2] * 16 + codes[1::2], np.uint8), tensor(peak, np.float32)


def dequantize_nf4(packed, absmax, shape, blocksize=64):
    n = int(np.prod(shape))
    codes = np.empty(2 * len(packed), np.uint8)
    codes[0::2], codes[1::2] = packed.numpy() >> 4, packed.numpy() & 15
    a = nf4_codebook().numpy()[codes[:n]] * np.repeat(absmax.numpy(), blocksize)[:n]
    return tensor(a.reshape(shape), np.float32)


# %% task="double_quantize"
def double_quantize(absmax):
    a = array(absmax, "absmax").astype(np.float64)
    offset = a.mean()
    a = a - offset
    peak = np.maximum.reduceat(np.abs(a), np.arange(0, a.size, 256))
    levels = dynamic_map().numpy().astype(np.float64)
    codes = np.abs((a / np.repeat(np.where(peak == 0, 1, peak), 256)[: a.size])[:, None] - levels).argmin(1)
    return tensor(codes, np.uint8), tensor(peak, np.float32), float(offset)


def double_dequantize(codes, absmax2, offset):
    a = dynamic_map().numpy()[codes.numpy()] * np.repeat(absmax2.numpy(), 256)[: len(codes)]
    return tensor(a + offset, np.float32)


# %% task="llm_int8_matmul"
def llm_int8_matmul(x, w_int8, scale, threshold=6.0):
    a = array(x, "x")
    if threshold < 0:
        raise ValueError("threshold below 0")
    big = np.abs(a).max(0) >= threshold if threshold > 0 else np.zeros(a.shape[1], bool)
    rest = np.where(big, 0, a)
    row = safe(np.abs(rest).max(1, keepdims=True) / np.float32(127))
    q = np.rint(rest / row).astype(np.int64)
    w = w_int8.numpy().astype(np.int64)
    out = (q @ w.T) * row.astype(np.float64) * scale.numpy().T
    out += a[:, big].astype(np.float64) @ (w[:, big] * scale.numpy().astype(np.float64)).T
    return tensor(out, np.float32)


# %% task="WeightOnlyLinear"
class WeightOnlyLinear(nn.Module):
    def __init__(self, linear, scheme="int8", blocksize=64):
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise TypeError("linear is no nn.Linear")
        if scheme == "int8":
            codes, scale = absmax_int8(linear.weight, 1)
            self.register_buffer("codes", codes)
            self.register_buffer("scale", scale)
        elif scheme == "nf4":
            packed, absmax = quantize_nf4(linear.weight, blocksize)
            self.register_buffer("packed", packed)
            self.register_buffer("absmax", absmax)
        else:
            raise ValueError(f"unknown scheme {scheme}")
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        self.size = (linear.out_features, linear.in_features)
        self.blocksize = blocksize

    @property
    def weight_now(self):
        if hasattr(self, "codes"):
            return self.codes.float() * self.scale
        return dequantize_nf4(self.packed, self.absmax, self.size, self.blocksize)

    def forward(self, x):
        y = x @ self.weight_now.to(x.dtype).T
        return y if self.bias is None else y + self.bias.to(x.dtype)


def quantize_model(model, scheme="int8", skip=("lm_head",), blocksize=64):
    done = []

    def walk(module, prefix):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                if name not in skip:
                    module._modules[name] = WeightOnlyLinear(child, scheme, blocksize)
                    done.append(prefix + name)
            else:
                walk(child, prefix + name + ".")

    walk(model, "")
    return done


# %% task="generate"
def generate(step, prompt, max_new_tokens, eos_id=None, clock=time.perf_counter):
    check_count(max_new_tokens, "max_new_tokens", 1)
    if len(prompt) == 0:
        raise ValueError("prompt must have a token")
    times, tokens, cache, fed = [clock()], [], None, list(prompt)
    for _ in range(max_new_tokens):
        logits, cache = step(torch.from_numpy(np.array([fed], dtype=np.int64)), cache)
        fed = [int(np.argmax(logits.float().numpy()))]
        tokens += fed
        times.append(clock())
        if fed == [eos_id]:
            break
    gaps = np.diff(times)
    speed = 1 / gaps[1:].mean() if len(gaps) > 1 else 0.0
    return {"tokens": tokens, "first_token_s": float(gaps[0]), "tokens_per_s": float(speed)}


def held_bytes(model):
    where = {each.data_ptr(): each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers())}
    return sum(where.values())


# %% task="perplexity"
def perplexity(model, ids, window, stride):
    if ids.ndim != 1 or ids.numel() < 2:
        raise ValueError("ids is too short or no row")
    check_count(window, "window", 2)
    check_count(stride, "stride", 1)
    if stride >= window:
        raise ValueError("stride must be smaller than the window")
    losses, known = [], 1
    for begin in range(0, len(ids), stride):
        part = ids[begin : begin + window]
        z = model(part.reshape(1, -1))[0].float().numpy().astype(np.float64)
        z = z - z.max(1, keepdims=True)
        logp = z - np.log(np.exp(z).sum(1, keepdims=True))
        for t in range(known, begin + len(part)):
            losses.append(-logp[t - begin - 1, int(ids[t])])
        known = begin + len(part)
        if known == len(ids):
            break
    return float(np.exp(np.mean(losses)))


# %% task="quantized_bytes"
def quantized_bytes(shapes, scheme, blocksize=64, double=False, skip=(), other_bytes=2):
    check_count(blocksize, "blocksize", 1)
    check_count(other_bytes, "other_bytes", 1)
    if scheme not in {"int8", "int4", "nf4"}:
        raise ValueError("scheme?")
    if double and scheme != "nf4":
        raise ValueError("double is for nf4")

    def up(a, b):
        return (a + b - 1) // b

    def cost(name, shape):
        n = int(np.prod(shape, dtype=np.int64))
        if name in skip or len(shape) != 2:
            return n * other_bytes
        if scheme == "int8":
            return n + shape[0] * 4
        if scheme == "int4":
            if shape[1] % blocksize or shape[1] & 1:
                raise ValueError("blocksize does not fit")
            return n // 2 + n // blocksize * 4
        blocks = up(n, blocksize)
        return up(n, 2) + (blocks + 4 * up(blocks, 256) + 4 if double else blocks * 4)

    return sum(cost(name, tuple(shape)) for name, shape in shapes.items())
