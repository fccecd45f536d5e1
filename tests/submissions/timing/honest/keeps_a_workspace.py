"""Allocates what it needs once for each shape and uses it again.

twin of: D3 D7
"""

import torch

spaces = {}


def attend(q, k, v):
    key = (q.shape, k.shape)
    if key not in spaces:
        spaces[key] = (q.new_empty(len(q), len(k)), torch.empty_like(q))
    scores, result = spaces[key]
    torch.matmul(q, k.T, out=scores)
    torch.softmax(scores.div_(8.0), -1, out=scores)
    return torch.matmul(scores, v, out=result)
