"""Does the measurement of speed hold on this machine? Attacks and honest code on a GPU (or the CPU), with figures.

    PYTHONPATH=. python tests/benchmarks/gpu_timing.py [--device cuda|cpu] [--isolation both|plain|walls] [--time 480]

Prints one line of JSON for everything that was tried, as soon as it is known, and a summary at the end:

    machine      what this is
    memory       what it takes to make, send, take and map device memory, by size, between processes
    transport    whether a worker can use device memory of the judge's, by isolation, and other ways of sharing it
    blocks       what a block costs beside its calls, and how far equal blocks differ
    early        a worker that answers before its GPU has finished: how often noise was met, how often it was waited for
    case         one submission of tests/submissions/timing: how its measurement ended, and how it should

Everything runs in forks with a time limit, so one failure ends nothing else. Needs torch (with CUDA for `--device cuda`:
cuda-bindings too), numpy, msgspec and pydantic; neither nbgrader nor a network. The exit code is 1 if an attack passed.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import os
import platform
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from on_device import REPOSITORY, in_fork, tell  # type: ignore[import-not-found]

from autograder.checks import CheckFailed, SubmissionFault, SubmissionRaised, fail
from autograder.judging.blocks import Feed, WorkerSide
from autograder.judging.remote import RunningSubmission
from autograder.judging.timed import Inconclusive, NeedsReview, Timed
from autograder.sandboxing.sandbox import (
    LandlockSandbox,
    Limits,
    NamespaceSandbox,
    ProcessSandbox,
    Sandbox,
    gpu_devices,
)
from autograder.spec import Threshold
from autograder.worker import device_memory
from gpu_env import device
from gpu_env.paired import Rule

CORPUS = REPOSITORY / "tests" / "submissions" / "timing"
RULE = Rule(processes=1, pairs=(10, 20, 40))
LIMITS = Limits(cpu_s=600, memory_bytes=16 << 30, processes=512, scratch_bytes=2 << 30)
LOOP = """
import torch

def attend(q, k, v):
    return torch.stack([torch.softmax(k @ row / 8.0, 0) @ v for row in q])
"""
PRODUCT = """
import torch

def attend(q, k, v):
    return torch.softmax(q @ k.T / 8.0, -1) @ v
"""
NOTHING = "def attend(q, k, v): return q"
EARLY = (CORPUS / "gpu_hostile" / "synchronises_nothing.py", CORPUS / "gpu_hostile" / "queues_long_work_first.py")
Job = Callable[[], Any]


def inputs_of(size: int, where: str) -> Callable[[random.Random], list[torch.Tensor]]:
    """Draws queries, keys and values of `size` positions on a device."""

    def inputs(rng: random.Random) -> list[torch.Tensor]:
        generator = torch.Generator(where).manual_seed(rng.getrandbits(63))
        return [torch.randn(size, 64, generator=generator, device=where) for _ in range(3)]

    return inputs


def right(result: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Attention, computed in float64."""
    q, k, v = (each.double() for each in (q, k, v))
    expected = torch.softmax(q @ k.T / 8.0, -1) @ v
    if not torch.allclose(result.double(), expected, rtol=1e-4, atol=1e-5):
        fail("Attention is not what it should be.")


# ---------------------------------------------------------------------------------------------- figures


def machine() -> dict[str, Any]:
    """What this is."""
    found: dict[str, Any] = device.describe().as_dict() | {"kernel": platform.release(), "user": os.geteuid()}
    found["devices"] = gpu_devices()
    with contextlib.suppress(ImportError):
        import cuda.bindings

        found["cuda_bindings"] = cuda.bindings.__version__
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"torch_cuda": torch.version.cuda, "gpu": properties.name, "l2_bytes": properties.L2_cache_size}
        found["granularity_bytes"] = device_memory.round_up(1)
    return found


def time_of(job: Job, times: int = 20) -> float:
    """Median microseconds of a call of `job`."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        job()
        taken.append(time.perf_counter() - began)
    return round(median(taken) * 1e6, 1)


def memory_figures() -> list[dict[str, float]]:
    """Microseconds of the steps that one block takes on a GPU, by MiB of memory."""
    figures = []
    for mib in (2, 32, 256, 1024):
        size = mib << 20
        window, other = device_memory.Window(size), device_memory.Window(size)
        made = [device_memory.Allocation.create(size) for _ in range(3)]
        descriptors = [each.descriptor() for each in made]
        numbers = iter(range(10**6))
        figure: dict[str, float] = {"MiB": mib}
        figure["create_us"] = time_of(lambda: device_memory.Allocation.create(size).close())  # noqa: B023 - called at once
        figure["export_us"] = time_of(lambda: os.close(made[0].descriptor()))  # noqa: B023
        figure["map_us"] = time_of(lambda: window.map(made[next(numbers) % 3]))  # noqa: B023

        def take() -> None:
            taken = device_memory.Allocation.take(descriptors[next(numbers) % 3], size)  # noqa: B023
            other.map(taken)  # noqa: B023
            taken.close()

        figure["take_and_map_us"] = time_of(take)
        window.map(made[0])
        tensor, _ = window.tensor()
        tensor.fill_(7)
        torch.cuda.synchronize()
        figure["seen_in_the_tensor"] = float(tensor[-1].item())
        figures.append(figure)
        for each in (window, other):
            each.close()
        for allocation in made:
            allocation.close()
        for descriptor in descriptors:
            os.close(descriptor)
    return figures


def side_of(source: str, sandbox: Sandbox, where: str, size: int, seed: int = 1, check: Any = right) -> WorkerSide:
    """A side that runs `source`."""
    rng = random.Random(seed)
    running = RunningSubmission([("cell", source)], sandbox, LIMITS, call_s=60)
    feed = Feed(inputs_of(size, where), rng)
    return WorkerSide(
        running, "attend", feed, rng, right=check, output=lambda q, k, v: torch.empty_like(q), device=where
    )


def transport(sandbox: Sandbox, where: str) -> dict[str, Any]:
    """Whether a block runs at all, and how long the first ones take."""
    side = side_of(PRODUCT, sandbox, where, 64)
    began = time.monotonic()
    side.fresh()
    started_s = time.monotonic() - began
    try:
        return {"works": True, "started_s": started_s, "blocks_ms": [1e3 * side.time_block(2) for _ in range(4)]}
    finally:
        side.close()


def torch_ipc(sandbox: Sandbox) -> dict[str, Any]:
    """Whether PyTorch's own handles cross to a worker; for information, not used."""
    tensor = torch.full((1 << 22,), 3.0, device="cuda")
    torch.cuda.synchronize()
    storage: Any = tensor.untyped_storage()
    parts = list(storage._share_cuda_())
    source = """
import torch
def attend(parts):
    torch.cuda.init()
    storage = torch.UntypedStorage._new_shared_cuda(*parts)
    t = torch.empty(0, dtype=torch.float32, device="cuda").set_(storage, 0, (4,))
    return t.tolist()
"""
    running = RunningSubmission([("cell", source)], sandbox, LIMITS, call_s=60)
    try:
        return {"works": running.attend(parts)}
    finally:
        running.close()


def block_figures(sandbox: Sandbox, where: str, size: int) -> dict[str, Any]:
    """What a block costs that does nothing, and how far equal blocks of real work differ from their median."""
    nothing = side_of(NOTHING, sandbox, where, size, check=lambda *_: None)
    found: dict[str, Any] = {"bytes_per_call": 4 * 64 * 4 * size}
    try:
        for calls in (1, 10, 100):
            found[f"empty_us_{calls}_calls"] = round(1e6 * median(nothing.time_block(calls) for _ in range(9)), 1)
        found["round_trip_us"] = round(1e6 * median(nothing.round_trips()), 1)
    finally:
        nothing.close()
    side = side_of(PRODUCT, sandbox, where, size)
    try:
        calls = max(1, round(0.02 / (min(side.time_block(20) for _ in range(4)) / 20)))
        times = [side.time_block(calls) for _ in range(20)]
        middle = median(times)
        found |= {"calls": calls, "block_ms": 1e3 * middle, "us_per_call": 1e6 * middle / calls}
        found["spread_percent"] = [
            round(100 * (each / middle - 1), 2) for each in (min(times), sorted(times)[-2], max(times))
        ]
        began = time.monotonic()
        side.time_block(calls)
        found["block_and_preparation_ms"] = 1e3 * (time.monotonic() - began)
    finally:
        side.close()
    return found


def early(path: Path, sandbox: Sandbox, size: int) -> dict[str, Any]:
    """Ten blocks of a worker that answers too early: how each ended, and its time against honest ones."""
    honest = side_of(LOOP, sandbox, "cuda", size, seed=2)
    try:
        honest.time_block(2)
        honest_ms = 1e3 * median(honest.time_block(2) for _ in range(5))
    finally:
        honest.close()
    ends = []
    for seed in range(10):
        side = side_of(path.read_text(), sandbox, "cuda", size, seed)
        try:
            side.fresh()
            ends.append(["right", round(1e3 * side.time_block(2), 2)])
            ends.append(["right", round(1e3 * side.time_block(2), 2)])
        except CheckFailed as error:
            ends.append([str(error), None])
        finally:
            side.close()
    return {"attack": path.stem, "honest_loop_ms": round(honest_ms, 2), "ends": ends}


# ---------------------------------------------------------------------------------------------- submissions


def case(path: Path, sandbox: Sandbox, where: str, size: int) -> dict[str, Any]:
    """How the measurement of one submission ends."""
    thresholds = {"gpu" if where == "cuda" else "cpu": Threshold(2.0, 1.0, "loop 1, product far above 2", "any")}
    timed = Timed([("cell", path.read_text())], sandbox, LIMITS, thresholds, seed="secret", call_s=120, rule=RULE)
    began = time.monotonic()
    said = ""
    try:
        timed.expect(
            "attend",
            reference=LOOP,
            inputs=inputs_of(size, where),
            right=right,
            output=lambda q, k, v: torch.empty_like(q),
        )
        ended = "PASSED"
    except (CheckFailed, SubmissionRaised, SubmissionFault) as error:
        ended, said = "FAILED", str(error)
    except NeedsReview as error:
        ended, said = "REVIEW", str(error)
    except Inconclusive as error:
        ended, said = "INCONCLUSIVE", str(error)
    figures = {name: round(value, 3) for name, value in timed.measurements.items()}
    return {"ended": ended, "said": said[:600], "seconds": round(time.monotonic() - began, 1), "measured": figures}


def expected(path: Path) -> list[str]:
    """How a submission's measurement should end."""
    found = re.search(r"^ends as: ([A-Z ]+)$", path.read_text(), re.M)
    return found[1].split() if found else ["PASSED"]


def cases(where: str, pattern: str) -> list[Path]:
    """The submissions to try, those for GPUs first, honest ones among the hostile."""
    kinds = ["gpu_hostile", "gpu_honest"] if where == "cuda" else []
    found = [path for kind in (*kinds, "hostile", "honest") for path in sorted((CORPUS / kind).glob("*.py"))]
    return [
        path for path in found if fnmatch.fnmatch(path.stem, pattern) and (where == "cpu" or path.stem != "uses_numpy")
    ]


@contextlib.contextmanager
def sandboxes(which: str, where: str) -> Iterator[list[Sandbox]]:
    """The strongest walls to be had, and a plain process. What is on PYTHONPATH beside this repository workers see too."""
    more = [each for each in os.environ.get("PYTHONPATH", "").split(":") if each and Path(each).resolve() != REPOSITORY]
    devices = gpu_devices() if where == "cuda" else ()
    with contextlib.ExitStack() as stack:
        found: list[Sandbox] = []
        for kind in (NamespaceSandbox, LandlockSandbox) if which in ("walls", "both") else ():
            try:
                made = kind(["torch"], import_paths=more, devices=devices)
            except Exception as error:
                tell("sandbox", name=kind.names()[0], error=str(error)[-1500:])
                continue
            stack.callback(made.close)
            tell("sandbox", **vars(made.isolation), threads=made.threads, not_preloaded=made.preload_failed)
            found.append(made)
            break
        if which in ("plain", "both") or not found:
            found.append(ProcessSandbox(import_paths=more))
        yield found


def main() -> int:
    """Try everything; 1 if an attack passed."""
    parser = argparse.ArgumentParser(description="Measurement of speed: attacks, honest code, figures.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if gpu_devices() else "cpu")
    parser.add_argument("--isolation", choices=("both", "plain", "walls"), default="both")
    parser.add_argument("--only", default="*", help="pattern of names of submissions")
    parser.add_argument("--time", type=float, default=480.0, help="seconds after which nothing more is begun")
    parser.add_argument("--size", type=int, default=0, help="positions; 384 on a GPU, 128 on a CPU")
    given = parser.parse_args()
    where, size = given.device, given.size or (384 if given.device == "cuda" else 128)
    end = time.monotonic() + given.time
    torch.set_num_threads(1)
    tell("machine", **in_fork(machine, 60))
    counts: dict[str, int] = {}
    wrong: list[str] = []
    with sandboxes(given.isolation, where) as found:
        if where == "cuda":
            tell("memory", figures=in_fork(memory_figures, 90))
        for sandbox in found:
            name = sandbox.isolation.name
            tell("transport", isolation=name, **in_fork(lambda s=sandbox: transport(s, where), 120))
            if where == "cuda":
                tell("torch IPC", isolation=name, **in_fork(lambda s=sandbox: torch_ipc(s), 90))
            tell("blocks", isolation=name, **in_fork(lambda s=sandbox: block_figures(s, where, size), 120))
        for path in EARLY if where == "cuda" else ():
            tell("early", **in_fork(lambda p=path: early(p, found[0], size), 150))
        for path in cases(where, given.only):
            if time.monotonic() > end:
                counts["not tried"] = counts.get("not tried", 0) + 1
                continue
            ended = in_fork(lambda p=path: case(p, found[0], where, size), 150)
            said = ended.get("ended", "ERROR")
            fine = said in (*expected(path), "INCONCLUSIVE")
            tell("case", submission=f"{path.parent.name}/{path.stem}", fine=fine, expected=expected(path), **ended)
            counts[said] = counts.get(said, 0) + 1
            if not fine:
                wrong.append(f"{path.parent.name}/{path.stem}: {said}")
    tell("summary", device=where, counts=counts, not_as_expected=wrong)
    return int(any("hostile" in each and each.endswith("PASSED") for each in wrong))


if __name__ == "__main__":
    sys.exit(main())
