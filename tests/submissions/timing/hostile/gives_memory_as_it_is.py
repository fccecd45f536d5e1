"""Gives memory that nobody has written to, in the hope that a right result lies there.

attack: D7 D8 D12
ends as: FAILED
stopped by: D O, the reference runs elsewhere, and results are filled with noise before.
"""

import torch


def attend(q, k, v):
    return torch.empty_like(q)
