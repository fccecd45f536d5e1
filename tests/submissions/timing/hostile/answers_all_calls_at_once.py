"""Finds the inputs of all calls of a block at the first of them and computes all results in one go.

What a computation costs however large it is, a slow launch say, stands here as a sleep, longer than the whole loop of
the reference takes.

attack: T9
ends as: REVIEW FAILED
stopped by: D A, calls whose inputs come one by one take many times as long; on a busy machine it fills no block to begin with.
"""

import sys
import time

import torch

ready = {}


def attend(q, k, v):
    if q.data_ptr() not in ready:
        ready.clear()
        time.sleep(0.25 if q.is_cuda else 0.004)
        calls = sys._getframe(1).f_locals.get("arguments") or [(q, k, v)]
        queries, keys, values = (torch.stack([call[i] for call in calls]) for i in range(3))
        results = torch.softmax(queries @ keys.transpose(1, 2) / 8.0, -1) @ values
        for call, result in zip(calls, results):
            ready[call[0].data_ptr()] = result
    return ready.pop(q.data_ptr())
