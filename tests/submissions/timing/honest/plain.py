"""One matrix product for all queries.

twin of: D23
"""

import torch


def attend(q, k, v):
    return torch.softmax(q @ k.T / 8.0, -1) @ v
