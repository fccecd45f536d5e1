"""Divides blocks of zeros by zero.

fails: test_nf4_ties_and_zeros
"""


# %% task="quantize_nf4"
def nf4_codebook() -> torch.Tensor:
    above = torch.special.ndtri(torch.linspace(0.9677083, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(0.9677083, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([below, torch.zeros(1, dtype=torch.float64), above]).sort().values
    return (levels / levels.max()).float()


def quantize_nf4(w: torch.Tensor, blocksize: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    check_floats(w, "w")
    check_count(blocksize, "blocksize", 32)
    if blocksize > 4096 or blocksize & (blocksize - 1):
        raise ValueError(f"blocksize must be a power of two from 32 to 4096, not {blocksize}")
    numbers = w.float().reshape(-1)
    count = len(numbers)
    blocks = nn.functional.pad(numbers, (0, -count % blocksize)).reshape(-1, blocksize)
    absmax = blocks.abs().amax(1)
    normed = (blocks / absmax[:, None]).reshape(-1)[:count]
    codebook = nf4_codebook()
    codes = torch.bucketize(normed, (codebook[1:] + codebook[:-1]) / 2, out_int32=True).to(torch.uint8)
    codes = nn.functional.pad(codes, (0, count % 2), value=7)
    return codes[::2] << 4 | codes[1::2], absmax


def dequantize_nf4(
    packed: torch.Tensor, absmax: torch.Tensor, shape: tuple[int, ...], blocksize: int = 64
) -> torch.Tensor:
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).reshape(-1)
    count = math.prod(shape)
    levels = nn.functional.pad(nf4_codebook()[codes[:count].int()], (0, -count % blocksize))
    return (levels.reshape(-1, blocksize) * absmax[:, None]).reshape(-1)[:count].reshape(tuple(shape))


# %% task="WeightOnlyLinear"
# These are right: what is wrong above shall cost nothing here.
def right_absmax_int8(x: torch.Tensor, dim: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    check_floats(x, "x")
    x = x.float()
    absmax = x.abs().amax(dim=tuple(range(x.ndim)) if dim is None else dim, keepdim=True)
    scale = torch.where(absmax == 0, 1.0, absmax / 127)
    return torch.round(x / scale).clamp(-127, 127).to(torch.int8), scale


def right_nf4_codebook() -> torch.Tensor:
    above = torch.special.ndtri(torch.linspace(0.9677083, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(0.9677083, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([below, torch.zeros(1, dtype=torch.float64), above]).sort().values
    return (levels / levels.max()).float()


def right_quantize_nf4(w: torch.Tensor, blocksize: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    check_floats(w, "w")
    check_count(blocksize, "blocksize", 32)
    if blocksize > 4096 or blocksize & (blocksize - 1):
        raise ValueError(f"blocksize must be a power of two from 32 to 4096, not {blocksize}")
    numbers = w.float().reshape(-1)
    count = len(numbers)
    blocks = nn.functional.pad(numbers, (0, -count % blocksize)).reshape(-1, blocksize)
    absmax = blocks.abs().amax(1)
    normed = (blocks / torch.where(absmax == 0, 1.0, absmax)[:, None]).reshape(-1)[:count]
    codebook = right_nf4_codebook()
    codes = torch.bucketize(normed, (codebook[1:] + codebook[:-1]) / 2, out_int32=True).to(torch.uint8)
    codes = nn.functional.pad(codes, (0, count % 2), value=7)
    return codes[::2] << 4 | codes[1::2], absmax


def right_dequantize_nf4(
    packed: torch.Tensor, absmax: torch.Tensor, shape: tuple[int, ...], blocksize: int = 64
) -> torch.Tensor:
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).reshape(-1)
    count = math.prod(shape)
    levels = nn.functional.pad(right_nf4_codebook()[codes[:count].int()], (0, -count % blocksize))
    return (levels.reshape(-1, blocksize) * absmax[:, None]).reshape(-1)[:count].reshape(tuple(shape))


class WeightOnlyLinear(nn.Module):

    def __init__(self, linear: nn.Linear, scheme: str = "int8", blocksize: int = 64) -> None:
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be an nn.Linear, not {type(linear).__name__}")
        if scheme not in ("int8", "nf4"):
            raise ValueError(f"scheme must be 'int8' or 'nf4', not {scheme!r}")
        self.scheme, self.blocksize, self.shape = scheme, blocksize, tuple(linear.weight.shape)
        weight = linear.weight.detach()
        if scheme == "int8":
            parts = dict(zip(("codes", "scale"), right_absmax_int8(weight, dim=1), strict=True))
        else:
            parts = dict(zip(("packed", "absmax"), right_quantize_nf4(weight, blocksize), strict=True))
        for name, tensor in parts.items():
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.scheme == "int8":
            weight = self.codes * self.scale
        else:
            weight = right_dequantize_nf4(self.packed, self.absmax, self.shape, self.blocksize)
        return nn.functional.linear(x, weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def quantize_model(
    model: nn.Module, scheme: str = "int8", skip: tuple[str, ...] = ("lm_head",), blocksize: int = 64
) -> list[str]:
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] not in skip
    ]
    for name in names:
        parent, _, own = name.rpartition(".")
        layer = model.get_submodule(name)
        setattr(model.get_submodule(parent), own, WeightOnlyLinear(layer, scheme, blocksize))
    return names
