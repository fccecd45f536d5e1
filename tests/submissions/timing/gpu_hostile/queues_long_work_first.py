"""Answers while its result waits in a queue behind half a second of idling, on another stream.

attack: T5 T6 T15
ends as: FAILED
stopped by: O, the judge's copy waits for it, or meets noise.
"""

import sys

import torch

stream = torch.cuda.Stream()
torch.cuda.synchronize = lambda *_, **__: None


def attend(q, k, v):
    place = sys._getframe(1).f_locals.get("place") or [torch.empty_like(q)]
    with torch.cuda.stream(stream):
        torch.cuda._sleep(500_000_000)
        place[0].copy_(torch.softmax(q @ k.T / 8.0, -1) @ v)
    return place[0]
