"""Written by a student who had the handout and nothing else."""


# %% helpers="helpers"
def _as_float(x: torch.Tensor, name: str) -> torch.Tensor:
    """`x` checked, without its graph, in fp32."""
    check_floats(x, name)
    return x.detach().float()


def _positive(scale: torch.Tensor) -> torch.Tensor:
    """Scales with 1 in place of 0 (only zeros, or numbers so small that fp32 has no scale for them)."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _nearest(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Number of the nearest of the ascending levels, the lower one in the middle."""
    return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)


def _in_blocks(x: torch.Tensor, size: int) -> torch.Tensor:
    """A vector as [blocks, size], filled up with zeros."""
    return nn.functional.pad(x, (0, -len(x) % size)).reshape(-1, size)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


# %% task="absmax_int8"
def absmax_int8(x: torch.Tensor, dim: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    x = _as_float(x, "x")
    size = x.abs()
    top = size.amax(dim=tuple(range(x.ndim)) if dim is None else dim, keepdim=True)
    scale = _positive(top / 127)
    return (x / scale).round().clamp(-127, 127).to(torch.int8), scale


# %% task="zeropoint_uint8"
def zeropoint_uint8(x: torch.Tensor) -> tuple[torch.Tensor, float, int]:
    x = _as_float(x, "x")
    lo, hi = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (hi - lo) / 255
    if torch.isinf(scale):  # hi - lo beyond fp32
        scale = hi / 255 - lo / 255
    scale = _positive(scale)
    zero = (-lo / scale).round().clamp(0, 255)
    codes = ((x / scale).round() + zero).clamp(0, 255).to(torch.uint8)
    return codes, float(scale), int(zero)


# %% task="groupwise_int4"
def groupwise_int4(
    w: torch.Tensor, group_size: int, symmetric: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    w = _as_float(w, "w")
    if w.ndim != 2:
        raise ValueError(f"w must have two dimensions, not {w.ndim}")
    check_count(group_size, "group_size", 1)
    rows, cols = w.shape
    if cols % group_size:
        raise ValueError(f"group_size {group_size} does not divide the {cols} columns")
    groups = w.reshape(rows, cols // group_size, group_size)
    if symmetric:
        scale = _positive(groups.abs().amax(-1, keepdim=True) / 7)
        zero = torch.full_like(scale, 8)
    else:
        lo, hi = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
        scale = _positive((hi - lo) / 15)
        zero = (-lo / scale).round().clamp(0, 15)
    codes = ((groups / scale).round() + zero).clamp(1 if symmetric else 0, 15)
    return codes.to(torch.uint8).reshape(rows, cols), scale.squeeze(-1), zero.squeeze(-1).to(torch.uint8)


def dequantize_int4(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    rows, cols = codes.shape
    groups = codes.float().reshape(rows, scale.shape[1], -1)
    return ((groups - zero.float()[..., None]) * scale.float()[..., None]).reshape(rows, cols)


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    """Two codes per byte: uint8 [..., n] to uint8 [..., n / 2], the first of a pair in the high four bits.

    Raises:
        ValueError: n is odd, or a code is above 15. The text names `codes`.
    """
    if codes.ndim == 0 or codes.shape[-1] % 2:
        raise ValueError("codes must be an even number along the last dimension")
    if ((codes < 0) | (codes > 15)).any():
        raise ValueError("codes must be from 0 to 15")
    codes = codes.to(torch.uint8)
    return (codes[..., ::2] << 4) | codes[..., 1::2]


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    return torch.stack((packed >> 4, packed & 15), dim=-1).flatten(-2)


# %% task="quantize_nf4"
def nf4_codebook() -> torch.Tensor:
    probability = 0.9677083

    def side(points: int) -> torch.Tensor:
        return torch.special.ndtri(torch.linspace(probability, 0.5, points, dtype=torch.float64)[:-1])

    levels = torch.cat([side(9), -side(8), torch.zeros(1, dtype=torch.float64)]).sort().values
    return (levels / levels[-1]).float()


def quantize_nf4(w: torch.Tensor, blocksize: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    w = _as_float(w, "w")
    check_count(blocksize, "blocksize", 1)
    if blocksize not in (32, 64, 128, 256, 512, 1024, 2048, 4096):
        raise ValueError(f"blocksize must be a power of two from 32 to 4096, not {blocksize}")
    n = w.numel()
    blocks = _in_blocks(w.reshape(-1), blocksize)
    absmax = blocks.abs().amax(1)
    codes = _nearest(blocks / _positive(absmax)[:, None], nf4_codebook().to(w.device)).reshape(-1)
    return pack_int4(codes[: n + n % 2]), absmax  # an odd n has a short last block: what follows is 0, so code 7


def dequantize_nf4(
    packed: torch.Tensor, absmax: torch.Tensor, shape: tuple[int, ...], blocksize: int = 64
) -> torch.Tensor:
    n = math.prod(shape)
    levels = nf4_codebook().to(packed.device)[unpack_int4(packed).int()[:n]]
    return (_in_blocks(levels, blocksize) * absmax.float()[:, None]).reshape(-1)[:n].reshape(shape)


# %% task="double_quantize"
def double_quantize(absmax: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    absmax = _as_float(absmax, "absmax")
    if absmax.ndim != 1:
        raise ValueError("absmax must have one dimension")
    offset = absmax.double().mean().float()
    blocks = _in_blocks(absmax - offset, 256)
    absmax2 = blocks.abs().amax(1)
    codes = _nearest(blocks / _positive(absmax2)[:, None], dynamic_map().to(absmax.device))
    return codes.reshape(-1)[: len(absmax)], absmax2, float(offset)


def double_dequantize(codes: torch.Tensor, absmax2: torch.Tensor, offset: float) -> torch.Tensor:
    levels = dynamic_map().to(codes.device)[codes.int()]
    return (_in_blocks(levels, 256) * absmax2.float()[:, None]).reshape(-1)[: len(codes)] + offset


# %% task="llm_int8_matmul"
def llm_int8_matmul(x: torch.Tensor, w_int8: torch.Tensor, scale: torch.Tensor, threshold: float = 6.0) -> torch.Tensor:
    x = _as_float(x, "x")
    if not threshold >= 0:
        raise ValueError(f"threshold must be 0 or more, not {threshold}")
    outlier = (x.abs() >= threshold).any(0) if threshold else torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    codes, x_scale = absmax_int8(x.masked_fill(outlier, 0.0), 1)
    # fp64 holds whole numbers up to 2**53 exactly, and is much faster than whole numbers on a CPU
    product = (codes.double() @ w_int8.double().T).float() * x_scale * scale.float().T
    return product + x[:, outlier] @ (w_int8[:, outlier].float() * scale.float()).T


# %% task="WeightOnlyLinear"
class WeightOnlyLinear(nn.Module):
    def __init__(self, linear: nn.Linear, scheme: str = "int8", blocksize: int = 64) -> None:
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be an nn.Linear, not {type(linear).__name__}")
        if scheme not in ("int8", "nf4"):
            raise ValueError(f'scheme must be "int8" or "nf4", not {scheme!r}')
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scheme, self.blocksize = scheme, blocksize
        weight = linear.weight.detach()
        names = ("codes", "scale") if scheme == "int8" else ("packed", "absmax")
        tensors = absmax_int8(weight, dim=1) if scheme == "int8" else quantize_nf4(weight, blocksize)
        for name, tensor in zip(names, tensors, strict=True):
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.scheme == "int8":
            weight = self.codes * self.scale.float()
        else:
            weight = dequantize_nf4(self.packed, self.absmax, (self.out_features, self.in_features), self.blocksize)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, weight.to(x.dtype), bias)


def quantize_model(
    model: nn.Module, scheme: str = "int8", skip: tuple[str, ...] = ("lm_head",), blocksize: int = 64
) -> list[str]:
    if scheme not in ("int8", "nf4"):
        raise ValueError(f'scheme must be "int8" or "nf4", not {scheme!r}')
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] not in skip
    ]
    for name in names:
        above, _, own = name.rpartition(".")
        parent = model.get_submodule(above)
        setattr(parent, own, WeightOnlyLinear(getattr(parent, own), scheme, blocksize))
    return names


# %% task="generate"
def generate(
    step: Callable[[torch.Tensor, Any], tuple[torch.Tensor, Any]],
    prompt: list[int],
    max_new_tokens: int,
    eos_id: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    if len(prompt) == 0:
        raise ValueError("prompt is empty")
    check_count(max_new_tokens, "max_new_tokens", 1)
    begin = clock()
    scores, cache = step(torch.tensor([prompt], dtype=torch.int64), None)
    tokens = [int(scores.argmax())]
    first = last = clock()
    while len(tokens) < max_new_tokens and tokens[-1] != eos_id:
        scores, cache = step(torch.tensor([tokens[-1:]], dtype=torch.int64), cache)
        tokens.append(int(scores.argmax()))
    if len(tokens) > 1:
        last = clock()
    speed = (len(tokens) - 1) / (last - first) if last > first else 0.0
    return {"tokens": tokens, "first_token_s": float(first - begin), "tokens_per_s": float(speed)}


def held_bytes(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    # the same memory is the same tensor; on the device "meta" there is none, so look at the objects there
    places = {(t.device, t.data_ptr(), t.nbytes) if t.data_ptr() else id(t): t.nbytes for t in tensors}
    return sum(places.values())


# %% task="perplexity"
def perplexity(model: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor, window: int, stride: int) -> float:
    if ids.ndim != 1 or len(ids) < 2:
        raise ValueError("ids must have one dimension and at least 2 tokens")
    check_count(window, "window", 2)
    check_count(stride, "stride", 1)
    if stride >= window:
        raise ValueError(f"stride must be less than the window, not {stride}")
    total, start, seen = 0.0, 0, 1
    while seen < len(ids):
        end = min(start + window, len(ids))
        with torch.no_grad():
            scores = model(ids[None, start:end])[0, seen - start - 1 : end - start - 1].float()
            lost = nn.functional.cross_entropy(scores, ids[seen:end].to(scores.device), reduction="none")
        total += float(lost.double().sum())
        start, seen = start + stride, end
    return torch.tensor(total / (len(ids) - 1), dtype=torch.float64).exp().item()  # math.exp fails where this is inf


# %% task="quantized_bytes"
def quantized_bytes(
    shapes: dict[str, tuple[int, ...]],
    scheme: str,
    blocksize: int = 64,
    double: bool = False,
    skip: tuple[str, ...] = (),
    other_bytes: int = 2,
) -> int:
    if scheme not in ("int8", "int4", "nf4"):
        raise ValueError(f'scheme must be "int8", "int4" or "nf4", not {scheme!r}')
    if double and scheme != "nf4":
        raise ValueError('double is for the scheme "nf4" only')
    check_count(blocksize, "blocksize", 1)
    check_count(other_bytes, "other_bytes", 1)
    kept, total = set(skip), 0
    for name, shape in shapes.items():
        n = math.prod(shape)
        if len(shape) != 2 or name in kept:
            total += n * other_bytes
            continue
        rows, cols = shape
        if scheme == "int8":
            total += n + 4 * rows
        elif scheme == "int4":
            if cols % blocksize or cols % 2:
                raise ValueError(f"blocksize {blocksize} does not fit {name}: {cols} columns (which must be even)")
            total += n // 2 + 4 * (n // blocksize)
        else:
            blocks = _ceil(n, blocksize)
            total += _ceil(n, 2) + (blocks + 4 * _ceil(blocks, 256) + 4 if double else 4 * blocks)
    return total
