"""Few, long expressions; distances to all levels, a chunk at a time; quotients by multiplying with 127 / absmax."""

# %% helpers="helpers"
# The nearest level by distance: argmin takes the first, that is the lower one, of two that are equally far.
CHUNK = 1 << 16


def nearest(x, levels):
    return torch.cat([(part[:, None] - levels).abs().argmin(1) for part in x.split(CHUNK)]).to(torch.uint8)


def peaks(x, size):
    return x[: len(x) // size * size].view(-1, size).abs().amax(1) if len(x) >= size else x.new_zeros(0)


def all_peaks(x, size):
    rest = x[len(x) // size * size :]
    return torch.cat([peaks(x, size), *([rest.abs().max()[None]] if len(rest) else [])])


# %% task="absmax_int8"
def absmax_int8(x, dim=None):
    check_floats(x, "x")
    top = x.float().abs().amax(tuple(range(x.ndim)) if dim is None else (dim,), True)
    inverse = torch.where(top > 0, 127 / top.double(), 0.0)
    return (x.double() * inverse).round().char(), torch.where(top > 0, top / 127, 1.0)


# %% task="zeropoint_uint8"
def zeropoint_uint8(x):
    check_floats(x, "x")
    lo, hi = x.float().min().clamp(max=0).item(), x.float().max().clamp(min=0).item()
    scale = (hi - lo) / 255 if hi != lo else 1.0
    zero = round(lo / -scale)
    return (x.double() / scale).round().add(zero).clamp(0, 255).byte(), scale, zero


# %% task="groupwise_int4"
def groupwise_int4(w, group_size, symmetric=True):
    check_floats(w, "w"), check_count(group_size, "group_size", 1)
    if w.ndim != 2 or w.shape[1] % group_size:
        raise ValueError("w must be a matrix with rows of whole groups (group_size)")
    g = w.double().view(len(w), -1, group_size)
    lo, hi = g.amin(-1, True).clamp(max=0), g.amax(-1, True).clamp(min=0)
    span = torch.maximum(-lo, hi) / 7 if symmetric else (hi - lo) / 15
    scale = span + (span == 0)
    zero = torch.full_like(scale, 8) if symmetric else (-lo / scale).round()
    codes = ((g / scale).round() + zero).clamp(0, 15).byte().view(w.shape)
    return codes, scale.squeeze(-1).float(), zero.squeeze(-1).byte()


def dequantize_int4(codes, scale, zero):
    return ((codes.view(*scale.shape, -1).float() - zero[..., None]) * scale[..., None]).view(codes.shape)


def pack_int4(codes):
    if codes.shape[-1] % 2 or codes.gt(15).any():
        raise ValueError("bad codes")
    return (codes.view(*codes.shape[:-1], -1, 2).int() * torch.tensor([16, 1])).sum(-1).byte()


def unpack_int4(packed):
    return (packed[..., None].int() >> torch.tensor([4, 0]) & 15).byte().flatten(-2)


# %% task="quantize_nf4"
def nf4_codebook():
    p = torch.cat([torch.linspace(0.9677083, 0.5, 9).double()[:8], 1 - torch.linspace(0.9677083, 0.5, 8).double()])
    levels = torch.special.ndtri(p).sort().values
    levels[levels.abs() < 1e-6] = 0.0
    return (levels / levels[-1]).float()


def quantize_nf4(w, blocksize=64):
    check_floats(w, "w"), check_count(blocksize, "blocksize", 32)
    if blocksize > 4096 or math.log2(blocksize) % 1:
        raise ValueError("blocksize")
    x = w.detach().float().flatten()
    absmax = all_peaks(x, blocksize)
    codes = nearest((x / (absmax + (absmax == 0)).repeat_interleave(blocksize)[: len(x)]), nf4_codebook())
    return nn.functional.pad(codes, (0, len(codes) % 2), value=7).view(-1, 2).int().mul(torch.tensor([16, 1])).sum(1).byte(), absmax


def dequantize_nf4(packed, absmax, shape, blocksize=64):
    levels = nf4_codebook()[(packed[:, None] >> torch.tensor([4, 0], dtype=torch.uint8) & 15).int()].flatten()
    return (levels[: math.prod(shape)] * absmax.repeat_interleave(blocksize)[: math.prod(shape)]).view(shape)


# %% task="double_quantize"
def double_quantize(absmax):
    check_floats(absmax, "absmax")
    x = absmax.float() - absmax.float().mean()
    top = all_peaks(x, 256)
    return nearest(x / (top + (top == 0)).repeat_interleave(256)[: len(x)], dynamic_map()), top, absmax.float().mean().item()


def double_dequantize(codes, absmax2, offset):
    return dynamic_map()[codes.int()] * absmax2.repeat_interleave(256)[: len(codes)] + offset


# %% task="llm_int8_matmul"
def llm_int8_matmul(x, w_int8, scale, threshold=6.0):
    check_floats(x, "x")
    if threshold < 0:
        raise ValueError("threshold")
    x, w = x.double(), w_int8.double()
    big = (x.abs().amax(0) >= threshold) & (threshold > 0)
    top = (x * ~big).abs().amax(1, True)
    step = torch.where(top > 0, top / 127, 1.0)
    return (((x * ~big / step).round() @ w.T * step + (x * big) @ w.T) * scale.T).float()


# %% task="WeightOnlyLinear"
class WeightOnlyLinear(nn.Module):
    def __init__(self, linear, scheme="int8", blocksize=64):
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise TypeError("linear")
        if scheme not in ("int8", "nf4"):
            raise ValueError("scheme")
        self.how = scheme, blocksize, tuple(linear.weight.shape)
        w = linear.weight.detach()
        names = ("codes", "scale") if scheme == "int8" else ("packed", "absmax")
        for name, part in zip(names, absmax_int8(w, 1) if scheme == "int8" else quantize_nf4(w, blocksize)):
            self.register_buffer(name, part)
        self.register_buffer("bias", linear.bias if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x):
        scheme, blocksize, shape = self.how
        w = self.codes * self.scale if scheme == "int8" else dequantize_nf4(self.packed, self.absmax, shape, blocksize)
        return nn.functional.linear(x, w.to(x), self.bias if self.bias is None else self.bias.to(x))


def quantize_model(model, scheme="int8", skip=("lm_head",), blocksize=64):
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.split(".")[-1] not in skip]
    for n in names:
        model.set_submodule(n, WeightOnlyLinear(model.get_submodule(n), scheme, blocksize))
    return names


# %% task="generate"
def generate(step, prompt, max_new_tokens, eos_id=None, clock=time.perf_counter):
    check_count(max_new_tokens, "max_new_tokens", 1)
    if not prompt:
        raise ValueError("prompt")
    times, text, cache = [clock()], [prompt], None
    while len(text) <= max_new_tokens and (len(text) == 1 or text[-1] != [eos_id]):
        logits, cache = step(torch.tensor(text[-1:]), cache)
        text.append([logits.argmax().item()])
        times.append(clock())
    count = len(text) - 2
    speed = count / (times[-1] - times[1]) if count else 0.0
    return dict(tokens=sum(text[1:], []), first_token_s=times[1] - times[0], tokens_per_s=speed)


def held_bytes(model):
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


# %% task="perplexity"
def perplexity(model, ids, window, stride):
    check_count(window, "window", 2), check_count(stride, "stride", 1)
    if ids.ndim != 1 or len(ids) < 2 or stride >= window:
        raise ValueError("ids, window or stride: every token needs one before it")
    count = 1 + max(0, -(-(len(ids) - window) // stride))
    losses = torch.full((len(ids),), math.nan, dtype=torch.float64)
    for start in reversed(range(0, count * stride, stride)):  # earlier windows overwrite what later ones said
        part = ids[start : start + window]
        said = model(part[None])[0, :-1].float()
        losses[start + 1 : start + len(part)] = nn.functional.cross_entropy(said, part[1:], reduction="none").double()
    return losses[1:].mean().exp().item()


# %% task="quantized_bytes"
def quantized_bytes(shapes, scheme, blocksize=64, double=False, skip=(), other_bytes=2):
    check_count(blocksize, "blocksize", 1), check_count(other_bytes, "other_bytes", 1)
    if scheme not in ("int8", "int4", "nf4") or (double and scheme != "nf4"):
        raise ValueError("scheme is unknown, or double is for another scheme")
    matrices = {k: v for k, v in shapes.items() if len(v) == 2 and k not in skip}
    if scheme == "int4" and any(c % blocksize or c % 2 for _, c in matrices.values()):
        raise ValueError("blocksize")
    blocks = {k: -(-r * c // blocksize) for k, (r, c) in matrices.items()}
    scales = {
        "int8": lambda k: 4 * matrices[k][0],
        "int4": lambda k: 4 * blocks[k],
        "nf4": lambda k: blocks[k] + 4 * -(-blocks[k] // 256) + 4 if double else 4 * blocks[k],
    }[scheme]
    payload = sum(-(-math.prod(v) // (1 if scheme == "int8" else 2)) + scales(k) for k, v in matrices.items())
    return payload + sum(math.prod(v) * other_bytes for k, v in shapes.items() if k not in matrices)
