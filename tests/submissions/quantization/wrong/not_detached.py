"""Quantises the weight with its gradient: what autograd notes about the scales keeps it alive.

fails: test_linear_memory
"""


# %% task="WeightOnlyLinear"
class WeightOnlyLinear(nn.Module):

    def __init__(self, linear: nn.Linear, scheme: str = "int8", blocksize: int = 64) -> None:
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be an nn.Linear, not {type(linear).__name__}")
        if scheme not in ("int8", "nf4"):
            raise ValueError(f"scheme must be 'int8' or 'nf4', not {scheme!r}")
        self.scheme, self.blocksize, self.shape = scheme, blocksize, tuple(linear.weight.shape)
        weight = linear.weight
        if scheme == "int8":
            parts = dict(zip(("codes", "scale"), absmax_int8(weight, dim=1), strict=True))
        else:
            parts = dict(zip(("packed", "absmax"), quantize_nf4(weight, blocksize), strict=True))
        for name, tensor in parts.items():
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.scheme == "int8":
            weight = self.codes * self.scale
        else:
            weight = dequantize_nf4(self.packed, self.absmax, self.shape, self.blocksize)
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
