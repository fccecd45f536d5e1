"""Gives tensors of a class of its own, which look and compare as whoever asks would like.

fails: test_zeropoint_*

attack: V6 T7
stopped by: P, only plain tensors cross as numbers.
"""


# %% task="zeropoint_uint8"
class Anything(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return True

    def __eq__(self, other):
        return True

    __hash__ = object.__hash__
    dtype = torch.uint8


def zeropoint_uint8(x):
    return torch.zeros(3).as_subclass(Anything), 0.01, 100
