"""Computes the codebook once, and keeps results under everything that they depend on.

twin of: D3
"""

# %% helpers="helpers"
# Levels never change; they are given away as copies.
from functools import cache


@cache
def levels():
    above = torch.special.ndtri(torch.linspace(0.9677083, 0.5, 9, dtype=torch.float64)[:8])
    below = -torch.special.ndtri(torch.linspace(0.9677083, 0.5, 8, dtype=torch.float64)[:7])
    both = torch.cat([below.flip(0).sort().values, torch.zeros(1), above.flip(0)])
    return (both / both.max()).float()


@cache
def middles():
    return (levels()[1:] + levels()[:-1]) / 2


@cache
def allowed():
    return frozenset(2**power for power in range(5, 13))


# %% task="quantize_nf4"
def nf4_codebook():
    return levels().clone()


def quantize_nf4(w, blocksize=64):
    check_floats(w, "w")
    check_count(blocksize, "blocksize", 32)
    if blocksize not in allowed():
        raise ValueError("blocksize is not allowed")
    flat = w.detach().float().reshape(-1)
    blocks = nn.functional.pad(flat, (0, -len(flat) % blocksize)).view(-1, blocksize)
    absmax = blocks.abs().amax(1)
    normed = (blocks / absmax.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).reshape(-1)[: len(flat)]
    codes = torch.bucketize(normed, middles(), out_int32=True).byte()
    codes = nn.functional.pad(codes, (0, len(codes) % 2), value=7)
    return codes[::2] << 4 | codes[1::2], absmax


def dequantize_nf4(packed, absmax, shape, blocksize=64):
    codes = torch.stack([packed >> 4, packed & 15], 1).reshape(-1)[: math.prod(shape)]
    return (levels()[codes.int()] * absmax.repeat_interleave(blocksize)[: len(codes)]).reshape(shape)
