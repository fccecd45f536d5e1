"""Sets aside a part of the L2 cache for itself.

attack: T13
ends as: FAILED
stopped by: D R, inputs are new in every block, and the judge gives the cache back and flushes it before.
"""

import ctypes

import torch

torch.zeros(1, device="cuda")
PERSISTING_L2_CACHE_SIZE = 6
refused = ctypes.CDLL("libcuda.so.1").cuCtxSetLimit(PERSISTING_L2_CACHE_SIZE, ctypes.c_size_t(16 << 20))


def attend(q, k, v):
    if refused:
        raise OSError(f"cuCtxSetLimit said {refused}")
    return torch.stack([torch.softmax(k @ row / 8.0, 0) @ v for row in q])
