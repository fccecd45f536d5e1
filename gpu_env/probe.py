"""How fast this machine copies and multiplies, measured with torch on the CPU or on one GPU.

A rate has a median, which is what a plain large copy or product gets here, and a best, which is what the machine has
been seen to do at all. Other load only ever slows a block down, so the best is the figure for "no run can be faster".

Not covered: other shapes of work than copying, reading, updating, filling and large matrix products; several GPUs; more
threads than torch and numpy use in this process, other cores than this process may use.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil

from gpu_env import clock, device

DTYPES = ("float32", "bfloat16", "float16")
WAYS = ("copy", "read", "update", "fill")
STEADY = 0.8
SECONDS, ROUNDS = 0.2, 10  # for each rate, at least
REST_S = 0.05
_UNKNOWN_CACHE = {2: 8 << 20, 3: 64 << 20}  # a large desktop's, where the system does not tell


class ProbeUnavailable(RuntimeError):
    """Nothing can be probed: torch is missing, or the device is not there."""


@dataclass(frozen=True)
class Rate:
    """What one kind of work got per second: the median of blocks, and the best of them."""

    median: float
    best: float

    @property
    def steady(self) -> bool:
        """Whether the median reached STEADY of the best: if not, other load was in the way most of the time."""
        return self.median >= STEADY * self.best


@dataclass(frozen=True)
class Caches:
    """Bytes of the caches in front of a device's memory: `outer` all of them, `inner` those nearer than the last level."""

    outer: int
    inner: int


class Prober:
    """Measures one device: "cpu", "cuda:0", or None for torch's current GPU and the CPU where torch has none.

    Raises:
        ProbeUnavailable: torch is not installed, or the device is not there.
    """

    def __init__(self, where: str | None = None) -> None:
        try:
            import torch
        except ImportError:
            raise ProbeUnavailable("the probe needs torch, which is not installed: pip install torch") from None
        self.torch: Any = torch
        gpus = torch.cuda.device_count()
        chosen = torch.device(where or ("cuda" if gpus else "cpu"))
        if chosen.type not in ("cpu", "cuda"):
            raise ProbeUnavailable(f"{where} cannot be probed, only the CPU and CUDA devices can")
        self.on_gpu = chosen.type == "cuda"
        if self.on_gpu and (chosen.index or 0) >= gpus:
            raise ProbeUnavailable(f"there is no {where}: torch sees {gpus} CUDA device(s)")
        if self.on_gpu and chosen.index is None:
            chosen = torch.device("cuda", torch.cuda.current_device())
        self.where = chosen

    def name(self) -> str:
        """The model of the processor or GPU."""
        return str(self.torch.cuda.get_device_name(self.where)) if self.on_gpu else device.describe().cpu

    def threads(self) -> int:
        """torch's threads on the CPU; 0 for a GPU."""
        return 0 if self.on_gpu else int(self.torch.get_num_threads())

    def dtypes(self) -> tuple[str, ...]:
        """The types whose products are measured."""
        return (*DTYPES, "tfloat32") if self.on_gpu else DTYPES

    def key(self) -> dict[str, object]:
        """What the rates depend on, besides the boot: the device, and on the CPU the cores and threads in use."""
        key: dict[str, object] = {"torch": str(self.torch.__version__)}
        if self.on_gpu:
            about = self.torch.cuda.get_device_properties(self.where)
            return {**key, "device": str(getattr(about, "uuid", f"{about.name} {self.where.index}"))}
        cores = sorted(getattr(os, "sched_getaffinity", lambda pid: ())(0))
        return {**key, "device": "cpu", "cores": cores, "threads": self.threads()}

    def close(self) -> None:
        """Give the buffers back to the GPU, which torch would keep for reuse."""
        if self.on_gpu:
            self.torch.cuda.empty_cache()

    def caches(self) -> Caches:
        """The caches of the device; on the CPU those that the cores of this process use."""
        if self.on_gpu:
            # what the multiprocessors keep for themselves is a good half of the L2 on an H100
            outer = int(self.torch.cuda.get_device_properties(self.where).L2_cache_size)
            return Caches(outer, outer // 2)
        levels = device.caches() or _UNKNOWN_CACHE
        data = [size for level, size in levels.items() if level > 1] or list(levels.values())
        return Caches(sum(data), sum(data[:-1]) or data[-1] // 8)

    def memory(self, ways: Collection[str] = WAYS) -> dict[str, Rate]:
        """Bytes per second of going through memory in each of the ways, with buffers far larger than the caches.

        "copy" counts bytes read and written together, as does "update" (adding 1 in place); "read" (a sum) and "fill"
        touch each byte once. On a CPU an update beats a copy by half, for a copy also reads the lines it overwrites.
        """
        source, target = self._buffers()
        calls: dict[str, tuple[Callable[[], object], int]] = {
            "copy": (lambda: target.copy_(source), 2),
            "read": (lambda: source.sum(), 1),
            "update": (lambda: target.add_(1), 2),
            "fill": (lambda: target.fill_(1), 1),
        }
        return {way: self._rate(calls[way][0], calls[way][1] * source.nbytes) for way in ways}

    def cached(self) -> Rate:
        """Bytes per second of updating in place what fits well into the last-level cache."""
        torch = self.torch
        buffer = torch.ones(self.caches().outer // 4 // 4, device=self.where)
        if not self.on_gpu:
            return self._rate(lambda: buffer.add_(1), 2 * buffer.nbytes)
        buffer.add_(1)
        graph, kernels = torch.cuda.CUDAGraph(), 100  # a launch costs more than the kernel, so many are launched as one
        with torch.cuda.device(self.where), torch.cuda.graph(graph):
            for _ in range(kernels):
                buffer.add_(1)
        return self._rate(graph.replay, kernels * 2 * buffer.nbytes)

    def gemm(self, dtype: str) -> tuple[Rate, float]:
        """FLOP/s of square matrix products, 2n³ for each, in a type such as "bfloat16": a plain large one, and the best.

        "tfloat32" is float32 with TF32 tensor cores allowed. Tried for the best are two sizes, a transposed operand and,
        on the CPU, a 1x1 convolution: oneDNN computes that, where `torch.mm` asks MKL. The numbers are random, for a GPU
        multiplies zeros faster: they need less power. In float32 numpy is asked too: its library may be a faster one.
        """
        torch = self.torch
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if dtype == "tfloat32" else "highest")
        try:
            with torch.inference_mode():
                a, b = self._matrices(dtype)
                peaks = [
                    self._peak(way, 2 * size**3) for size in (len(a), len(a) // 2) for way in self._products(a, b, size)
                ]
                plain = self._rate(partial(torch.mm, a, b), 2 * len(a) ** 3)
                return plain, max(plain.best, *peaks)
        finally:
            torch.set_float32_matmul_precision(before)

    def _products(self, a: Any, b: Any, size: int) -> list[Callable[[], object]]:
        """Ways to multiply square parts of two matrices."""
        torch = self.torch
        a, b = (whole[:size, :size].contiguous() for whole in (a, b))
        ways: list[Callable[[], object]] = [partial(torch.mm, a, b), partial(torch.mm, a, b.t())]
        if not self.on_gpu:
            pixels, kernel = a.view(1, size, size // 32, 32), b.view(size, size, 1, 1)
            ways.append(partial(torch.nn.functional.conv2d, pixels, kernel))
            if a.dtype is torch.float32:
                with contextlib.suppress(ImportError):
                    import numpy

                    ways.append(partial(numpy.matmul, a.numpy(), b.numpy()))
        return ways

    def _matrices(self, dtype: str) -> tuple[Any, Any]:
        """Random square matrices, doubled in size until one product takes 4 ms (some types are very slow on some CPUs)."""
        torch = self.torch
        kind = torch.float32 if dtype == "tfloat32" else getattr(torch, dtype)
        n = 256
        while True:
            a, b = (torch.randn(n, n, device=self.where).to(kind) for _ in range(2))
            run = self._run(partial(torch.mm, a, b))
            if n == 8192 or min(clock.time_block(run, 1).seconds for _ in range(4)) >= 0.004:
                return a, b
            n *= 2

    def _buffers(self) -> list[Any]:
        """Two float32 buffers of at least four times the caches each, less where memory is short; every page touched."""
        if self.on_gpu:
            size, room = max(4 * self.caches().outer, 1 << 30), self.torch.cuda.mem_get_info(self.where)[0] // 8
        else:
            limit = device.describe().memory_bytes or psutil.virtual_memory().total
            size, room = 4 * self.caches().outer, min(psutil.virtual_memory().available // 8, limit // 16)
        return [self.torch.ones(min(size, room) // 4, device=self.where) for _ in range(2)]

    def _run(self, call: Callable[[], object]) -> clock.Run:
        return clock.repeated(call, lambda: self.torch.cuda.synchronize(self.where) if self.on_gpu else None)

    def _rate(self, call: Callable[[], object], amount: float) -> Rate:
        """`amount` per second over blocks: short ones on a CPU, to find the quiet moments between interruptions."""
        run = self._run(call)
        calls = clock.calibrate(run, clock.MIN_BLOCK_S if self.on_gpu else 0.001)
        rates: list[float] = []
        end = time.perf_counter() + SECONDS
        while len(rates) < ROUNDS or time.perf_counter() < end:
            rates.append(amount / clock.time_block(run, calls).per_call)
        return Rate(statistics.median(rates), max(rates))

    def _peak(self, call: Callable[[], object], amount: float) -> float:
        """The best `amount` per second of short bursts. A GPU rests before each: at its power cap it soon slows down."""
        run = self._run(call)
        calls = clock.calibrate(run, 0.005 if self.on_gpu else 0.001)
        best, rounds, end = 0.0, 0, time.perf_counter() + SECONDS
        while rounds < 3 or time.perf_counter() < end:
            time.sleep(REST_S if self.on_gpu else 0)
            best = max(best, *(amount / clock.time_block(run, calls).per_call for _ in range(2)))
            rounds += 1
        return best
