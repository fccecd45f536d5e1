"""Coverage-guided fuzzing of the wire, in both directions, and of the two places where the grader reads findings.

    python tests/benchmarks/fuzz_wire.py [--seconds 60] [--seed 1] [--runs N] [--target judge] [--json]

What is fuzzed and what each target may end in stands in `fuzz_targets.py`. Each target runs in a process of its own,
under atheris (libFuzzer): autograder's modules are instrumented, inputs that reach new code are kept and changed further,
by libFuzzer and by `fuzz_mutate.py`, from a corpus of valid frames. A finding is

- an exception that the target may not end in, or the end of the process,
- an input that costs more than CPU_S of processor time, or more than WALL_S of time, beyond its deadline,
- an input by which the process grows more than GROWTH_BYTES and GROWTH_FACTOR times its size.

Equal findings (one exception in one place) count once. Where atheris cannot be imported the figures say so, and the same
targets get the same mutations at random, without coverage.
Not covered: whether what is accepted is right (that is `test_wire.py`), the kernel's side of the sandbox.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import faulthandler
import gc
import importlib
import importlib.metadata
import json
import math
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Found", "FuzzFigures", "TargetFigures", "fuzz"]

SHARES = {"judge": 0.5, "worker": 0.25, "grader": 0.125, "store": 0.125}
"""Targets, and their part of the time."""
MAX_INPUT = 1 << 18
CPU_S = 1.0
"""Beyond the deadline. Not wall time, which on a busy machine says nothing."""
WALL_S = 10.0
HANG_S = 30
"""After so long an input counts as endless, and the process is ended."""
GROWTH_BYTES = 32 << 20
GROWTH_FACTOR = 200
"""A message may become 80 times its size in Python (`wire.MAX_MESSAGE`); copies and libraries have the rest."""
TOTAL_BYTES = 512 << 20
"""What a process may grow by over all inputs."""


@dataclass(frozen=True)
class Found:
    """One finding, with the first input that showed it (base64, at most 256 KiB before)."""

    target: str
    kind: str
    """exception, time, memory or crash"""
    what: str
    data: str


@dataclass(frozen=True)
class TargetFigures:
    """What was tried on one target. `edges` and `features` are libFuzzer's counts, `None` without coverage."""

    inputs: int
    edges: int | None
    features: int | None
    outcomes: dict[str, int]
    """How inputs ended; of a run that time ended, up to half a second before."""
    peak_bytes: int
    """By how much the process grew at most, over its size before the first input."""
    slowest_cpu_s: float


@dataclass(frozen=True)
class FuzzFigures:
    """What a run of `fuzz` came to."""

    engine: str
    seed: int
    seconds: float
    inputs: int
    peak_bytes: int
    targets: dict[str, TargetFigures]
    findings: tuple[Found, ...]


def fuzz(seconds: float, seed: int, runs: int | None = None, targets: Sequence[str] = tuple(SHARES)) -> FuzzFigures:
    """Fuzz `targets` for about `seconds` together, or until each has had `runs` inputs, whichever comes first.

    As many at once as there are processors: most of a short run is the start of each.
    """
    began = time.monotonic()
    whole = sum(SHARES[name] for name in targets)
    made: dict[str, TargetFigures] = {}
    found: list[Found] = []

    def one(name: str) -> tuple[TargetFigures, list[Found]]:
        return _fuzz_one(name, seconds * SHARES[name] / whole, seed, runs)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for name, (figures, more) in zip(targets, pool.map(one, targets), strict=True):
            made[name] = figures
            found += more
    return FuzzFigures(
        engine=_engine(),
        seed=seed,
        seconds=round(time.monotonic() - began, 1),
        inputs=sum(each.inputs for each in made.values()),
        peak_bytes=max(each.peak_bytes for each in made.values()),
        targets=made,
        findings=tuple(found),
    )


def _engine() -> str:
    """In words, what chooses the inputs here."""
    try:
        importlib.import_module("atheris")
    except ImportError as error:
        return f"random mutations without coverage: atheris cannot be imported ({error})"
    return f"atheris {importlib.metadata.version('atheris')} (libFuzzer)"


def _fuzz_one(name: str, seconds: float, seed: int, runs: int | None) -> tuple[TargetFigures, list[Found]]:
    """Fuzz one target in a process of its own, and read what it left and said."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, __file__, "--drive", folder, "--target", name, "--seconds", str(seconds)]
        command += ["--seed", str(seed), "--runs", str(-1 if runs is None else runs)]
        environment = os.environ | {"TMPDIR": folder, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with open(Path(folder, "log"), "w+b") as log:
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                code = process.wait(seconds + 10 * HANG_S)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            log.seek(0)
            said = log.read().decode(errors="replace")
        report = Path(folder, "report.json")
        noted: dict[str, Any] = json.loads(report.read_bytes()) if report.exists() else {}
        found = [Found(name, **each) for each in noted.pop("findings", [])]
        if code or not noted:
            left = [*Path(folder).glob("crash-*"), *Path(folder).glob("timeout-*"), *Path(folder).glob("oom-*")]
            last = [*left, *Path(folder).glob("input")]
            data = base64.b64encode(last[0].read_bytes()).decode() if last else ""
            found.append(Found(name, "crash", f"its process ended with {code}:\n{said[-3000:]}", data))
    edges = re.findall(r"cov: (\d+) ft: (\d+)", said)
    executed = re.findall(r"stat::number_of_executed_units: (\d+)", said)
    return TargetFigures(
        inputs=int(executed[-1]) if executed else noted.get("inputs", 0),
        edges=int(edges[-1][0]) if edges else None,
        features=int(edges[-1][1]) if edges else None,
        outcomes=noted.get("outcomes", {}),
        peak_bytes=noted.get("peak_bytes", 0),
        slowest_cpu_s=noted.get("slowest_cpu_s", 0.0),
    ), found


# ------------------------------------------------------------------------------------------- in the process that fuzzes


class Watch:
    """Runs inputs on a target, and notes in `folder` what must not happen."""

    def __init__(self, target: Any, folder: Path, runs: int = -1) -> None:
        self._target = target
        self._runs = runs if runs > 0 else math.inf
        self._report = folder / "report.json"
        self._seen: set[str] = set()
        self._findings: list[dict[str, str]] = []
        self._outcomes: Counter[str] = Counter()
        self._slowest = 0.0
        self._noted = 0.0
        self._start = self._peak = _fresh_peak_bytes()
        self.inputs = 0

    def __call__(self, data: bytes) -> None:
        """Try one input."""
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        before = _fresh_peak_bytes()
        began, cpu = time.monotonic(), time.thread_time()
        try:
            self._outcomes[self._target.run(data)] += 1
        except Exception as error:
            self._find("exception", _place(error), f"{type(error).__name__}: {error}"[:500], data)
        spent, wall, peak = time.thread_time() - cpu, time.monotonic() - began, _peak_bytes()
        faulthandler.cancel_dump_traceback_later()
        if spent > CPU_S + self._target.limit_s or wall > WALL_S + self._target.limit_s:
            self._find("time", "", f"{spent:.1f} s of processor time, {wall:.1f} s in all, for {len(data)} bytes", data)
        if (grown := peak - before) > GROWTH_BYTES + GROWTH_FACTOR * len(data):
            self._find("memory", "", f"{grown:,} bytes more memory for {len(data)} bytes", data)
        if peak - self._start > TOTAL_BYTES:
            self._find("memory", "total", f"{peak - self._start:,} bytes more memory than at the start", data)
        self._peak = max(self._peak, peak)
        self._slowest = max(self._slowest, spent)
        self.inputs += 1
        if self.inputs >= self._runs or time.monotonic() > self._noted + 0.5:
            self.note()

    def _find(self, kind: str, place: str, what: str, data: bytes) -> None:
        if (key := f"{kind} {place}") not in self._seen:
            self._seen.add(key)
            shown = base64.b64encode(data[:MAX_INPUT]).decode()
            self._findings.append({"kind": kind, "what": f"{what} {place}".strip(), "data": shown})
            self.note()

    def note(self) -> None:
        """Write down what is known so far: libFuzzer ends the process without a last word of ours."""
        self._noted = time.monotonic()
        known = {"findings": self._findings, "outcomes": self._outcomes, "slowest_cpu_s": round(self._slowest, 3)}
        known |= {"inputs": self.inputs, "peak_bytes": self._peak - self._start}
        temporary = self._report.with_suffix(".new")
        temporary.write_text(json.dumps(known))
        temporary.rename(self._report)


def _place(error: BaseException) -> str:
    """Where in our package an exception came from."""
    frames = [each for each in traceback.extract_tb(error.__traceback__) if "autograder" in each.filename]
    return f"at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _fresh_peak_bytes() -> int:
    """`_peak_bytes`, after a reset to what is held now, where the kernel can: what changed an input does not count."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    """The most memory that this process has held. Not `getrusage` on Linux, which begins with the parent's."""
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(b"VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _drive(folder: Path, name: str, seconds: float, seed: int, runs: int) -> None:
    """Fuzz `name` in this process. Under atheris it does not return."""
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        atheris = None
    guided = atheris.instrument_imports(include=["autograder"]) if atheris else contextlib.nullcontext()
    with guided:
        target = importlib.import_module("fuzz_targets").TARGETS[name]
    seeds = target.seeds()
    for each in seeds:  # what is loaded at first use, torch above all, is no growth
        with contextlib.suppress(Exception):
            target.run(each)
    gc.collect()
    gc.freeze()  # else a collection now and then looks like a slow input
    watch = Watch(target, folder, runs)
    if atheris is None:
        _at_random(watch, target, seeds, folder / "input", seconds, seed, runs)
        return
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, each in enumerate(seeds):
        (corpus / f"{number:03}").write_bytes(each)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, max_size))
        return bytes(target.mutate(data, rng)[:max_size])

    options = {
        "seed": seed % (1 << 31) or 1, "runs": runs, "max_total_time": max(1, round(seconds)), "max_len": MAX_INPUT,
        "mutate_depth": 2, "timeout": 2 * HANG_S, "rss_limit_mb": 4096, "artifact_prefix": f"{folder}/", "print_final_stats": 1,
    }  # fmt: skip
    arguments = [sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus)]
    atheris.Setup(arguments, watch, custom_mutator=mutate)
    atheris.Fuzz()


def _at_random(
    watch: Watch, target: Any, seeds: Sequence[bytes], current: Path, seconds: float, seed: int, runs: int
) -> None:
    """The seeds, then changes of them, without a look at what they reach."""
    rng = random.Random(seed)
    end = time.monotonic() + seconds
    while (watch.inputs < runs or runs < 0) and time.monotonic() < end:
        data = seeds[watch.inputs] if watch.inputs < len(seeds) else rng.choice(seeds)
        if watch.inputs >= len(seeds):
            for _ in range(rng.choice((1, 1, 2, 4))):
                data = target.mutate(data, rng)[:MAX_INPUT]
        current.write_bytes(data)  # of use if the process does not survive it
        watch(data)
    watch.note()


def _show(figures: FuzzFigures) -> None:
    print(f"{figures.engine}, seed {figures.seed}")
    for name, each in figures.targets.items():
        reached = f", {each.edges} edges, {each.features} features" if each.edges is not None else ""
        print(
            f"{name:7} {each.inputs:9,} inputs{reached}; grew by {each.peak_bytes >> 20} MiB; "
            f"slowest input {each.slowest_cpu_s:.3f} s of processor time"
        )
        print(f"        {', '.join(f'{word} {count:,}' for word, count in each.outcomes.items())}")
    for found in figures.findings:
        print(f"FOUND in {found.target}: {found.kind}: {found.what}\n  {found.data[:400]}")
    print(f"{figures.inputs:,} inputs in {figures.seconds} s, {len(figures.findings)} findings")


def main() -> int:
    """Exit status 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0, help="of fuzzing, over all targets (default: 60)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=-1, help="inputs of each target after which it ends")
    parser.add_argument("--target", choices=SHARES, action="append", help="default: all")
    parser.add_argument("--json", action="store_true", help="figures for programs")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)  # the process that fuzzes, its folder
    given = parser.parse_args()
    if given.drive:
        _drive(given.drive, given.target[0], given.seconds, given.seed, given.runs)
        return 0
    runs = None if given.runs < 0 else given.runs
    figures = fuzz(given.seconds, given.seed, runs, tuple(given.target or SHARES))
    print(json.dumps(dataclasses.asdict(figures), indent=1)) if given.json else _show(figures)
    return int(bool(figures.findings))


if __name__ == "__main__":
    sys.exit(main())
