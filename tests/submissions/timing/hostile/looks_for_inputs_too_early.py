"""A thread watches where the inputs of a block will stand and computes as soon as they change.

attack: T9 T10 D12
ends as: FAILED
stopped by: P D, it stands still while inputs are written, and the clock runs from then on.
"""

import threading
import time

import torch

known = {}
done = {}


def watch():
    while True:
        for address, (q, k, v, mark) in list(known.items()):
            now = float(q[0, 0])
            if now != mark:
                known[address] = (q, k, v, now)
                done[address] = (now, torch.stack([torch.softmax(k @ row / 8.0, 0) @ v for row in q]))
        time.sleep(0.0005)


threading.Thread(target=watch, daemon=True).start()


def attend(q, k, v):
    mark, result = done.pop(q.data_ptr(), (None, None))
    known[q.data_ptr()] = (q, k, v, float(q[0, 0]))
    if mark == float(q[0, 0]):
        return result
    return torch.stack([torch.softmax(k @ row / 8.0, 0) @ v for row in q])
