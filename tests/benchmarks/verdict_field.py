"""The field test of `verdicts.py`: real processes whose true ratio is known, beside real neighbours.

One call does a fixed piece of work a given number of times. The reference does it 270 to 330 times and the candidate 200
times, so that it is 1.35 to 1.65 times as fast: 10 % below to 10 % above a threshold of 1.5, by construction. The pieces:

    compute   a product of two 64 x 64 matrices (about 5 us, in the first-level cache)
    memory    64 KiB copied, walking through 64 MiB (more than the caches hold)
    gemm      on a GPU: a product of two 2048 x 2048 matrices in bf16
    copy      on a GPU: 32 MiB copied, walking through 1 GiB; the device is waited for once a block

Workers are forked from this process, which has numpy loaded (for a GPU torch too) but no threads, and share one core; this
process, the clock, sits on another where there is one. Between its blocks a worker is stopped (SIGSTOP). Neighbours run
where the scheduler puts them, also on the workers' core; `gpu` keeps the GPU busy with large products.

Not covered: several threads in a worker, implementations that react differently to the same neighbour.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from gpu_env.paired import Measurement, Pair, compare

THRESHOLD = 1.5
CANDIDATE_PIECES = 200
REFERENCE_PIECES = {-10: 270, -5: 285, 0: 300, 5: 315, 10: 330}
"""By per cent above the threshold."""
NEIGHBOURS = {
    "alone": (),
    "cpu1": ("cpu",),
    "cpu2": ("cpu",) * 2,
    "mem1": ("mem",),
    "mem2": ("mem",) * 2,
    "gpu1": ("gpu",),
}
KERNELS = ("compute", "memory")
GPU_KERNELS = ("gemm", "copy")
CELLS = tuple(f"{kernel}-{neighbours}" for kernel in KERNELS for neighbours in NEIGHBOURS if neighbours != "gpu1")
GPU_CELLS = tuple(f"{kernel}-{neighbours}" for kernel in GPU_KERNELS for neighbours in ("alone", "cpu2", "gpu1"))


class Worker:
    """A `Side`: a forked process that does `pieces` pieces of work a call, over two pipes."""

    def __init__(self, kernel: str, pieces: int, core: int) -> None:
        self.kernel, self.pieces, self.core = kernel, pieces, core
        self.pid = 0
        self.to = self.back = -1
        self.seed = 0

    def fresh(self) -> None:
        self.close()
        child_in, self.to = os.pipe()
        self.back, child_out = os.pipe()
        self.pid = _fork(lambda: self._serve(child_in, child_out), (self.to, self.back))
        os.close(child_in)
        os.close(child_out)

    def time_block(self, calls: int) -> float:
        self.seed += calls
        start = time.perf_counter()
        os.write(self.to, struct.pack("<qq", calls, self.seed))
        answer = os.read(self.back, 1)
        seconds = time.perf_counter() - start
        if answer != b".":
            raise RuntimeError(f"the {self.kernel} worker (process {self.pid}) died")
        return seconds

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)  # returns when it stands still

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.to)
            os.close(self.back)
            self.pid = 0

    def _serve(self, requests: int, answers: int) -> None:
        os.sched_setaffinity(0, {self.core})
        call = _kernel(self.kernel, self.pieces)
        while len(message := os.read(requests, 16)) == 16:
            calls, seed = struct.unpack("<qq", message)
            for number in range(calls):
                call(seed + number)
            if self.kernel in GPU_KERNELS:
                sys.modules["torch"].cuda.synchronize()
            os.write(answers, b".")


def _kernel(name: str, pieces: int) -> Callable[[int], None]:
    """A function that makes its input from a number and does `pieces` equal pieces of work with it."""
    if name == "compute":
        left, right, out = (np.full((64, 64), 0.5, dtype=np.float32) for _ in range(3))

        def compute(seed: int) -> None:
            left[0, 0] = seed % 1000
            for _ in range(pieces):
                np.matmul(left, right, out=out)

        return compute
    if name in GPU_KERNELS:
        return _gpu_kernel(name, pieces)
    source, target = np.zeros((1024, 8192)), np.zeros((1024, 8192))  # rows of 64 KiB
    source[:] = target[:] = 1.0  # pages are there only once written to
    row = 0

    def memory(seed: int) -> None:
        nonlocal row
        source[row, 0] = seed
        for _ in range(pieces):
            np.copyto(target[row], source[row])
            row = (row + 1) % 1024

    return memory


def _gpu_kernel(name: str, pieces: int) -> Callable[[int], None]:
    """The same on a GPU. The worker waits for the device at the end of a block, as timed workers of submissions do."""
    import torch

    if name == "gemm":
        left, right, out = (torch.full((2048, 2048), 0.01, dtype=torch.bfloat16, device="cuda") for _ in range(3))

        def gemm(seed: int) -> None:
            left[0, 0] = seed % 1000
            for _ in range(pieces):
                torch.mm(left, right, out=out)

        return gemm
    source, target = (torch.ones(32, 1 << 23, device="cuda") for _ in range(2))  # rows of 32 MiB
    row = 0

    def copy(seed: int) -> None:
        nonlocal row
        source[row, 0] = seed
        for _ in range(pieces):
            target[row].copy_(source[row])
            row = (row + 1) % len(source)

    return copy


def _fork(run: Callable[[], object], close: tuple[int, ...] = ()) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        _end_with(parent)
        for descriptor in close:
            os.close(descriptor)
        run()
    finally:
        os._exit(0)


def _end_with(parent: int) -> None:
    """Let the kernel end this process when its parent ends, however that happens."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(0)


@contextlib.contextmanager
def neighbours(kinds: tuple[str, ...]) -> Iterator[None]:
    """Processes that do nothing but disturb, as long as the block runs."""
    burn = {"cpu": _burn_cpu, "mem": _burn_memory, "gpu": _burn_gpu}
    pids = [_fork(burn[kind]) for kind in kinds]
    try:
        time.sleep(5 if "gpu" in kinds else 0.3 if pids else 0)  # until they are at it
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _burn_cpu() -> None:
    while True:
        sum(range(100_000))


def _burn_memory() -> None:
    source, target = np.ones(1 << 23), np.ones(1 << 23)  # 64 MiB each
    while True:
        np.copyto(target, source)


def _burn_gpu() -> None:
    import torch

    left = torch.full((4096, 4096), 0.01, dtype=torch.bfloat16, device="cuda")
    while True:
        for _ in range(50):
            left @ left
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Trial:
    """One verdict. `error`: measured log ratio less the true one; `best_of_3`: PASS by the best of three blocks."""

    verdict: str
    error: float
    noise: float
    pairs: int
    repeats: int
    seconds: float
    best_of_3: bool
    processes: tuple[float, ...]
    """Median log ratio in each generation of processes."""


def verdict(kernel: str, percent: int, rng: random.Random) -> Trial:
    """One comparison at `percent` per cent from the threshold."""
    cores = sorted(os.sched_getaffinity(0))
    reference = Worker(kernel, REFERENCE_PIECES[percent], cores[-1])
    candidate = Worker(kernel, CANDIDATE_PIECES, cores[-1])
    with contextlib.ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, cores)
        stack.callback(reference.close)
        stack.callback(candidate.close)
        os.sched_setaffinity(0, cores[:-1] or cores)
        measured = compare(reference, candidate, THRESHOLD, rng)
    return _trial(measured, math.log(REFERENCE_PIECES[percent] / CANDIDATE_PIECES))


def _trial(measured: Measurement, truth: float) -> Trial:
    first = measured.samples[:3]
    best = min(pair.reference_s for pair in first) / min(pair.candidate_s for pair in first)
    generations: dict[int, list[Pair]] = {}
    for pair in measured.samples:
        generations.setdefault(pair.process, []).append(pair)
    return Trial(
        verdict=str(measured.verdict),
        error=math.log(measured.ratio) - truth,
        noise=measured.noise,
        pairs=measured.pairs,
        repeats=measured.repeats,
        seconds=measured.seconds,
        best_of_3=best >= THRESHOLD,
        processes=tuple(float(np.median([pair.log_ratio for pair in pairs])) for pairs in generations.values()),
    )


def available(cells: Iterable[str]) -> str:
    """Why these cells of the field test cannot run here, or nothing. For a GPU it loads torch, so that workers need not."""
    if sys.platform != "linux":
        return "the field test needs Linux: it pins and stops processes"
    if not set(cells) & set(GPU_CELLS):
        return ""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # a process that has begun with CUDA cannot be forked
    import torch

    return "" if torch.cuda.is_available() else "those cells need an NVIDIA GPU, and torch sees none"
