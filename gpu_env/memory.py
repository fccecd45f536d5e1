"""Bytes that a process, the CUDA allocator or a model really holds.

`tensor_bytes` follows tensors to their storages and counts each byte once, so views, tied weights and slices that keep
a larger storage alive come out as what they cost. It finds quantisation state that hangs on a parameter as an attribute
(bitsandbytes' absmax, code book and nested state), which transformers' `get_memory_footprint` leaves out.

Not covered: gradients; memory behind C++ objects (TorchScript's packed parameters, oneDNN's own layouts) and in closures;
rounding by allocators (CUDA's rounds every allocation up to 512 bytes); bytes and mmaps that are no tensor.
"""

from __future__ import annotations

import os
import sys
import types
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class CudaMemory:
    """What torch's CUDA allocator of this process holds on one device, in bytes.

    `allocated` is in use by tensors, `reserved` was taken from the device (and is kept for reuse), `peak_...` are the
    highest values since `reset_cuda_peak`. The CUDA context itself, some hundred MB, is in none of them.
    """

    allocated: int
    reserved: int
    peak_allocated: int
    peak_reserved: int


def cuda(device: int | None = None) -> CudaMemory:
    """The CUDA allocator's figures for a device (None: the current one); all zero where CUDA is not in use."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return CudaMemory(0, 0, 0, 0)
    return CudaMemory(
        torch.cuda.memory_allocated(device),
        torch.cuda.memory_reserved(device),
        torch.cuda.max_memory_allocated(device),
        torch.cuda.max_memory_reserved(device),
    )


def reset_cuda_peak(device: int | None = None) -> None:
    """Let the peaks of `cuda` start again from what is held now."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats(device)


def resident(pid: int | None = None) -> int:
    """Bytes of a process (None: this one) that lie in RAM, pages shared with other processes included.

    Raises:
        ProcessLookupError: there is no such process, or it has ended.
    """
    try:
        found = int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        found = 0
    if not found:  # what an ended process that nobody has waited for holds
        raise ProcessLookupError(f"there is no process {pid}, or it has ended")
    return found


def peak_resident(pid: int | None = None) -> int | None:
    """The most that `resident` ever was, kept by the kernel; None where the kernel does not tell (other than Linux).

    A process may set its own peak back (Linux: /proc/self/clear_refs), so of one that runs foreign code it is no proof.

    Raises:
        ProcessLookupError: there is no such process, or it has ended.
    """
    if not sys.platform.startswith("linux"):
        resident(pid)
        return None
    number = os.getpid() if pid is None else pid
    try:
        status = Path(f"/proc/{number}/status").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"there is no process {number}, or it has ended")


def tensor_bytes(held: object) -> int:
    """Bytes of all tensors and arrays that can be reached from an object, each byte once.

    Followed are dictionaries, lists, tuples, sets and the attributes of every object on the way: modules, caches,
    dataclasses, parameters with state of their own. Tensors on the meta device hold nothing and count nothing.
    """
    spans: dict[str, set[tuple[int, int]]] = {}
    for device, start, end in _spans(held):
        spans.setdefault(device, set()).add((start, end))
    total = 0
    for ranges in spans.values():
        reached = 0
        for start, end in sorted(ranges):  # storages may overlap, as those made from views of one array do
            total += max(0, end - max(start, reached))
            reached = max(reached, end)
    return total


def _spans(held: object) -> Iterator[tuple[str, int, int]]:
    """The memory of every tensor in reach, as (device, first address, address after the last)."""
    torch: Any = sys.modules.get("torch")
    numpy: Any = sys.modules.get("numpy")
    waiting: list[Any] = [held]
    seen: dict[int, object] = {}  # keeps what it names alive, so that no id is used twice
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, _CLOSED):
            continue
        seen[id(one)] = one
        if torch is not None and isinstance(one, torch.Tensor):
            parts = _parts(torch, one)
            waiting += parts
            if not parts:
                storage = one.untyped_storage()
                if storage.device.type != "meta":
                    yield str(storage.device), storage.data_ptr(), storage.data_ptr() + storage.nbytes()
        elif numpy is not None and isinstance(one, numpy.ndarray):
            while isinstance(one.base, numpy.ndarray):
                one = one.base
            yield "cpu", *numpy.lib.array_utils.byte_bounds(one)
        waiting += _children(one)


_CLOSED = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
)
"""Without tensors, or leading to half of the process."""


def _parts(torch: Any, tensor: Any) -> list[Any]:
    """The tensors that one consists of, for a sparse tensor or a wrapper; none for a tensor with a storage of its own."""
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if hasattr(tensor, "__tensor_flatten__"):  # torch's protocol for subclasses that wrap other tensors
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return []


def _children(one: object) -> list[Any]:
    found: list[Any] = list(getattr(one, "__dict__", {}).values())
    for kind in type(one).__mro__:
        if "__slots__" in vars(kind):
            slots = (slot for slot in vars(kind).values() if isinstance(slot, types.MemberDescriptorType))
            found += [slot.__get__(one) for slot in slots if hasattr(one, slot.__name__)]
    if isinstance(one, dict):
        found += [*one.keys(), *one.values()]
    elif isinstance(one, list | tuple | set | frozenset | deque):
        found += one
    elif isinstance(one, partial):
        found += [one.func, one.args, one.keywords]
    return found
