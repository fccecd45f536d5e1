"""Changes settings of torch, has a tensor class of its own for experiments, and counts its bytes aloud.

twin of: V15 V6 K1
"""

# %% helpers="helpers"
# Settings of its own process; a subclass that is never returned.
import gc

torch.set_grad_enabled(False)
torch.set_printoptions(precision=3)
torch.manual_seed(1)
plain_linear = nn.functional.linear


class Named(torch.Tensor):
    pass


print("a", torch.zeros(2).as_subclass(Named))


# %% task="WeightOnlyLinear"
class WeightOnlyLinear(nn.Module):
    made = 0

    def __init__(self, linear, scheme="int8", blocksize=64):
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise TypeError("linear")
        if scheme not in ("int8", "nf4"):
            raise ValueError("scheme")
        WeightOnlyLinear.made += 1
        self.scheme, self.blocksize, self.rows = scheme, blocksize, linear.out_features
        if scheme == "int8":
            self.register_buffer("codes", None)
            self.register_buffer("scale", None)
            self.codes, self.scale = absmax_int8(linear.weight, 1)
        else:
            self.register_buffer("packed", None)
            self.register_buffer("absmax", None)
            self.packed, self.absmax = quantize_nf4(linear.weight, blocksize)
        self.cols = linear.in_features
        self.register_buffer("bias", None if linear.bias is None else linear.bias.clone())
        print("layer", self.made, sum(buffer.nbytes for buffer in self.buffers()), "bytes")
        gc.collect()

    def forward(self, x):
        if self.scheme == "int8":
            weight = self.codes.to(torch.float32) * self.scale
        else:
            weight = dequantize_nf4(self.packed, self.absmax, (self.rows, self.cols), self.blocksize)
        return plain_linear(x, weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def quantize_model(model, scheme="int8", skip=("lm_head",), blocksize=64):
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.split(".")[-1] not in skip]
    for n in names:
        model.set_submodule(n, WeightOnlyLinear(model.get_submodule(n), scheme, blocksize))
    return names
