"""Compiles its function at the first call.

twin of: T10 T11
"""

import torch


@torch.compile
def attend(q, k, v):
    return torch.softmax(q @ k.T / 8.0, -1) @ v
