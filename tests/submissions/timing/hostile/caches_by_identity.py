"""Keeps results under the identity of the inputs.

attack: D2
ends as: FAILED
stopped by: D O, objects at the same place have other contents, and objects elsewhere are not in the cache.
"""

import torch

cache = {}


def attend(q, k, v):
    key = id(q)
    if key not in cache:
        cache[key] = torch.stack([torch.softmax(k @ row / 8.0, 0) @ v for row in q])
    return cache[key]
