"""Splits the queries over a pool of threads, which stay.

twin of: T6
"""

from concurrent.futures import ThreadPoolExecutor

import torch

pool = ThreadPoolExecutor(2)


def attend(q, k, v):
    parts = pool.map(lambda part: torch.softmax(part @ k.T / 8.0, -1) @ v, q.chunk(2))
    return torch.cat(list(parts))
