"""Gives an empty tensor at once; a thread finds where results are looked for and computes them there later.

attack: T6
ends as: FAILED
stopped by: P O, the worker stands still from its answer on, and results are read after that.
"""

import sys
import threading
from queue import SimpleQueue

import torch

work = SimpleQueue()


def compute():
    while True:
        place, q, k, v = work.get()
        place.copy_(torch.stack([torch.softmax(k @ row / 8.0, 0) @ v for row in q]))


threading.Thread(target=compute, daemon=True).start()


def attend(q, k, v):
    place = sys._getframe(1).f_locals.get("place")
    if place is None:
        return torch.softmax(q @ k.T / 8.0, -1) @ v
    work.put((place[0], q, k, v))
    return torch.empty_like(q)
