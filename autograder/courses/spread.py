"""Work of ours spread over forks of this process, as many at once as there are processors.

For what holds one processor and is not a submission: a fork has all that is loaded here, and its memory is its own.
Covered: items go to whoever is free; an exception ends the whole work and is raised here; whoever stops early waits for what
runs, and nothing is cut off in the middle; forks end with this process.
Not covered: time limits; systems without fork, and one processor, where all is done in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass

from autograder.worker import walls

__all__ = ["WorkFailed", "spread"]


class WorkFailed(RuntimeError):
    """A fork ended without an answer."""


@dataclass
class _Fork:
    pid: int
    orders: int
    """Where to write what is to be done."""
    answers: int


def spread(count: int, work: Callable[[int], str], processes: int) -> Generator[tuple[int, str], None, None]:
    """Call `work` for each of the numbers below `count`; gives the numbers with its answers, as they come.

    Raises what `work` raises in this process, in a fork a `WorkFailed` with its text.
    """
    if min(count, processes) < 2 or not hasattr(os, "fork"):
        for number in range(count):
            yield number, work(number)
        return
    waiting = iter(range(count))
    forks: list[_Fork] = []
    try:
        for _ in range(min(count, processes)):
            forks.append(_fork(work, forks))
        with selectors.DefaultSelector() as selector:
            for fork in forks:
                selector.register(fork.answers, selectors.EVENT_READ, fork)
                os.write(fork.orders, b"%d\n" % next(waiting))
            while selector.get_map():
                for key, _ in selector.select():
                    said = _line(key.data.answers)
                    if not said or said[0] < 0:
                        raise WorkFailed(said[1] if said else "a process of ours ended in the middle of its work")
                    if (following := next(waiting, None)) is None:
                        selector.unregister(key.data.answers)
                    else:
                        os.write(key.data.orders, b"%d\n" % following)
                    yield said
    finally:
        for fork in forks:
            os.close(fork.orders)  # it ends once it has nothing more to do
        for fork in forks:
            with contextlib.suppress(OSError):
                while os.read(fork.answers, 1 << 16):
                    pass  # it may be writing
            os.close(fork.answers)
            os.waitpid(fork.pid, 0)


def _fork(work: Callable[[int], str], others: list[_Fork]) -> _Fork:
    orders, ours = os.pipe()
    answers, theirs = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    if pid := os.fork():
        os.close(orders)
        os.close(theirs)
        return _Fork(pid, ours, answers)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; what runs is finished
        if sys.platform == "linux":
            walls.set_parent_death_signal()
            if os.getppid() != parent:
                os._exit(1)
        for other in others:  # whose orders end only when nobody else holds the pipe
            os.close(other.orders)
            os.close(other.answers)
        os.close(ours)
        os.close(answers)
        with open(orders, "rb") as lines, open(theirs, "wb") as out:
            for line in lines:
                try:
                    said = int(line), work(int(line))
                except Exception as error:
                    said = -1, str(error) or type(error).__name__
                out.write(json.dumps(said).encode() + b"\n")
                out.flush()
    finally:
        os._exit(0)


def _line(descriptor: int) -> tuple[int, str] | None:
    """What a fork says, -1 with the reason if its work failed. It says nothing more before it is asked again."""
    data = b""
    while not data.endswith(b"\n"):
        chunk = os.read(descriptor, 1 << 16)
        if not chunk:
            return None
        data += chunk
    number, answer = json.loads(data)
    return int(number), str(answer)
