"""The worker's side of timed calls: a whole block of calls in one message, tensors in memory that the judge made.

    share  device, bytes of inputs, of results        memory for blocks; for a CPU its two descriptors follow
    ready  name, calls, arguments, results, single    make the arguments of a block, before their contents are there
    go     calls, plain values                        so many calls of the block; for a GPU two descriptors follow

All calls of a block have arguments of the same shapes; each call has its own place in memory. What is not a tensor comes
with `go`, as msgpack.

Covered: an argument that the submission keeps stays as it was (the judge is asked for other memory).
Not covered: any honesty. This code runs beside the submission, which may change it: the judge takes the time, fills the
results with noise before the block, stops the worker after it, and looks at what then stands there.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import socket
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from autograder.worker import device_memory

__all__ = ["Blocks", "Layout", "Slot", "views"]


class Slot(NamedTuple):
    """A tensor's place within the memory of one call: `kind` is "torch" or "numpy", `offset` in bytes."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


class Layout(NamedTuple):
    """Where the tensors of all calls lie: those of call i at `i * stride` bytes. `None` stands for a plain value."""

    slots: tuple[Slot | None, ...]
    stride: int


class WrongResult(TypeError):
    """The function gave something other than tensors of the shapes and dtypes that are asked for."""


class Blocks:
    """The blocks of one worker. `find` gives the function of that name."""

    def __init__(self, sock: socket.socket, find: Callable[[str], Callable[..., Any]]) -> None:
        self._sock = sock
        self._find = find
        self._memory: _Host | _Device | None = None
        self._arguments: list[list[Any]] = []
        self._places: list[list[Any]] = []

    def share(self, device: str, input_bytes: int, result_bytes: int) -> None:
        """Take memory for the blocks to come."""
        self._arguments, self._places = [], []
        if self._memory is not None and not self._memory.held():
            self._memory.close()
        self._memory = None
        sizes = (input_bytes, result_bytes)
        self._memory = _Host(self._descriptors(), sizes) if device == "cpu" else _Device(sizes)

    def ready(
        self, name: str, calls: int, arguments: Sequence[Any], results: Sequence[Any] | None, single: bool
    ) -> bool:
        """Make the arguments. False if the submission still holds some of an earlier block: then other memory is needed.

        `arguments` and `results` are the fields of a `Layout`; without `results` the function's values are the answer.
        """
        assert self._memory is not None
        self._arguments, self._places = [], []
        if self._memory.held():
            return False
        self._function, self._single = self._find(name), single
        self._memory.begin()
        layout = Layout(*arguments)
        self._plain = [i for i, slot in enumerate(layout.slots) if slot is None]
        self._arguments = views(self._memory.inputs, layout, calls)
        self._places = [] if results is None else views(self._memory.results, Layout(*results), calls)
        self._memory.built()
        return True

    def go(self, calls: int, plain: bytes) -> list[Any] | None:
        """Make the next calls, leave the results; gives them, where they are not tensors."""
        assert self._memory is not None
        if isinstance(self._memory, _Device):
            self._memory.map(self._descriptors())
        arguments, self._arguments = self._arguments[:calls], self._arguments[calls:]
        places, self._places = self._places[:calls], self._places[calls:]
        if self._plain:
            for args, values in zip(arguments, msgspec.msgpack.decode(plain), strict=True):
                for index, value in zip(self._plain, values, strict=True):
                    args[index] = value
        answer = None
        if not places:
            answer = [self._function(*args) for args in arguments]
        for args, place in zip(arguments, places, strict=False):
            _put(self._function(*args), place, self._single)
        self._memory.finish()
        return answer

    def _descriptors(self) -> list[int]:
        self._sock.setblocking(True)
        _, descriptors, _, _ = socket.recv_fds(self._sock, 1, 2)
        if len(descriptors) != 2:
            raise ConnectionError(f"{len(descriptors)} descriptors came instead of 2")
        return descriptors


def _put(result: Any, places: list[Any], single: bool) -> None:
    """Copy what the function gave to where the judge will look for it."""
    results: Iterable[Any] = (result,) if single else result
    if not single and (type(result) not in (tuple, list) or len(result) != len(places)):
        raise WrongResult(f"it gave {_what(result)}, and a tuple of {len(places)} tensors is asked for")
    for part, place in zip(results, places, strict=True):
        if type(part) is not type(place) or part.shape != place.shape or part.dtype != place.dtype:
            raise WrongResult(f"it gave {_what(part)}, and {_what(place)} is asked for")
        if type(part).__module__ == "numpy":
            place[...] = part
        else:
            place.copy_(part.detach())


def _what(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"a {type(value).__name__} of shape {tuple(value.shape)} and {value.dtype}"
    return f"a value of type {type(value).__name__}"


def views(memory: Any, layout: Layout, calls: int) -> list[list[Any]]:
    """The tensors of each call, as views of `memory`: a buffer, or a tensor of bytes on a GPU."""
    slots = [None if slot is None else Slot(*slot) for slot in layout.slots]
    return [
        [None if slot is None else _view(memory, slot, call * layout.stride) for slot in slots] for call in range(calls)
    ]


def _view(memory: Any, slot: Slot, start: int) -> Any:
    shape, offset, count = tuple(slot.shape), start + slot.offset, math.prod(slot.shape)
    if slot.kind == "numpy":
        import numpy

        return numpy.frombuffer(memory, slot.dtype, count, offset).reshape(shape)
    import torch

    dtype = getattr(torch, slot.dtype)
    if isinstance(memory, torch.Tensor):
        return memory[offset : offset + count * dtype.itemsize].view(dtype).view(shape)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(shape)


class _Memory:
    """Inputs and results of a block: a buffer each, or a tensor of bytes on a GPU. Made anew for every block, so that
    whoever still refers to one of a block before can be told."""

    inputs: Any = None
    results: Any = None

    _was_held = False

    def held(self) -> bool:
        """Whether somebody beside us refers to the inputs of the block before. It stays so."""
        if self.inputs is not None:
            owner = weakref.ref(self.owner())
            self.inputs = self.results = None
            self._was_held = owner() is not None
        return self._was_held

    def close(self) -> None:
        """Give back what nobody holds. For memory of a CPU Python does that."""

    def owner(self) -> Any:
        """What every view of the inputs keeps alive."""
        raise NotImplementedError


class _Host(_Memory):
    """Memory of the CPU, mapped once: mapping it anew for each block costs more than many a call."""

    def __init__(self, descriptors: list[int], sizes: tuple[int, int]) -> None:
        both = mmap.MAP_SHARED | mmap.MAP_POPULATE  # pages are there before any clock runs
        self._maps = [mmap.mmap(fd, size, flags=both) for fd, size in zip(descriptors, sizes, strict=True)]
        for descriptor in descriptors:
            os.close(descriptor)

    def owner(self) -> Any:
        return self.inputs

    def begin(self) -> None:
        """Ready for views."""
        self.inputs, self.results = ((ctypes.c_char * len(each)).from_buffer(each) for each in self._maps)

    def built(self) -> None:
        """The memory stays where it is."""

    def finish(self) -> None:
        """A CPU has finished when the function returns."""


class _Device(_Memory):
    """Memory of a GPU. Addresses and views are made before `go`; the judge's memory is put under them after it."""

    def __init__(self, sizes: tuple[int, int]) -> None:
        self._windows = [device_memory.Window(size) for size in sizes]
        self._blanks = [device_memory.Allocation.create(size) for size in sizes]
        self._interface: Any = None

    def held(self) -> bool:
        held = super().held()
        if not held:
            for window in self._windows:
                window.unmap()
        return held

    def owner(self) -> Any:
        owner, self._interface = self._interface, None
        return owner

    def begin(self) -> None:
        """Put blank memory under the addresses, for torch asks what is there when a tensor is made."""
        for window, blank in zip(self._windows, self._blanks, strict=True):
            window.map(blank)
        (self.inputs, self._interface), (self.results, _) = (window.tensor() for window in self._windows)

    def built(self) -> None:
        for window in self._windows:
            window.unmap()

    def map(self, descriptors: list[int]) -> None:
        for window, descriptor in zip(self._windows, descriptors, strict=True):
            allocation = device_memory.Allocation.take(descriptor, window.size)
            window.map(allocation)
            allocation.close()  # the mapping keeps it
            os.close(descriptor)

    def finish(self) -> None:
        import torch

        torch.cuda.synchronize()

    def close(self) -> None:
        for window, blank in zip(self._windows, self._blanks, strict=True):
            window.close()
            blank.close()
