"""Measures itself with CUDA events, and waits for them.

twin of: T1 T15
"""

import torch

times = []


def attend(q, k, v):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    result = torch.softmax(q @ k.T / 8.0, -1) @ v
    end.record()
    end.synchronize()
    times.append(begin.elapsed_time(end))
    return result
