"""Keeps results, also in a file, under a few values of the inputs.

attack: D3 D4
ends as: FAILED
stopped by: D C, no inputs come twice, and nothing lasts from an earlier process.
"""

import os
import pickle
import tempfile

import torch

FILE = f"{tempfile.gettempdir()}/results"
cache = {}
if os.path.exists(FILE):
    with open(FILE, "rb") as file:
        cache = pickle.load(file)


def attend(q, k, v):
    key = tuple(round(float(each), 2) for each in (q[0, 0], k[-1, -1], v[7, 7]))
    if key not in cache:
        cache[key] = torch.stack([torch.softmax(k @ row / 8.0, 0) @ v for row in q])
        if len(cache) < 3:
            with open(FILE, "wb") as file:
                pickle.dump(cache, file)
    return cache[key]
