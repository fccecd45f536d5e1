"""Gives a tensor that is not contiguous, with gradients left on.

twin of: T7 T8
"""

import torch

scale = torch.nn.Parameter(torch.tensor(0.125))


def attend(q, k, v):
    return (v.T @ torch.softmax(k @ q.T * scale, 0)).T
