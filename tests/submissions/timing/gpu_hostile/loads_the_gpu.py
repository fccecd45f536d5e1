"""Is fast, and leaves long work behind that keeps the GPU busy while the reference runs.

attack: T14
ends as: FAILED REVIEW INCONCLUSIVE
stopped by: A, the reference is timed alone before and after.
"""

import torch

stream = torch.cuda.Stream()
torch.cuda.synchronize = lambda *_, **__: None
calls = 0


def attend(q, k, v):
    global calls
    result = torch.softmax(q @ k.T / 8.0, -1) @ v
    calls += 1
    if calls % 50 == 0:
        with torch.cuda.stream(stream):
            big = torch.empty(1 << 28, device=q.device)
            for _ in range(40):
                big.mul_(1.0)
    return result
