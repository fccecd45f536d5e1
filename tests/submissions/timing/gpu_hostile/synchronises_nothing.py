"""Writes results into their place from a stream of its own, with every way of waiting switched off.

attack: T1 T5 T15
ends as: FAILED
stopped by: P O, the clock stops when the judge has copied results: that waits for the work, or meets noise.
"""

import sys

import torch

stream = torch.cuda.Stream()
torch.cuda.synchronize = torch.cuda.Stream.synchronize = torch.cuda.Event.synchronize = lambda *_, **__: None


def attend(q, k, v):
    place = sys._getframe(1).f_locals.get("place") or [torch.empty_like(q)]
    with torch.cuda.stream(stream):
        place[0].copy_(torch.stack([torch.softmax(k @ row / 8.0, 0) @ v for row in q]))
    return place[0]
