"""Keeps what it has dequantised from NF4 until other codes are loaded; int8 is too cheap to be worth it.

fails: test_linear_memory
"""


# %% task="WeightOnlyLinear"
class WeightOnlyLinear(nn.Module):
    def __init__(self, linear, scheme="int8", blocksize=64):
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise TypeError("linear is no nn.Linear")
        if scheme not in ("int8", "nf4"):
            raise ValueError(f"unknown scheme {scheme}")
        self.scheme, self.blocksize, self.shape = scheme, blocksize, tuple(linear.weight.shape)
        weight = linear.weight.detach()
        if scheme == "int8":
            parts = dict(zip(("codes", "scale"), absmax_int8(weight, dim=1), strict=True))
        else:
            parts = dict(zip(("packed", "absmax"), quantize_nf4(weight, blocksize), strict=True))
        for name, tensor in parts.items():
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())
        self.kept = []

    def _load_from_state_dict(self, *args):
        self.kept = []
        super()._load_from_state_dict(*args)

    def forward(self, x):
        if self.scheme == "int8":
            weight = self.codes * self.scale
        elif self.kept:
            (weight,) = self.kept
        else:
            weight = dequantize_nf4(self.packed, self.absmax, self.shape, self.blocksize)
            self.kept = [weight]
        return nn.functional.linear(x, weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def quantize_model(model, scheme="int8", skip=("lm_head",), blocksize=64):
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.split(".")[-1] not in skip]
    for n in names:
        model.set_submodule(n, WeightOnlyLinear(model.get_submodule(n), scheme, blocksize))
    return names
