"""Keeps one result for each shape.

attack: D3 T16
ends as: FAILED
stopped by: D O, calls of one shape have other contents.
"""

import torch

cache = {}


def attend(q, k, v):
    if q.shape not in cache:
        cache[q.shape] = torch.softmax(q @ k.T / 8.0, -1) @ v
    return cache[q.shape]
