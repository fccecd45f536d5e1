"""Computes in bfloat16 and gives float32.

attack: D18 D20
ends as: FAILED
stopped by: O, the error that is allowed is below that of bfloat16.
"""

import torch


def attend(q, k, v):
    q, k, v = (each.bfloat16() for each in (q, k, v))
    return (torch.softmax(q @ k.T / 8.0, -1) @ v).float()
