"""Blocks of calls, timed on the caller's monotonic clock.

One call is often shorter than what disturbs it: a thread switch, a message to a worker, the clock itself. So calls are
timed in blocks of at least 20 ms, and a block ends when its results are there: `repeated` waits for the GPU, a judge's
`run` waits for the worker's answer and for the outputs.

Not covered: which of two programs is faster (`gpu_env.paired`); the GPU's clocks (`gpu_env.nvml`). A process that runs
foreign code can be lied to by everything here; whoever times foreign code passes a `run` that asks another process.
"""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Clock = Callable[[], int]
"""Nanoseconds since some moment, never going back; `time.perf_counter_ns` in earnest, a counter in tests."""

Run = Callable[[int], object]
"""`run(k)` makes k calls and returns when their results are there."""

MIN_BLOCK_S = 0.020
MAX_CALLS = 10_000_000


@dataclass(frozen=True)
class Block:
    """A number of calls and the seconds that they took together."""

    calls: int
    seconds: float

    @property
    def per_call(self) -> float:
        """Mean seconds of one call."""
        return self.seconds / self.calls


def synchronize(device: int | None = None) -> None:
    """Wait until a CUDA device (None: the current one) has done everything; nothing to do where CUDA is not in use.

    Loads neither torch nor CUDA: a process that has not initialised them has no work pending there.
    """
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize(device)


def repeated(function: Callable[[], object], sync: Callable[[], object] = synchronize) -> Run:
    """A run that calls a function of this process. The garbage collector rests meanwhile, as in `timeit`."""

    def run(calls: int) -> None:
        with _no_collection():
            for _ in range(calls):
                function()
            sync()

    return run


def time_block(run: Run, calls: int, clock: Clock = time.perf_counter_ns) -> Block:
    """Time `run(calls)`. What was pending before is the caller's to wait for (`synchronize`).

    Raises:
        ValueError: `calls` is below 1.
    """
    if calls < 1:
        raise ValueError(f"calls must be at least 1, not {calls}")
    start = clock()
    run(calls)
    return Block(calls, (clock() - start) / 1e9)


def calibrate(run: Run, min_block_s: float = MIN_BLOCK_S, clock: Clock = time.perf_counter_ns) -> int:
    """The number of calls with which a block lasts at least `min_block_s`, after one call to warm up.

    Two blocks must be long enough, so that one interruption does not pass for work.

    Raises:
        ValueError: `min_block_s` is not positive, or MAX_CALLS calls are shorter than that.
    """
    if not min_block_s > 0:
        raise ValueError(f"min_block_s must be positive, not {min_block_s}")
    run(1)
    calls = 1
    while True:
        seconds = min(time_block(run, calls, clock).seconds for _ in range(2))
        if seconds >= min_block_s:
            return calls
        if calls == MAX_CALLS:
            raise ValueError(
                f"{MAX_CALLS:,} calls took {seconds:g} s, less than a block of {min_block_s:g} s: the calls do nothing, "
                "or the clock stands still. Time a function that does more in one call"
            )
        # a fifth more than needed, for the next block may run faster
        wanted = math.ceil(calls * min_block_s / seconds * 1.2) if seconds > 0 else 10 * calls
        calls = min(MAX_CALLS, max(calls + 1, wanted))


def cuda_events(function: Callable[[], object], calls: int) -> Block:
    """Time calls between two CUDA events on the current stream: feedback for people, never a grade.

    Events count what this stream did between them; work on another stream is invisible to them.

    Raises:
        RuntimeError: this process has no CUDA device.
        ValueError: `calls` is below 1.
    """
    if calls < 1:
        raise ValueError(f"calls must be at least 1, not {calls}")
    try:
        import torch
    except ImportError:
        raise RuntimeError("CUDA events need torch, which is not installed: pip install torch") from None
    if not torch.cuda.is_available():
        raise RuntimeError("CUDA events need a CUDA device and torch sees none; use time_block")
    event: Any = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    with _no_collection():
        start.record()
        for _ in range(calls):
            function()
        end.record()
    end.synchronize()
    return Block(calls, float(start.elapsed_time(end)) / 1e3)


def resolution(clock: Clock = time.perf_counter_ns, samples: int = 1000) -> float:
    """The shortest time in seconds that this clock can tell from nothing, cost of reading included.

    It is the median step between neighbouring readings that differ, which is larger than the resolution that the
    operating system promises (`time.get_clock_info`).

    Raises:
        ValueError: the clock stands still.
    """
    steps: list[int] = []
    last = clock()
    for _ in range(1000 * samples):
        now = clock()
        if now != last:
            steps.append(now - last)
            if len(steps) == samples:
                break
        last = now
    if not steps:
        raise ValueError("the clock stands still")
    return sorted(steps)[len(steps) // 2] / 1e9


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
