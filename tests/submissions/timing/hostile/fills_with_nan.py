"""Looks for tensors like the result in its process, fills them with NaN and gives NaN.

attack: D10 D11 D13
ends as: FAILED
stopped by: P O, expected values never come into the worker, and NaN equals nothing.
"""

import gc

import torch


def attend(q, k, v):
    for each in gc.get_objects():
        if type(each) is torch.Tensor and each.shape == q.shape:
            each.fill_(float("nan"))
    return torch.full_like(q, float("nan"))
