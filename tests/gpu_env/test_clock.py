"""Blocks are long enough, count every call, and end when the results are there."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_env import clock

ROOT = Path(clock.__file__).parents[1]
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Machine:
    """A clock and calls that let it go forward: each block costs `start_ns`, each call `call_ns`."""

    def __init__(self, call_ns: int, start_ns: int = 0) -> None:
        self.call_ns, self.start_ns = call_ns, start_ns
        self.now, self.made = 0, 0
        self.interruptions: list[int] = []

    def clock(self) -> int:
        return self.now

    def run(self, calls: int) -> None:
        self.made += calls
        self.now += self.start_ns + calls * self.call_ns
        if self.interruptions:
            self.now += self.interruptions.pop(0)


def test_block_counts_calls_and_seconds() -> None:
    """A block of five calls of 3 ms lasts 15 ms, 3 ms for each."""
    machine = Machine(call_ns=3_000_000)
    block = clock.time_block(machine.run, 5, machine.clock)
    assert (block.calls, machine.made) == (5, 5)
    assert block.seconds == pytest.approx(0.015)
    assert block.per_call == pytest.approx(0.003)


def test_real_block_lasts_as_long_as_its_calls() -> None:
    """With the real clock, three sleeps of 5 ms take at least 15 ms."""
    assert clock.time_block(clock.repeated(lambda: time.sleep(0.005)), 3).seconds >= 0.015


@pytest.mark.parametrize("calls", [0, -1])
def test_block_without_calls_is_refused(calls: int) -> None:
    """Nothing cannot be timed."""
    with pytest.raises(ValueError, match="calls must be at least 1"):
        clock.time_block(Machine(1).run, calls)
    with pytest.raises(ValueError, match="calls must be at least 1"):
        clock.cuda_events(lambda: None, calls)


@settings(deadline=None)
@given(call_ns=st.integers(20, 10**9), start_ns=st.integers(0, 10**6), min_block_s=st.floats(1e-4, 0.1), data=st.data())
def test_calibrated_block_is_long_enough_and_not_much_longer(
    call_ns: int, start_ns: int, min_block_s: float, data: st.DataObject
) -> None:
    """Whatever a call costs, the block reaches the minimum; beyond one call it overshoots by a fifth at most."""
    machine = Machine(call_ns, start_ns)
    calls = clock.calibrate(machine.run, min_block_s, machine.clock)
    length_ns = start_ns + calls * call_ns
    assert length_ns >= min_block_s * 1e9 * (1 - 1e-9)
    assert calls == 1 or calls * call_ns <= 1.2 * min_block_s * 1e9 + call_ns + start_ns


def test_one_interruption_does_not_pass_for_work() -> None:
    """A pause in one of two blocks, or in the call that warms up, does not end the search too early."""
    machine = Machine(call_ns=1_000_000)
    machine.interruptions = [10**9, 10**9, 0, 0, 10**9]
    calls = clock.calibrate(machine.run, 0.020, machine.clock)
    assert calls >= 20


def test_first_call_is_not_counted() -> None:
    """Compiling in the first call leaves the number of calls as it is afterwards."""
    machine = Machine(call_ns=2_000_000)
    machine.interruptions = [10**10]
    assert clock.calibrate(machine.run, 0.020, machine.clock) in range(10, 14)


def test_clock_that_stands_still_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration ends with a reason when no number of calls takes any time."""
    monkeypatch.setattr(clock, "MAX_CALLS", 1000)
    with pytest.raises(ValueError, match="the calls do nothing, or the clock stands still"):
        clock.calibrate(lambda calls: None, 0.020, lambda: 0)
    with pytest.raises(ValueError, match="stands still"):
        clock.resolution(lambda: 0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_block_of_no_length_is_refused(seconds: float) -> None:
    """A minimum that every block reaches is a mistake."""
    with pytest.raises(ValueError, match="min_block_s must be positive"):
        clock.calibrate(Machine(1).run, seconds)


def test_results_are_waited_for_inside_the_block() -> None:
    """All calls are made, then the device is waited for once, while the garbage collector rests."""
    seen: list[object] = []
    clock.repeated(lambda: seen.append(gc.isenabled()), lambda: seen.append("waited"))(3)
    assert seen == [False, False, False, "waited"]
    assert gc.isenabled()


@pytest.mark.parametrize("collecting", [True, False])
def test_garbage_collector_is_left_as_it_was(collecting: bool) -> None:
    """Also when a call fails, and also when it was off before."""
    if not collecting:
        gc.disable()
    try:
        with pytest.raises(ZeroDivisionError):
            clock.repeated(lambda: 1 / 0)(1)
        assert gc.isenabled() == collecting
    finally:
        gc.enable()


@settings(deadline=None)
@given(st.integers(1, 10**7))
def test_resolution_is_the_step_that_readings_show(tick_ns: int) -> None:
    """A clock that stands for many readings and then jumps has the jump as its resolution."""
    readings = iter(range(10**9))
    assert clock.resolution(lambda: next(readings) // 7 * tick_ns, samples=20) == pytest.approx(tick_ns / 1e9)


def test_real_resolution_is_no_better_than_promised() -> None:
    """The clock of this machine steps at least as far as its promise, and far less than a block lasts."""
    promised = time.get_clock_info("perf_counter").resolution
    assert promised <= clock.resolution() < clock.MIN_BLOCK_S / 20


def test_synchronize_loads_nothing() -> None:
    """In a process without torch there is nothing to wait for, and torch is not loaded to find out."""
    code = "import sys; from gpu_env import clock; clock.synchronize(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_cuda_there_is_nothing_to_wait_for() -> None:
    """On a CPU `synchronize` returns, and events are refused with what to use instead."""
    clock.synchronize()
    with pytest.raises(RuntimeError, match="use time_block"):
        clock.cuda_events(lambda: None, 1)


@on_cuda
def test_block_waits_for_the_gpu() -> None:
    """A kernel of 50 ms is in the block although launching it takes microseconds."""
    torch.ones(1, device="cuda")
    sleep: Any = torch.cuda._sleep
    cycles = int(0.05 * torch.cuda.get_device_properties(0).clock_rate * 1e3)
    clock.synchronize()
    launched = clock.time_block(clock.repeated(lambda: sleep(cycles), lambda: None), 1)
    clock.synchronize()
    waited = clock.time_block(clock.repeated(lambda: sleep(cycles)), 1)
    assert launched.seconds < 0.02
    assert waited.seconds > 0.04


@on_cuda
def test_events_agree_with_blocks() -> None:
    """For work on one stream, CUDA events and the process's own clock tell the same time within 10 %."""
    matrix = torch.randn(4096, 4096, device="cuda")

    def call() -> object:
        return matrix @ matrix

    run = clock.repeated(call)
    calls = clock.calibrate(run)
    ratios = sorted(clock.cuda_events(call, calls).seconds / clock.time_block(run, calls).seconds for _ in range(9))
    assert ratios[4] == pytest.approx(1, abs=0.1)
