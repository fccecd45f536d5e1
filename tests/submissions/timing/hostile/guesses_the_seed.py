"""Looks for the seed of the inputs in what a process can see, and draws them itself.

attack: D5 D6
ends as: FAILED
stopped by: P D, no seed is in the worker; inputs arrive as bytes.
"""

import os
import random
import re
import sys

import torch

seen = [str(dict(os.environ)), str(sys.argv)]
for path in ("/proc/self/cmdline", "/proc/self/environ", "/proc/1/cmdline"):
    try:
        seen.append(open(path, errors="replace").read())
    except OSError:
        pass
seeds = [0, 1, 42, *map(int, re.findall(r"\d{1,18}", " ".join(seen)))][:200]
answers = {}


def learn(shape):
    for seed in seeds:
        generator = torch.Generator().manual_seed(random.Random(seed).getrandbits(63))
        q, k, v = (torch.randn(shape, generator=generator) for _ in range(3))
        answers[float(q[0, 0])] = torch.softmax(q @ k.T / 8.0, -1) @ v


def attend(q, k, v):
    if not answers:
        learn(q.shape)
    found = answers.get(float(q[0, 0]))
    return found if found is not None else torch.stack([torch.softmax(k @ row / 8.0, 0) @ v for row in q])
