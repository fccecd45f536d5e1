"""Runs itself once when it is loaded, and differs in its first call.

twin of: T10 T11
"""

import torch

first = True


def attend(q, k, v):
    global first
    if first:
        first = False
        torch.softmax(q @ k.T / 8.0, -1)
    return torch.softmax(q @ k.T / 8.0, -1) @ v


attend(*(torch.randn(8, 64) for _ in range(3)))
