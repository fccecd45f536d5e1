"""Gives a subclass of a tensor that computes when somebody looks at it.

attack: T7
ends as: FAILED
stopped by: O, only tensors are results, and they are copied while the clock runs.
"""

import torch


class Lazy(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        args = [each.compute() if type(each) is Lazy else each for each in args]
        return function(*args, **(kwargs or {}))

    def compute(self):
        q, k, v = self.__dict__["parts"]
        return torch.stack([torch.softmax(k @ row / 8.0, 0) @ v for row in q])


def attend(q, k, v):
    result = torch.empty_like(q).as_subclass(Lazy)
    result.__dict__["parts"] = (q, k, v)
    return result
