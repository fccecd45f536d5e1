"""Rates are those of this machine, honest runs are never below the floor, and what did not happen is."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_env import clock, per_boot, probe, roofline
from gpu_env.probe import Prober, ProbeUnavailable, Rate
from gpu_env.roofline import MARGIN, Roofline, Work, impossible

ROOT = Path(roofline.__file__).parents[1]
GB, MIB = 1e9, 2**20
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
places = pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=on_cuda)])

KNOWN = Roofline(
    device="cuda",
    name="A GPU",
    threads=0,
    copy=Rate(80 * GB, 90 * GB),
    flops={"float32": Rate(200 * GB, 210 * GB), "bfloat16": Rate(880 * GB, 900 * GB), "float16": Rate(2 * GB, 2 * GB)},
    memory_best=100 * GB,
    cached_best=300 * GB,
    flops_best={"float32": 400 * GB, "bfloat16": 900 * GB, "float16": 2 * GB},
    cache_bytes=32 * MIB,
    inner_cache_bytes=2 * MIB,
)
COPY = Work(100 * GB, working_set_bytes=math.inf)


@pytest.fixture
def nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was never probed, and short probes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(per_boot, "_of_this_process", {})
    monkeypatch.setattr(probe, "SECONDS", 0.05)


@pytest.fixture
def measured(nothing_kept: None, monkeypatch: pytest.MonkeyPatch) -> list[Roofline]:
    """What the next probes will find, first one first; the last one again and again."""
    findings = [KNOWN]

    def measure(prober: Prober) -> Roofline:
        return findings.pop(0) if len(findings) > 1 else findings[0]

    monkeypatch.setattr(roofline, "_measured", measure)
    return findings


# ------------------------------------------------------------------------------------ the floor


def test_floor_of_streaming() -> None:
    """Many different bytes take their time at the fastest way through memory, FLOPs theirs, and the longer one counts."""
    assert KNOWN.floor_seconds(100 * GB, 0, "float32", math.inf) == pytest.approx(1)
    assert KNOWN.floor_seconds(0, 400 * GB, "float32") == pytest.approx(1)
    assert KNOWN.floor_seconds(50 * GB, 400 * GB, "float32", math.inf) == pytest.approx(1)
    assert KNOWN.floor_seconds(200 * GB, 400 * GB, torch.float32, math.inf) == pytest.approx(2)
    assert KNOWN.floor_seconds(0, 0, "float32") == 0


def test_floor_of_what_caches_may_hold() -> None:
    """Up to twice the caches only their own rate bounds, also doubled; up to the inner ones nothing does."""
    assert KNOWN.floor_seconds(600 * GB, 0, "float32", 64 * MIB) == pytest.approx(1)
    assert KNOWN.floor_seconds(600 * GB, 0, "float32", 2 * MIB + 1) == pytest.approx(1)
    assert KNOWN.floor_seconds(600 * GB, 0, "float32", 2 * MIB) == 0
    assert KNOWN.floor_seconds(MIB, 0, "float32") == 0
    assert KNOWN.floor_seconds(100 * GB, 0, "float32", 128 * MIB) == pytest.approx(1 / 2)
    assert KNOWN.floor_seconds(100 * GB, 0, "float32", 640 * MIB) == pytest.approx(9 / 10)


@settings(deadline=None)
@given(st.floats(0, 1e15), st.floats(0, 1e18), st.floats(0, 1e15), st.floats(1, 10))
def test_floor_rises_with_the_work(bytes_: float, flops: float, working_set: float, more: float) -> None:
    """More bytes, more FLOPs or more different bytes never lower the floor, and it is never below zero."""
    floor = KNOWN.floor_seconds(bytes_, flops, "bfloat16", working_set)
    assert floor >= 0
    for larger in (
        (bytes_ * more, flops, working_set),
        (bytes_, flops * more, working_set),
        (bytes_, flops, working_set * more),
    ):
        assert KNOWN.floor_seconds(larger[0], larger[1], "bfloat16", larger[2]) >= floor * (1 - 1e-12)


def test_floor_of_a_cpu_is_half() -> None:
    """Neighbours on the same processor may have slowed down the probe."""
    cpu = replace(KNOWN, device="cpu")
    for bytes_, flops in ((100 * GB, 0), (0, 400 * GB)):
        floor = KNOWN.floor_seconds(bytes_, flops, "float32")
        assert 2 * cpu.floor_seconds(bytes_, flops, "float32") == pytest.approx(floor) != 0


def test_narrow_type_may_be_computed_in_a_wide_one() -> None:
    """float16 where it is slow is bounded by float32's rate, float32 on a GPU by TF32's, never the other way."""
    assert KNOWN.floor_seconds(0, 400 * GB, "float16") == pytest.approx(1)
    assert KNOWN.floor_seconds(0, 900 * GB, "bfloat16") == pytest.approx(1)
    gpu = replace(
        KNOWN, flops={"tfloat32": Rate(1, 1), **KNOWN.flops}, flops_best={**KNOWN.flops_best, "tfloat32": 4e12}
    )
    assert gpu.floor_seconds(0, 4e12, "float32") == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, "float32"), "bytes_ must not be negative"),
        ((0, math.nan, "float32"), "flops must not be negative"),
        ((0, 0, "float32", -1), "working_set_bytes must not be negative"),
        ((0, 1, "int3"), "int3 was not probed; known are float32, bfloat16, float16"),
        ((0, 1, torch.float64), "float64 was not probed"),
    ],
)
def test_wrong_amounts_are_refused(arguments: Any, message: str) -> None:
    """The message names the argument."""
    with pytest.raises(ValueError, match=message):
        KNOWN.floor_seconds(*arguments)


def test_fraction_is_held_against_plain_work() -> None:
    """A run as fast as a plain copy or product has reached 1, one that takes twice as long a half."""
    assert KNOWN.fraction(1, 80 * GB, 0, "float32") == pytest.approx(1)
    assert KNOWN.fraction(2, 80 * GB, 200 * GB, torch.float32) == pytest.approx(1 / 2)
    with pytest.raises(ValueError, match="seconds must be positive"):
        KNOWN.fraction(0, 1, 1, "float32")


# ------------------------------------------------------------------------------------ the alarm


def test_honest_time_costs_no_further_probe(measured: list[Roofline]) -> None:
    """At the floor, and within the margin below it, nothing is measured again."""
    measured[:] = [KNOWN, KNOWN, KNOWN]
    assert not impossible(1.0, COPY)
    assert not impossible(1 / MARGIN, COPY)
    assert len(measured) == 2


def test_time_below_the_floor_is_impossible(measured: list[Roofline]) -> None:
    """When two more probes say the same, the alarm is given."""
    assert impossible(0.95, COPY)
    assert roofline.floor_seconds(COPY) == pytest.approx(1)


@pytest.mark.parametrize("slow_probes", [1, 2])
def test_probe_that_was_slowed_down_raises_no_alarm(measured: list[Roofline], slow_probes: int) -> None:
    """A machine that was busy during the first probes is probed again before anybody is accused."""
    slow = replace(KNOWN, memory_best=30 * GB)
    measured[:] = [*[slow] * slow_probes, KNOWN]
    assert slow.floor_seconds(100 * GB, 0, "float32", math.inf) / MARGIN > 1.0
    assert not impossible(1.0, COPY)


def test_busy_machine_raises_no_alarm(measured: list[Roofline]) -> None:
    """Where plain copies mostly run far below the best one, the floor itself is in doubt."""
    measured[:] = [replace(KNOWN, copy=Rate(50 * GB, 90 * GB))]
    assert not impossible(0.1, COPY)


# ------------------------------------------------------------------------------------ kept until the next boot


def test_machine_is_probed_once(measured: list[Roofline]) -> None:
    """The second question is answered from the file, which `known` shows too."""
    measured[:] = [KNOWN, replace(KNOWN, name="measured again")]
    assert roofline.probe("cpu") == roofline.probe("cpu") == KNOWN
    assert roofline.known() == [KNOWN]


def test_best_rates_stay(measured: list[Roofline]) -> None:
    """A fresh probe brings new medians, and never a lower best."""
    slow = replace(
        KNOWN,
        copy=Rate(8 * GB, 9 * GB),
        flops={name: Rate(rate.median / 2, rate.best / 2) for name, rate in KNOWN.flops.items()},
        memory_best=10 * GB,
        cached_best=400 * GB,
        flops_best={"float32": 1 * GB, "bfloat16": 999 * GB, "float16": 1 * GB},
    )
    measured[:] = [KNOWN, slow]
    roofline.probe("cpu")
    again = roofline.probe("cpu", fresh=True)
    assert again.copy == Rate(8 * GB, 90 * GB)
    assert again.flops["float32"] == Rate(100 * GB, 210 * GB)
    assert (again.memory_best, again.cached_best) == (100 * GB, 400 * GB)
    assert again.flops_best == {"float32": 400 * GB, "bfloat16": 999 * GB, "float16": 2 * GB}
    assert roofline.probe("cpu") == again


def test_other_threads_are_another_machine(measured: list[Roofline]) -> None:
    """Rates of one thread say nothing about two."""
    measured[:] = [KNOWN, replace(KNOWN, threads=99)]
    threads = torch.get_num_threads()
    roofline.probe("cpu")
    try:
        torch.set_num_threads(threads + 1)
        assert roofline.probe("cpu").threads == 99
    finally:
        torch.set_num_threads(threads)
    assert roofline.probe("cpu") == KNOWN


@pytest.mark.parametrize("stored", [[], {}, "text", {"device": "cpu"}, {"copy": 3, "flops": {}}])
def test_file_of_another_version_is_probed_again(measured: list[Roofline], stored: Any) -> None:
    """What cannot be understood counts as never probed."""
    per_boot.store("roofline", {"version": 1, **Prober("cpu").key()}, stored)
    assert roofline.known() == []
    assert roofline.probe("cpu") == KNOWN
    assert roofline.known() == [KNOWN]


# ------------------------------------------------------------------------------------ the probe


def test_without_torch_the_reason_is_clear() -> None:
    """No torch, no probe; what is kept can still be read."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from gpu_env import roofline\n"
        "roofline.known()\n"
        "try: roofline.probe()\n"
        "except roofline.ProbeUnavailable as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "the probe needs torch, which is not installed: pip install torch"


@pytest.mark.parametrize(("where", "message"), [("cuda:99", "there is no cuda:99"), ("meta", "meta cannot be probed")])
def test_absent_device_is_named(where: str, message: str) -> None:
    """A GPU that is not there and a device of another kind are errors of their own type."""
    with pytest.raises(ProbeUnavailable, match=message):
        Prober(where)


@places
def test_buffers_are_far_larger_than_the_caches(where: str) -> None:
    """Each of both is at least four times what the caches hold, unless memory is short."""
    prober = Prober(where)
    caches = prober.caches()
    source, target = prober._buffers()
    assert source.nbytes == target.nbytes >= 4 * caches.outer
    assert 0 < caches.inner < caches.outer


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread does not wait for others, which on a busy machine makes rates erratic."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def agree(probed: Callable[[], float], plain: Callable[[], float]) -> None:
    """Fail unless the medians of both, measured in turn, come within 10 %; other load gets several chances to end."""
    ratios = []
    for _ in range(12):
        pairs = [(probed(), plain()) for _ in range(3)]
        ratios.append(statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs))
        if 0.9 <= ratios[-1] <= 1.1:
            return
    pytest.fail(f"probe over plain work, twelve times: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


def plain_rate(call: Callable[[], object], amount: float, where: str) -> float:
    """The median rate of single calls (on a GPU of as many as take 20 ms) during 50 ms or more."""
    run = clock.repeated(call)
    run(1)
    calls = max(1, round(0.02 / clock.time_block(run, 1).seconds)) if where == "cuda" else 1
    rates: list[float] = []
    end = time.monotonic() + 0.05
    while len(rates) < 5 or time.monotonic() < end:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        if where == "cuda":
            torch.cuda.synchronize()
        rates.append(amount * calls / (time.perf_counter() - start))
    return statistics.median(rates)


@places
def test_copy_rate_is_that_of_a_plain_copy(where: str, one_thread: None, nothing_kept: None) -> None:
    """The probed median lies within 10 % of what copying far more than the caches hold gives on the same machine."""
    prober = Prober(where)
    elements = prober._buffers()[0].numel()  # twice as many take 1.09 times as long a byte on an AMD EPYC
    source, target = torch.ones(elements, device=where), torch.zeros(elements, device=where)
    agree(
        lambda: prober.memory(["copy"])["copy"].median,
        lambda: plain_rate(lambda: target.copy_(source), 2 * source.nbytes, where),
    )


@places
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_rate_is_that_of_a_plain_product(
    where: str, dtype: torch.dtype, one_thread: None, nothing_kept: None
) -> None:
    """The probed median lies within 10 % of what a large square product gives on the same machine."""
    n = 8192 if where == "cuda" else 1024
    a, b = (torch.randn(n, n, device=where).to(dtype) for _ in range(2))
    prober = Prober(where)
    name = str(dtype).removeprefix("torch.")
    agree(lambda: prober.gemm(name)[0].median, lambda: plain_rate(lambda: a @ b, 2 * n**3, where))


@places
def test_fastest_way_is_at_least_a_copy(where: str, nothing_kept: None) -> None:
    """A real probe is consistent: no median above its best, no best above the fastest way, every type measured."""
    found = roofline.probe(where)
    assert found.device == where
    assert found.memory_best >= found.copy.best >= found.copy.median > 0
    assert found.cached_best > 0
    assert set(found.flops) == set(found.flops_best) >= {"float32", "bfloat16", "float16"}
    for name, rate in found.flops.items():
        assert found.flops_best[name] >= rate.best >= rate.median > 0
    assert ("tfloat32" in found.flops) == (where == "cuda")
    assert roofline.known() == [found]


@places
def test_probe_leaves_torch_as_it_was(where: str, nothing_kept: None) -> None:
    """TF32 is as it was, and the GPU's memory is free again."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        Prober(where).gemm("tfloat32" if where == "cuda" else "float32")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    if where == "cuda":
        held = torch.cuda.memory_allocated()
        roofline.probe(where, fresh=True)
        assert torch.cuda.memory_allocated() == held


def honest_runs(where: str) -> Iterator[tuple[str, Callable[[], object], Work]]:
    """Name, call and least work of plain good code, from what fits a core's cache to what fits none."""
    for size in [2**power * MIB for power in (range(-2, 9) if where == "cpu" else range(0, 12, 2))]:
        a = torch.ones(int(size) // 8, device=where)
        b = torch.ones_like(a)
        matrix, vector = a.view(-1, 1024), torch.ones(1024, device=where)
        half = a.nbytes
        yield f"copy {size}", partial(b.copy_, a), Work(2 * half, 0, "float32", 2 * half)
        yield f"add {size}", partial(torch.add, a, 1, out=b), Work(2 * half, 0, "float32", 2 * half)
        yield f"update {size}", partial(a.mul_, 1), Work(2 * half, 0, "float32", half)
        yield f"sum {size}", a.sum, Work(half, 0, "float32", half)
        yield f"fill {size}", a.zero_, Work(half, 0, "float32", half)
        yield f"mv {size}", partial(torch.mv, matrix, vector), Work(half, 2 * matrix.numel(), "float32", half)
    for dtype in (torch.float32, torch.bfloat16):
        for n in (256, 512, 1024) if where == "cpu" else (1024, 4096, 8192):
            x, y = (torch.randn(n, n, device=where).to(dtype) for _ in range(2))
            name = str(dtype).removeprefix("torch.")
            work = Work(3 * x.nbytes, 2 * n**3, name, 3 * x.nbytes)
            yield f"mm {name} {n}", partial(torch.mm, x, y), work
            yield f"linear {name} {n}", partial(torch.nn.functional.linear, x, y), work
            if where == "cpu" and dtype is torch.float32:
                yield f"numpy {n}", partial(np.matmul, x.numpy(), y.numpy()), work


@places
def test_honest_runs_are_never_impossible(where: str, nothing_kept: None) -> None:
    """The best block of each plain good program, at every size, stays above the floor of its own amounts."""
    flagged = []
    for name, call, work in honest_runs(where):
        run = clock.repeated(call)
        calls = clock.calibrate(run, 0.002)
        seconds = min(clock.time_block(run, calls).per_call for _ in range(5))
        if impossible(seconds, work, where):
            flagged.append((name, seconds, roofline.floor_seconds(work, where)))
    assert not flagged


@places
def test_work_that_was_not_done_is_below_the_floor(where: str, nothing_kept: None) -> None:
    """A call that returns at once is far too fast for a large copy, and for a large product."""
    calls = 1000
    block = clock.time_block(clock.repeated(lambda: None), calls)
    size = 2**30
    assert block.per_call < roofline.floor_seconds(Work(size, working_set_bytes=calls * size), where) / MARGIN
    assert block.per_call < roofline.floor_seconds(Work(flops=2 * 4096**3, dtype="bfloat16"), where) / MARGIN
