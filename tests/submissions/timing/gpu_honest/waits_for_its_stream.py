"""Computes on a stream of its own that waits for the current one, and is waited for.

twin of: T5
"""

import torch

stream = torch.cuda.Stream()


def attend(q, k, v):
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        result = torch.softmax(q @ k.T / 8.0, -1) @ v
    current.wait_stream(stream)
    result.record_stream(current)
    return result
