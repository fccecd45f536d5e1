"""Memory of the judge's that a worker sees while it runs a block of timed calls: inputs in, results out.

Covered:
- a worker can neither shorten nor lengthen it, so reading it is safe whatever the worker does
- noise: results are filled with bytes that nobody knows before every block
- GPUs: inputs are written back from the cache to memory, so that no side finds them there; nothing is kept in it by force
Not covered: that a worker on a CPU does not look too early or write too late; whoever uses this must have it stopped.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

from autograder.checks import CheckFailed
from autograder.worker import device_memory
from autograder.worker.blocks import Layout, Slot, views

__all__ = ["DeviceMemory", "HostMemory", "is_tensor", "most_calls"]

ALIGNMENT = 64
"""Every tensor begins at a multiple of so many bytes."""
PAGE = 4096
TRIES = 5


def is_tensor(value: Any) -> bool:
    """Whether `value` is a tensor or an array, and so travels in shared memory."""
    return type(value).__module__ in ("torch", "numpy") and hasattr(value, "dtype") and hasattr(value, "shape")


def most_calls(inputs: Sequence[Any], output: Any, most_bytes: int) -> int:
    """How many calls like this one have room in `most_bytes`; at least 1."""
    values = [*inputs, *(output if isinstance(output, tuple) else [output])]
    return max(1, most_bytes // max(1, _lay_out(values).stride))


class _Memory:
    """Inputs and results of blocks of `calls` calls like `inputs`, which give something like `output`."""

    collect_s = 0.0
    """Seconds that `collect` takes when nobody else is at work."""

    def __init__(self, inputs: Sequence[Any], output: Any, calls: int) -> None:
        self.calls = calls
        self._single = not isinstance(output, tuple)
        results = () if output is None else (output,) if self._single else output
        self._layouts = [_lay_out(inputs), _lay_out(results)]
        if None in self._layouts[1].slots:
            raise RuntimeError("`output` must give a tensor or a tuple of tensors.")
        self.sizes = [max(1, -(-each.stride * calls // PAGE)) * PAGE for each in self._layouts]
        self._inputs: list[list[Any]] = []
        self._results: list[list[Any]] = []

    def message(self) -> list[Any]:
        """The layouts, as the worker's `ready` takes them."""
        listed = [[[slot and list(slot) for slot in each.slots], each.stride] for each in self._layouts]
        return [listed[0], listed[1] if self._layouts[1].slots else None, self._single]

    def share(self) -> list[_Descriptor]:
        """What goes with the message `share`."""
        return []

    def fill(self, inputs: Sequence[Sequence[Any]], rng: random.Random) -> None:
        """Write noise in place of the results, and the inputs of calls from the first one on."""
        self._make_noise(rng)
        for call, values in enumerate(inputs):
            self.write(call, values)

    def write(self, call: int, values: Sequence[Any]) -> None:
        """Write the inputs of one call."""
        for place, value in zip(self._inputs[call], values, strict=True):
            if place is None:
                continue
            if type(value) is not type(place) or value.shape != place.shape or value.dtype != place.dtype:
                raise RuntimeError("The inputs of all calls of a check must have the same shapes and dtypes.")
            if type(value).__module__ == "numpy":
                place[...] = value
            else:
                place.copy_(value)

    @contextlib.contextmanager
    def shown(self) -> Iterator[list[_Descriptor]]:
        """What goes with the message `go`."""
        yield []

    def collect(self, calls: Sequence[int]) -> None:
        """While the clock runs: take what must be taken before it stops."""

    def results(self, calls: Sequence[int]) -> list[Any]:
        """What the worker left for `calls`. Raises `CheckFailed` where it left the result of any call as it was."""
        for call, places in enumerate(self._results):
            if self._is_noise(call * self._layouts[1].stride, places):
                raise CheckFailed("The result of a timed call was not there when your code had answered.")
        found = [self._copies(call) for call in calls]
        return [each[0] if self._single else tuple(each) for each in found]

    def close(self) -> None:
        """Give it back. For memory of a CPU Python does that."""

    def _copies(self, call: int) -> list[Any]:
        return [each.copy() if type(each).__module__ == "numpy" else each.clone() for each in self._results[call]]

    def _make_noise(self, rng: random.Random) -> None:
        raise NotImplementedError

    def _is_noise(self, start: int, places: Sequence[Any]) -> bool:
        raise NotImplementedError


class HostMemory(_Memory):
    """Memory of the CPU: two sealed memory files, mapped here and in the worker for as long as they are used."""

    def __init__(self, inputs: Sequence[Any], output: Any, calls: int) -> None:
        import fcntl  # this module must be importable on Windows

        import numpy

        super().__init__(inputs, output, calls)
        self._files = []
        buffers = []
        for size in self.sizes:
            file = os.memfd_create("block", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            self._files.append(_Descriptor(file))
            os.ftruncate(file, size)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            buffers.append(mmap.mmap(file, size))
        self._inputs, self._results = (views(b, each, calls) for b, each in zip(buffers, self._layouts, strict=True))
        self._bytes = numpy.frombuffer(buffers[1], numpy.uint8)
        self._noise = numpy.empty(0, numpy.uint8)

    def share(self) -> list[_Descriptor]:
        return self._files

    def _make_noise(self, rng: random.Random) -> None:
        import numpy

        if self._results[0]:
            page = numpy.frombuffer(rng.randbytes(PAGE), numpy.uint8)
            self._noise = numpy.tile(page, len(self._bytes) // PAGE)
            self._bytes[:] = self._noise

    def _is_noise(self, start: int, places: Sequence[Any]) -> bool:
        ends = slice(start, start + self._layouts[1].stride)
        return bool(places) and bool((self._bytes[ends] == self._noise[ends]).all())


class DeviceMemory(_Memory):
    """Memory of the current NVIDIA GPU: new for every block, and the worker's only from `go` on."""

    def __init__(self, inputs: Sequence[Any], output: Any, calls: int) -> None:
        import torch

        super().__init__(inputs, output, calls)
        self._windows = [device_memory.Window(size) for size in self.sizes]
        self._allocations: list[device_memory.Allocation] = []
        self._kept: dict[int, list[Any]] = {}
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._flush = torch.empty(2 * cache + 1, dtype=torch.uint8, device="cuda")

    def fill(self, inputs: Sequence[Sequence[Any]], rng: random.Random) -> None:
        import torch

        old, self._allocations = self._allocations, [device_memory.Allocation.create(size) for size in self.sizes]
        for window, allocation in zip(self._windows, self._allocations, strict=True):
            window.map(allocation)
        for allocation in old:
            allocation.close()
        if not self._inputs:  # the addresses stay, so the views do
            tensors = [window.tensor()[0] for window in self._windows]
            self._inputs, self._results = (
                views(tensor, each, self.calls) for tensor, each in zip(tensors, self._layouts, strict=True)
            )
            self._bytes = tensors[1]
            self._measure_collect()
        super().fill(inputs, rng)
        device_memory.reset_persisting_cache()
        self._flush.zero_()
        torch.cuda.synchronize()

    @contextlib.contextmanager
    def shown(self) -> Iterator[list[_Descriptor]]:
        yield [_Descriptor(allocation.descriptor()) for allocation in self._allocations]

    def collect(self, calls: Sequence[int]) -> None:
        import torch

        self._kept = {call: self._copies(call) for call in calls}
        torch.cuda.synchronize()

    def results(self, calls: Sequence[int]) -> list[Any]:
        super().results(())
        return [self._kept[call][0] if self._single else tuple(self._kept[call]) for call in calls]

    def close(self) -> None:
        self._inputs, self._results, self._kept = [], [], {}
        for window in self._windows:
            window.close()
        for allocation in self._allocations:
            allocation.close()

    def _measure_collect(self) -> None:
        times = []
        for _ in range(TRIES):
            began = time.perf_counter()
            self.collect(range(max(1, math.ceil(self.calls / 5))))
            times.append(time.perf_counter() - began)
        self.collect_s = min(times)

    def _make_noise(self, rng: random.Random) -> None:
        import torch

        page = torch.frombuffer(bytearray(rng.randbytes(PAGE)), dtype=torch.uint8).cuda()
        self._noise = page.repeat(len(self._bytes) // PAGE)
        self._bytes.copy_(self._noise)

    def _is_noise(self, start: int, places: Sequence[Any]) -> bool:
        import torch

        ends = slice(start, start + self._layouts[1].stride)
        return bool(places) and torch.equal(self._bytes[ends], self._noise[ends])


class _Descriptor:
    """An open descriptor, closed with the object."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number

    def __del__(self) -> None:
        os.close(self._number)


def _lay_out(values: Sequence[Any]) -> Layout:
    """Places for the tensors among `values`, one after the other. Raises `RuntimeError` for one that has none."""
    slots: list[Slot | None] = []
    end = 0
    for value in values:
        if not is_tensor(value):
            slots.append(None)
            continue
        size = math.prod(value.shape) * value.dtype.itemsize
        if not size:
            raise RuntimeError("A tensor without elements cannot be an input or a result of a timed call.")
        slots.append(Slot(type(value).__module__, str(value.dtype).removeprefix("torch."), tuple(value.shape), end))
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return Layout(tuple(slots), end)
