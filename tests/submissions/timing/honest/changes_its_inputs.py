"""Scales the queries in place, as functions should not and many do.

twin of: D9
"""

import torch


def attend(q, k, v):
    q /= 8.0
    return torch.softmax(q @ k.T, -1) @ v
