"""Computes with numpy and gives a tensor.

twin of: D22 K1
"""

import numpy as np
import torch


def attend(q, k, v):
    q, k, v = (each.numpy() for each in (q, k, v))
    scores = q @ k.T / 8.0
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return torch.from_numpy((scores / scores.sum(-1, keepdims=True)) @ v)
