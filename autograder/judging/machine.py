"""Load and memory of this machine: what the kernel tells, seen from outside the sandbox.

Covered: processors that other processes, other virtual machines or a quota took; memory of the machine and of the control
groups around us.
Not covered: disks and swap; anything but Linux with `/proc`, where nothing is known (`None`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Load", "available_memory", "cores_of", "free_share", "load_of", "taken"]

PROBE_S = 0.3


@dataclass(frozen=True)
class Load:
    """What the kernel has counted so far, in seconds."""

    at: float
    worker: float
    """CPU time of the worker's processes, living and waited for."""
    queued: float | None
    """Time that its threads waited for a processor; the living ones only."""
    idle: float
    """Of the processors that it may use."""
    throttled: float
    """Time that a quota kept processors from working for us; looks idle."""
    judge: float
    """CPU time of the thread that looks."""
    judge_queued: float
    """Time that it waited for a processor."""


def load_of(pid: int, cores: Collection[int]) -> Load | None:
    """The load now, of the process `pid` and its descendants and of `cores`; `None` where the kernel does not tell."""
    try:
        tick = os.sysconf("SC_CLK_TCK")
        idle, seen = 0.0, 0
        for line in Path("/proc/stat").read_text().splitlines():
            name, *fields = line.split()
            if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in cores:
                idle += (int(fields[3]) + int(fields[4])) / tick
                seen += sum(map(int, fields)) > 0
        family = _family(pid)
        used = _cpu_ticks(pid)
        for each in family[1:]:
            with contextlib.suppress(OSError):  # it ended meanwhile; who waited for it has its time
                used += _cpu_ticks(each)
    except (OSError, ValueError, AttributeError):
        return None
    if seen < len(cores):
        return None
    return Load(
        at=time.monotonic(),
        worker=used / tick,
        queued=_queued(family),
        idle=idle,
        throttled=_throttled(),
        judge=time.thread_time(),
        judge_queued=_waited("/proc/thread-self/schedstat"),
    )


def _stat(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()


def _cpu_ticks(pid: int) -> int:
    """CPU time of a process and of the children that it waited for."""
    return sum(map(int, _stat(pid)[11:15]))


def _family(pid: int) -> list[int]:
    """`pid` and its descendants, it first."""
    if Path(f"/proc/self/task/{os.getpid()}/children").exists():
        family = [pid]
        for each in family:  # grows as it goes
            with contextlib.suppress(OSError):
                for thread in os.listdir(f"/proc/{each}/task"):
                    with contextlib.suppress(OSError):
                        family += map(int, Path(f"/proc/{each}/task/{thread}/children").read_text().split())
        return family
    parents: dict[int, int] = {}  # a kernel without lists of children: look at every process there is
    for entry in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError, IndexError):
            parents[entry] = int(_stat(entry)[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def _queued(family: Collection[int]) -> float | None:
    if not Path("/proc/self/schedstat").exists():
        return None
    waited = 0.0
    for pid in family:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                waited += _waited(f"/proc/{pid}/task/{thread}/schedstat")
    return waited


def _waited(schedstat: str) -> float:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(schedstat).read_text().split()[1]) / 1e9
    return 0.0


def taken(before: Load, after: Load) -> float:
    """Seconds between two looks in which the worker could not run, as others had all processors that it may use.

    A program that uses one processor at a time is not hindered while another one idles, so several count for one.
    """
    lasted = after.at - before.at
    worker = after.worker - before.worker
    if before.queued is not None and after.queued is not None:
        queued = max(0.0, after.queued - before.queued)  # threads that ended took theirs along
        if worker + queued < 0.05 * lasted:
            return 0.0  # it wanted nothing
    idle = max(0.0, after.idle - before.idle - (after.throttled - before.throttled))
    return min(lasted, max(0.0, lasted - worker - idle - (after.judge - before.judge)))


def cores_of(core: int | None) -> set[int]:
    if core is not None:
        return {core}
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def free_share(core: int | None) -> float:
    """The share of a processor (`core`, or any) that a program gets here just now, 0 to 1: a loop of ours tries."""
    allowed = cores_of(None)
    with contextlib.suppress(OSError):
        if core is not None and allowed:
            os.sched_setaffinity(0, {core})
    try:
        began, used = time.monotonic(), time.thread_time()
        while (lasted := time.monotonic() - began) < PROBE_S:
            pass
        return min(1.0, (time.thread_time() - used) / lasted)
    finally:
        if allowed:
            os.sched_setaffinity(0, allowed)


def available_memory() -> int | None:
    """Bytes that programs here can still get, of the machine and of every control group around us; `None`: unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(fields["MemAvailable"].split()[0]) << 10)
    for folder in _control_groups("memory"):
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            with contextlib.suppress(OSError, ValueError, KeyError):  # "max" is no number: no limit
                spare = int(_fields(folder / "memory.stat")[cache])
                found.append(int((folder / limit).read_text()) - int((folder / used).read_text()) + spare)
    return max(0, min(found)) if found else None


def _throttled() -> float:
    """Seconds that quotas of control groups kept processors from working for us, all processors together."""
    found = [0.0]
    for folder in _control_groups("cpu"):
        with contextlib.suppress(OSError, ValueError):
            fields = _fields(folder / "cpu.stat")
            found.append(int(fields.get("throttled_usec", 0)) / 1e6 + int(fields.get("throttled_time", 0)) / 1e9)
    return max(found)


def _fields(file: Path) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in file.read_text().splitlines())


def _control_groups(controller: str) -> Iterator[Path]:
    """The folders of the control groups that this process is in, with those around them, of either version."""
    root = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and controller not in kinds.split(","):
                continue
            inner = Path(path.lstrip("/"))
            for base in (root / kinds, root) if kinds else (root, root / "unified"):
                yield from (base / each for each in (inner, *inner.parents))
