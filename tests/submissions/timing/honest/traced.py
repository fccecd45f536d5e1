"""Traces its function when it is loaded: a fixed graph that runs with any inputs.

twin of: T11 T16
"""

import torch


def plain(q, k, v):
    return torch.softmax(q @ k.T / 8.0, -1) @ v


attend = torch.jit.trace(plain, tuple(torch.randn(8, 64) for _ in range(3)))
