"""Commands that are timed and watched: when each line came, CPU time and memory of all their processes.

Memory is the proportional share (PSS): a page that ten forks share counts once. CPU time is what the kernel counted for each
process when it was last seen, so up to `LOOK_S` of each one's last moments are missing.
Not covered: machines without Linux' /proc; processes of other users than the one who looks.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["CORES", "Watched", "watch"]

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
LOOK_S = 0.1
MEMORY_EVERY = 10
"""Of so many looks one is at memory too, which costs more."""


@dataclass
class Watched:
    """A command that ran. Times are in seconds from its start."""

    lines: list[tuple[float, str]] = field(default_factory=list)
    seconds: float = 0.0
    cpu: list[tuple[float, float]] = field(default_factory=list)
    """At each look the CPU seconds used so far."""
    memory: list[tuple[float, int]] = field(default_factory=list)
    """At some looks the bytes held."""

    def at(self, pattern: str) -> list[float]:
        """When the lines came that match."""
        return [at for at, line in self.lines if re.search(pattern, line)]

    def cpu_s(self, begin: float = 0.0, end: float = float("inf")) -> float:
        """CPU seconds used between two moments."""
        inside = [used for at, used in self.cpu if begin <= at <= end]
        return inside[-1] - inside[0] if inside else 0.0

    def peak_bytes(self) -> int:
        """The most memory that was held at a look."""
        return max((held for _, held in self.memory), default=0)


def watch(*command: str, cwd: Path) -> Watched:
    """Run a command of this Python. Ends the program with its output if it fails."""
    seen = Watched()
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, *command], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        over = threading.Event()
        looking = threading.Thread(target=_look, args=(process.pid, began, seen, over))
        looking.start()
        assert process.stdout
        for line in process.stdout:
            seen.lines.append((time.monotonic() - began, line.rstrip()))
        process.wait()
        seen.seconds = time.monotonic() - began
        over.set()
        looking.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n" + "\n".join(line for _, line in seen.lines[-40:]))
    return seen


def _look(pid: int, began: float, seen: Watched, over: threading.Event) -> None:
    used: dict[int, float] = {}
    tick = os.sysconf("SC_CLK_TCK")
    number = 0
    while not over.wait(LOOK_S):
        family = _family(pid)
        for each in family:
            with contextlib.suppress(OSError, IndexError):
                fields = Path(f"/proc/{each}/stat").read_bytes().rpartition(b")")[2].split()
                used[each] = (int(fields[11]) + int(fields[12])) / tick
        now = time.monotonic() - began
        seen.cpu.append((now, sum(used.values())))
        if number % MEMORY_EVERY == 0:
            seen.memory.append((now, sum(map(_pss, family))))
        number += 1


def _family(pid: int) -> list[int]:
    """`pid` and its descendants."""
    family = [pid]
    for each in family:  # grows as it goes
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{each}/task"):
                with contextlib.suppress(OSError):
                    family += map(int, Path(f"/proc/{each}/task/{thread}/children").read_text().split())
    return family


def _pss(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0
