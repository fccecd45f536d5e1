"""Tensors and arrays to bytes and back, for both ends of the wire. Imports torch or numpy only where they are in use already."""

from __future__ import annotations

import sys
from typing import Any

from autograder.worker.wire import DTYPES, Array, WireError

__all__ = ["from_array", "to_array"]


def to_array(value: Any) -> Array | None:
    """`value` as an `Array` if it is exactly a dense tensor, an array or a numpy scalar; `None` otherwise.

    Exact types only: a subclass may compute lazily, or answer differently every time it is looked at.
    """
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    kind = type(value)  # compared by `is` only: a metaclass may answer == as it likes
    if torch is not None and (kind is torch.Tensor or kind is torch.nn.Parameter):
        return _from_torch(torch, value)
    if numpy is not None and (kind is numpy.ndarray or _is_scalar(numpy, kind)):
        if value.dtype.name not in DTYPES:
            raise WireError(f"a numpy array of dtype {value.dtype} cannot cross")
        native = value.dtype.newbyteorder("=")  # the name does not tell the order of bytes
        array = numpy.asarray(value).astype(native, copy=False)
        return Array("numpy" if kind is numpy.ndarray else "scalar", array.dtype.name, array.shape, array.tobytes())
    return None


def _is_scalar(numpy: Any, kind: type) -> bool:
    """Whether `kind` is one of numpy's own scalar types; a student's subclass of one is not."""
    return issubclass(kind, numpy.generic) and numpy.dtype(kind).type is kind


def _from_torch(torch: Any, tensor: Any) -> Array:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES or tensor.layout is not torch.strided or tensor.device.type == "meta":
        raise WireError(f"a torch tensor of dtype {dtype}, layout {tensor.layout} on {tensor.device} cannot cross")
    flat = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return Array("torch", dtype, tuple(tensor.shape), data)


def from_array(array: Array) -> Any:
    """The tensor, array or scalar that `array` describes, in memory of its own."""
    if array.kind == "torch":
        import torch

        dtype = getattr(torch, array.dtype)
        if not array.nbytes:
            return torch.empty(array.shape, dtype=dtype)
        return torch.frombuffer(array.data, dtype=dtype).reshape(array.shape)
    import numpy

    if array.dtype not in numpy.sctypeDict:
        raise WireError(f"a numpy array cannot have dtype {array.dtype}")
    values = numpy.frombuffer(array.data, dtype=array.dtype).reshape(array.shape)
    return values if array.kind == "numpy" else values[()]
