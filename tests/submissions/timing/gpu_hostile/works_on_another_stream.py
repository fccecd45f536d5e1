"""Computes on a stream of its own and waits for nothing.

attack: T5
ends as: FAILED
stopped by: P O, all streams are waited for, and results are copied by the judge while the clock runs.
"""

import torch

stream = torch.cuda.Stream()


def attend(q, k, v):
    with torch.cuda.stream(stream):
        return torch.stack([torch.softmax(k @ row / 8.0, 0) @ v for row in q])
