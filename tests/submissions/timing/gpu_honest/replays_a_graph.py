"""Copies its inputs to where a recorded CUDA graph reads them, and the result from where it writes it.

twin of: T16
"""

import torch

graphs = {}


def compute(q, k, v):
    return torch.softmax(q @ k.T / 8.0, -1) @ v


def attend(*inputs):
    key = tuple(each.shape for each in inputs)
    if key not in graphs:
        own = [each.clone() for each in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                compute(*own)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = compute(*own)
        graphs[key] = (graph, own, result)
    graph, own, result = graphs[key]
    for place, each in zip(own, inputs):
        place.copy_(each)
    graph.replay()
    return result.clone()
