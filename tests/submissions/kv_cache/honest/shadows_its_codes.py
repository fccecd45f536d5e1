"""Keeps what it restored beside its codes, so that keys() need not decode twice, and tells it apart by a counter.

twin of: K1 D18
"""

# %% helpers="helpers"
# Codes, and a memory of what was made of them.
import torch


class Side:
    def __init__(self, heads, dim, bits, size, residual):
        self.bits, self.size, self.residual = bits, size, residual
        self.codes = torch.empty(0, heads, dim * bits // 8, dtype=torch.uint8)
        self.scales = torch.empty(0, heads, dim // size, dtype=torch.half)
        self.minima = torch.empty(0, heads, dim // size, dtype=torch.half)
        self.newest = self.decoded = torch.empty(0, heads, dim)

    def add(self, x):
        self.newest = torch.cat([self.newest, x])
        while len(self.newest) >= self.residual:
            self.quantise(self.newest[: self.residual])
            self.newest = self.newest[self.residual :]

    def quantise(self, x):
        groups = x.reshape(len(x), x.shape[1], -1, self.size)
        low, high = groups.amin(-1), groups.amax(-1)
        scales, minima = ((high - low) / (2**self.bits - 1)).half(), low.half()
        step, base = scales.float().unsqueeze(-1), minima.float().unsqueeze(-1)
        codes = torch.where(step > 0, (groups - base) / step.clamp_min(1e-30), 0.0).round().clamp(0, 2**self.bits - 1)
        self.decoded = torch.cat([self.decoded, (base + step * codes).reshape(x.shape)])  # what a reader would get
        flat = codes.reshape(len(x), x.shape[1], -1, 8 // self.bits).int()
        places = torch.tensor([2 ** (8 - self.bits * (1 + i)) for i in range(8 // self.bits)], dtype=torch.int32)
        self.codes = torch.cat([self.codes, (flat * places).sum(-1).to(torch.uint8)])
        self.scales, self.minima = torch.cat([self.scales, scales]), torch.cat([self.minima, minima])

    def everything(self):
        return torch.cat([self.decoded, self.newest])

    def parts(self):
        return {"codes": self.codes, "scales": self.scales, "minima": self.minima, "residual": self.newest}


# %% task="QuantizedKVLayer"
class QuantizedKVLayer:
    def __init__(self, n_kv_heads, head_dim, bits, group_size, residual_length):
        AttentionLayer(n_kv_heads, n_kv_heads, head_dim, quantization=Quantization(bits, group_size))
        check_count(residual_length, "residual_length", 1)
        self.sides = {name: Side(n_kv_heads, head_dim, bits, group_size, residual_length) for name in ("key", "value")}

    def append(self, k, v):
        self.sides["key"].add(k)
        self.sides["value"].add(v)

    def keys(self):
        return self.sides["key"].everything()

    def values(self):
        return self.sides["value"].everything()

    def state(self):
        return {f"{name}_{part}": x for name, side in self.sides.items() for part, x in side.parts().items()}

    def num_bytes(self):
        return sum(x.nbytes for x in self.state().values())
