"""Frees memory after some calls, and draws random numbers.

twin of: D5 D10
"""

import gc
import random

import torch


def attend(q, k, v):
    if random.random() < 0.05:
        gc.collect(0)
    return torch.softmax(q @ k.T / 8.0, -1) @ v
