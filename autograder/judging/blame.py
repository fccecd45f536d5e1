"""Whose fault it is that a worker did not answer in time or was killed: the submission's, or the machine's.

    time-out  A limit counts the time that the worker could have had: its own CPU time and the time that its processor
              idled. What others took is added to the limit (`FairLimit`), until the call has lasted four times as long.
              If the worker has still not had its time then, the machine is to blame, perhaps. A busy worker takes its
              time from itself, a sleeping one was kept from nothing: their limits stay what they are.
    kill      A signal that neither a limit nor the judge sent is the machine's fault if the memory that a worker may
              use is not there, else perhaps somebody else's.

"Perhaps", because a submission may hide its work (in children that the kernel does not account for) and kill itself. So
the machine is looked at again when the worker is gone: what is still wrong then is not the worker's doing. What is not
is *unexplained*; the submission is judged again, and unexplained a second time in the same check, or a third time at
all, it is the submission's own.

Covered: processes of others, other submissions, stolen time of virtual machines, CPU quotas and memory limits of control
groups, memory of the whole machine; a judge that is late itself.
Not covered: waiting for disks or swap; processes that student code started, killed instead of the worker; memory that
the kernel refuses to promise (vm.overcommit_memory=2); processes at level 0 that leave their parent; anything but Linux,
where limits are wall time.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection

from autograder.checks import SubmissionFault
from autograder.judging import machine
from autograder.sandboxing.isolation import GIB, Worker
from autograder.worker.wire import Deadline

__all__ = ["Blame", "FairLimit"]

PATIENCE = 4.0
"""How many times its limit a call may last if others keep it from running."""
LOOK_S = 0.25
"""Calls that end sooner cost no look at the machine."""
SHARE = 0.5
"""Of the time: with less taken by others a limit that could not be moved on stands."""
AGREES = 0.7
"""How much of the load that was seen with the worker must be there without it."""
UNEXPLAINED = 2
"""Unexplained faults, each in another check, that are let go."""


class FairLimit(Deadline):
    """A deadline that moves on by what others take of the worker's processor, up to `PATIENCE` times `seconds`.

    With `ours` also by the time in which the judge itself worked, or waited to: that is no part of a check's limit.
    """

    def __init__(self, seconds: float, blame: Blame, *, ours: bool = False) -> None:
        super().__init__(seconds)
        self.limit_s = seconds
        self._blame = blame
        self._ours = ours
        self._began = time.monotonic()
        self._end = self._began + PATIENCE * seconds
        self._least_s = 0.02 * seconds
        self._before: tuple[Worker, machine.Load] | None = None
        self._late = False
        self._taken_s = 0.0

    def left(self) -> float:
        """Seconds left. Raises `TimeoutError` when there are none."""
        now = time.monotonic()
        expired = now >= self._at
        if expired or (self._before is None and now - self._began >= LOOK_S):
            self.look()
        left = self._at - time.monotonic()
        if left <= (self._least_s if expired else 0) or now >= self._end:
            raise TimeoutError
        return min(left, self._end - now)

    def wait(self, sock: socket.socket) -> None:
        """Wait until there is something to read. Raises `TimeoutError`."""
        while True:
            left = self.left()
            try:
                sock.settimeout(left if self._before else min(left, LOOK_S))
                sock.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                continue
            except OSError:
                pass  # the line is broken: whoever reads it learns how
            if not self._late and time.monotonic() >= self._at:  # we were late ourselves: the answer lies here
                self._late = True
                self._at = time.monotonic() + 1.0
            return

    def look(self, *, again: bool = False) -> None:
        """Look at the machine, and move on by what others took since the last look. With `again` not for the first time."""
        if again and self._before is None:
            return
        self._blame.alive()
        worker = self._blame.worker
        load = machine.load_of(worker.pid, machine.cores_of(worker.limits.core)) if worker and worker.pid else None
        if load and self._before and self._before[0] is worker:
            before = self._before[1]
            taken = machine.taken(before, load)
            if self._ours:
                taken = max(taken, load.judge_queued - before.judge_queued)
                self._at += load.judge - before.judge
            self.forgive(taken)
        self._before = (worker, load) if worker and load else None

    def watch(self) -> None:
        """Have a look to begin with, if there was none."""
        if self._before is None:
            self.look()

    def forgive(self, seconds: float) -> None:
        """Do not count `seconds`."""
        self._at += seconds
        self._taken_s += seconds

    def taken(self) -> float:
        """The share of the time so far that others took."""
        return self._taken_s / max(time.monotonic() - self._began, 1e-9)

    def taken_unfairly(self) -> float:
        """That share, where the worker has not had its time. To be asked at the end, while there is a worker."""
        self.look(again=True)
        return self.taken() if self._at - time.monotonic() > self._least_s else 0.0


class Blame:
    """Decides for the submission under one judge; remembers its workers and limits.

    `doubted` are the checks in which earlier tries met something unexplained. `None` means that there will be no other
    try: then what is unexplained is the submission's own. `alive` is called when a limit is given more time.
    """

    def __init__(self, doubted: Collection[str] | None = None, alive: Callable[[], object] = lambda: None) -> None:
        self._doubted = doubted
        self.alive = alive
        self.doubts: list[str] = []
        """Checks in which this run met something unexplained, and let it go."""
        self.overloaded = False
        """Whether a fault was one of load: trying again is of use when the machine is quieter."""
        self.worker: Worker | None = None
        """The last one that was started."""
        self.check: FairLimit | None = None
        """The limit of the check at hand."""
        self._taken: float | None = None

    def limit(self, seconds: float) -> FairLimit:
        """A limit that begins now."""
        return FairLimit(seconds, self)

    def begin_check(self, seconds: float | None) -> None:
        """A check begins, with a limit of its own."""
        self.check = None if seconds is None else FairLimit(seconds, self, ours=True)
        self._taken = None

    def ran_out(self, limit: FairLimit) -> None:
        """A limit ended a call. To be told while there is a worker."""
        self._taken = limit.taken_unfairly()

    def excuse(self, fault: SubmissionFault, check: str) -> str | None:
        """Why `fault`, met in `check`, is not the submission's, or may not be; `None` if it is."""
        if self.worker is None:
            return None
        if not fault.timeout:
            return self._kill(self.worker, check)
        taken = self._taken
        if taken is None:  # the limit was somebody else's, as that of a client of a service
            taken = self.check.taken() if self.check else 0.0
        return self._overload(self.worker, taken, check) if taken >= SHARE else None

    def _overload(self, worker: Worker, taken: float, check: str) -> str | None:
        worker.kill()
        what = f"Others took {taken:.0%} of the time of your code's processor, so a limit of time says nothing. "
        if 1 - machine.free_share(worker.limits.core) >= AGREES * taken:
            self.overloaded = True
            return f"{what}The machine is overloaded: grade again when it is quieter, or with fewer --workers."
        return self._doubt(check, f"{what}They are gone now: grade again.")

    def _kill(self, worker: Worker, check: str) -> str | None:
        if worker.stray is None:
            return None
        name, worker.stray = worker.stray.name, None  # asked once: what it leads to later is its consequence
        how = f"Your code was killed by signal {name}, and by none of its limits. "
        available, promised = machine.available_memory(), worker.limits.memory_bytes
        if name == "SIGKILL" and available is not None and available < promised:
            return (
                f"{how}The machine is out of memory: {available / GIB:.1f} GiB are left, and one submission may use "
                f"{promised / GIB:.1f} GiB. Free some or grade with fewer --workers, then grade again."
            )
        return self._doubt(check, f"{how}Somebody on this machine did it, or your code itself: grade again.")

    def _doubt(self, check: str, text: str) -> str | None:
        if self._doubted is None or check in self._doubted or len(self._doubted) >= UNEXPLAINED:
            return None
        self.doubts.append(check)
        return text
