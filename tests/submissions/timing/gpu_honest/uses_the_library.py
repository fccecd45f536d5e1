"""Calls torch's own attention.

twin of: D23
"""

import torch


def attend(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], scale=0.125)[0]
