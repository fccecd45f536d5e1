"""Starts a process that waits, and a thread that does a little from time to time.

twin of: T14 T6
"""

import os
import threading
import time

import torch

if os.fork() == 0:
    time.sleep(1000)
    os._exit(0)


def tick():
    while True:
        time.sleep(0.02)


threading.Thread(target=tick, daemon=True).start()


def attend(q, k, v):
    return torch.softmax(q @ k.T / 8.0, -1) @ v
