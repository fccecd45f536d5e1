"""Stop a worker from outside, with everything that it started, and see that it stood still.

Every process of the worker gets SIGSTOP, which none can catch, until a look at all of them finds each thread stopped and
nothing new. A process can arrange to be continued (a POSIX timer may send it SIGCONT), so the CPU clock of each is read
when it stands still and again before it goes on: a stopped process uses no nanosecond.

Covered:
- threads, children, children of children, processes that left their session or lost their parent (levels 1 to 3)
- forks: while the stopping goes on
- continued processes: told, not prevented
Not covered:
- GPUs: what was queued there goes on
- level 0: a process whose parent ended is no longer found
- systems without /proc: `PauseError`
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

from autograder.sandboxing.isolation import Worker

__all__ = ["PauseError", "Pausing", "below"]

STILL = frozenset("tTZX")
"""States of a thread that will not run before it is continued; the last two never again."""
STOP_S = 10.0
"""How long a worker may take to stand still; a thread in the middle of a system call gets there at its end."""
AGAIN_S = 2e-4


class PauseError(RuntimeError):
    """A worker could not be stopped."""


class Pausing:
    """Stops and continues one worker. `ran_s` is what it has used of CPUs while it was to stand still, in seconds."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._clocks: dict[int, int] | None = None
        self.ran_s = 0.0

    def stop(self) -> None:
        """Stop every process of the worker; returns when they stand still. Raises `PauseError`."""
        if self._clocks is not None:
            return
        if not os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children"):
            raise PauseError(
                "A worker can be stopped only where /proc lists children (Linux with CONFIG_PROC_CHILDREN)."
            )
        deadline = time.monotonic() + STOP_S
        known: set[int] = set()
        clocks: dict[int, int] | None = None
        while True:
            pids = self._worker.processes()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            before, clocks = clocks, None
            if known.issuperset(pids) and all(state in STILL for pid in pids for state in _states(pid)):
                clocks = {pid: _cpu_ns(pid) for pid in pids}
                if clocks == before:  # a thread counts as stopped some instructions before it is off its processor
                    self._clocks = clocks
                    return
            if time.monotonic() > deadline:
                raise PauseError(f"A worker of {len(pids)} processes did not stand still within {STOP_S:g} s.")
            known = set(pids)
            time.sleep(AGAIN_S)

    def look(self) -> float:
        """Add up what a stopped worker has used since it was stopped, or since the last look; gives `ran_s`."""
        if self._clocks is not None:
            for pid in self._worker.processes():
                now = _cpu_ns(pid)
                self.ran_s += max(0, now - self._clocks.get(pid, 0)) / 1e9
                self._clocks[pid] = now
        return self.ran_s

    def resume(self) -> None:
        """Let it go on."""
        pids, self._clocks = self._clocks or {}, None
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def below(pid: int) -> list[int]:
    """All processes that descend from `pid`, without it."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = list(_children(waiting.pop()))
        found += children
        waiting += children
    return found


def _children(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                yield from map(int, _read(f"/proc/{pid}/task/{thread}/children").split())


def _states(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                yield _read(f"/proc/{pid}/task/{thread}/stat").rpartition(b")")[2].split()[0].decode()


def _cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process; 0 when it is gone."""
    scheduled_process_clock = (~pid << 3) | 2  # CPUCLOCK_SCHED of linux/include/linux/posix-timers.h
    try:
        return time.clock_gettime_ns(scheduled_process_clock)
    except OSError:
        return 0


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # half the time of open() and its buffers
    try:
        return os.read(descriptor, 1 << 16)
    finally:
        os.close(descriptor)
