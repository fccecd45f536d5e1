"""Measures its own time and tells it, on stderr, with warnings.

twin of: T1 T10
"""

import sys
import time
import warnings

import torch

calls = 0


def attend(q, k, v):
    global calls
    begin = time.perf_counter()
    result = torch.softmax(q @ k.T / 8.0, -1) @ v
    calls += 1
    if calls % 10 == 1:
        warnings.warn(f"call {calls} took {time.perf_counter() - begin:.6f} s")
        print("attended", file=sys.stderr)
    return result
