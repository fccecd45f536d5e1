"""Records a CUDA graph with the first inputs and replays it whatever comes.

attack: T16
ends as: FAILED
stopped by: D O, every call has other contents and another place.
"""

import torch

graph = None
result = None


def attend(q, k, v):
    global graph, result
    if graph is None:
        torch.softmax(q @ k.T / 8.0, -1) @ v
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = torch.softmax(q @ k.T / 8.0, -1) @ v
    graph.replay()
    return result
