"""Computes on a stream of its own and lets the CPU wait for it.

twin of: T5 T15
"""

import torch

stream = torch.cuda.Stream()


def attend(q, k, v):
    with torch.cuda.stream(stream):
        result = torch.softmax(q @ k.T / 8.0, -1) @ v
    stream.synchronize()
    return result
