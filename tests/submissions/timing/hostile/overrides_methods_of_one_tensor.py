"""Gives a plain tensor whose own `detach` and `copy_` do the work, hoping that the checker calls them later.

attack: T8
ends as: FAILED
stopped by: P O, results are copied while the clock runs, by the worker, and compared as bytes.
"""

import torch


def attend(q, k, v):
    result = torch.empty_like(q)
    result.detach = lambda: torch.stack([torch.softmax(k @ row / 8.0, 0) @ v for row in q])
    result.double = result.cpu = result.numpy = result.detach
    return result
