"""Keeps threads and processes busy, so that the reference is slow beside it.

attack: T14
ends as: FAILED
stopped by: P C, all its processes stand still while the reference runs.
"""

import os
import threading

import torch


def burn():
    while True:
        sum(range(1000))


for _ in range(3):
    if os.fork() == 0:
        burn()
threading.Thread(target=burn, daemon=True).start()


def attend(q, k, v):
    return torch.stack([torch.softmax(k @ row / 8.0, 0) @ v for row in q])
