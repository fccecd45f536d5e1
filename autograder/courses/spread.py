"""Work of ours spread over forks of this process, as many at once as there are processors.

For what holds one processor and is not a submission: a fork has all that is loaded here, and its memory is its own.
Covered: items go to whoever is free; an exception ends the whole work and is raised here; whoever stops early waits for what
runs, and nothing is cut off in the middle, unless a fork is killed: then the others are too; forks end with this process.
Not covered: time limits; systems without fork, and one processor, where all is done in this process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from autograder.worker import walls

__all__ = ["WorkFailed", "spread"]

Work = Callable[[int], str]


class WorkFailed(RuntimeError):
    """A fork ended without an answer."""


_work: Work | None = None
"""What a fork is to do. It finds it here, as a function of a function cannot be sent."""


def spread(count: int, work: Work, processes: int) -> Generator[tuple[int, str], None, None]:
    """Call `work` for each of the numbers below `count`; gives the numbers with its answers, as they come.

    Raises what `work` raises in this process, in a fork a `WorkFailed` with its text.
    """
    processes = min(count, processes)
    if processes < 2 or "fork" not in multiprocessing.get_all_start_methods():
        for number in range(count):
            yield number, work(number)
        return
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(processes, fork, initializer=_begin, initargs=(os.getpid(), work))
    waiting = iter(range(count))
    try:
        # No more than there are forks: what was handed to the pool cannot be taken back for certain.
        running = {pool.submit(_do, number): number for number in islice(waiting, processes)}
        while running:
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                number = running.pop(done)
                try:
                    answer = done.result()
                except BrokenProcessPool:
                    raise WorkFailed("a process of ours ended in the middle of its work") from None
                except Exception as error:
                    raise WorkFailed(str(error) or type(error).__name__) from error
                running |= {pool.submit(_do, following): following for following in islice(waiting, 1)}
                yield number, answer
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(parent: int, work: Work) -> None:
    """In a fork, before its first item."""
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; what runs is finished
    if sys.platform == "linux":
        walls.set_parent_death_signal()
        if os.getppid() != parent:
            os._exit(1)


def _do(number: int) -> str:
    assert _work
    return _work(number)
