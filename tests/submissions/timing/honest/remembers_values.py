"""Keeps the last inputs as they are, compares all of them, and computes anew if they differ.

twin of: D1 D2 D3
"""

import torch

last = []


def attend(q, k, v):
    if last and all(torch.equal(old, new) for old, new in zip(last[0], (q, k, v))):
        return last[1]
    last[:] = (q, k, v), torch.softmax(q @ k.T / 8.0, -1) @ v
    return last[1]
