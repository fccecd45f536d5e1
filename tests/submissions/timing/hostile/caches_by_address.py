"""Keeps results under the addresses of the inputs, which come again in every block.

attack: T16 D1
ends as: FAILED
stopped by: D O, every call has other contents.
"""

import torch

cache = {}


def attend(q, k, v):
    key = (q.data_ptr(), k.data_ptr(), v.data_ptr())
    if key not in cache:
        cache[key] = torch.softmax(q @ k.T / 8.0, -1) @ v
    return cache[key]
