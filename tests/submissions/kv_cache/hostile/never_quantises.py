"""Keeps all keys and values in fp32 and gives them back unharmed; its state() makes codes for whoever looks.

fails: test_quantized_state_is_packed

attack: K1 D18
stopped by: D, what keys() gives is compared with what the codes of state() stand for.
"""

# %% helpers="helpers"
# A codec for show.
import torch


def shown(x, bits, size):
    groups = x.unflatten(-1, (x.shape[-1] // size, size))
    low, most = groups.amin(-1), 2**bits - 1
    scales, minima = ((groups.amax(-1) - low) / most).half(), low.half()
    steps = scales.float()[..., None]
    codes = ((groups - minima.float()[..., None]) / steps.where(steps > 0, torch.inf)).round().clamp(0, most)
    codes = codes.flatten(-2).long().unflatten(-1, (-1, 8 // bits))
    packed = (codes << torch.arange(8 - bits, -1, -bits)).sum(-1).to(torch.uint8)
    return {"codes": packed, "scales": scales, "minima": minima}


# %% task="QuantizedKVLayer"
class QuantizedKVLayer:
    def __init__(self, n_kv_heads, head_dim, bits, group_size, residual_length):
        AttentionLayer(n_kv_heads, n_kv_heads, head_dim, quantization=Quantization(bits, group_size))
        check_count(residual_length, "residual_length", 1)
        self.kv = torch.empty(2, 0, n_kv_heads, head_dim)
        self.bits, self.size, self.residual = bits, group_size, residual_length

    def append(self, k, v):
        self.kv = torch.cat([self.kv, torch.stack([k, v])], 1)

    def keys(self):
        return self.kv[0]

    def values(self):
        return self.kv[1]

    def state(self):
        state, ready = {}, self.kv.shape[1] // self.residual * self.residual
        for name, x in zip(("key", "value"), self.kv):
            parts = shown(x[:ready], self.bits, self.size) | {"residual": x[ready:]}
            state |= {f"{name}_{part}": tensor for part, tensor in parts.items()}
        return state

    def num_bytes(self):
        return sum(tensor.nbytes for tensor in self.state().values())
