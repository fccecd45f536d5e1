"""Is slow at first, so that few calls are timed, and hopes that the rest is not looked at.

attack: T10
ends as: FAILED
stopped by: D O, warm-up and measurement are the same blocks with inputs of the same kind, all looked at.
"""

import time

import torch

calls = 0


def attend(q, k, v):
    global calls
    calls += 1
    if calls <= 3:
        time.sleep(0.05)
        return torch.softmax(q @ k.T / 8.0, -1) @ v
    return torch.empty_like(q)
