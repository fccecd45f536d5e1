"""Judge for a command on another machine: jobs in, results out, as lines of JSON over two pipes.

`autograder.runs.cluster` starts this as a process of its own on each machine (a process of Ray's has threads, and must not fork
judges). It is an ordinary `Grader`, as warm as the local one, that stores nothing.

    in   Setup, then any number of Order; the last one may say stop: what runs is finished, the rest is not begun
    out  Line: first what this machine has, then what became of each job, in the order in which they end

Covered: the driver is gone when its pipe is: then running judges are ended, and this process.
Not covered: the suite comes along with this machine's own checkout; whether it is the right one is the driver's to judge.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from autograder import results, suite
from autograder.errors import AutograderError
from autograder.grade import Graded
from autograder.results import IsolationRecord
from autograder.runs.grading import Grader, Job, isolation_record, model_hashes
from autograder.runs.progress import Activity
from autograder.sandboxing.sandbox import SandboxUnavailable

__all__ = ["Judged", "Line", "Order", "Ready", "Setup", "main"]

TELL_S = 1.0
"""How often at most the driver is told what goes on."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def line(self) -> bytes:
        """As one line."""
        return self.model_dump_json().encode() + b"\n"


class Setup(_Message):
    """What to judge, and how. `part` of `parts` processes on one machine share its processors."""

    assignment: str
    minimum_level: int
    tier: str
    workers: int
    part: int = 0
    parts: int = 1


class Order(_Message):
    """A job; without one: stop."""

    job: Job | None


class Ready(_Message):
    """What this machine judges with."""

    suite_hash: str
    framework: str
    tier: str
    isolation: IsolationRecord
    models: dict[str, str]


class Judged(_Message):
    """What became of a job: the result as it is to be stored, or why there is none."""

    student: str
    result: str
    problem: str


class Line(_Message):
    """One thing said: `doing` is what goes on, `refused` and `ended` are reasons, and the last thing said."""

    ready: Ready | None = None
    judged: Judged | None = None
    doing: tuple[Activity, ...] | None = None
    refused: str = ""
    ended: str = ""


class _Gone(Exception):
    """There is no driver any more."""


class _Orders:
    """The driver's lines, as they come."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""
        self.stop: Callable[[], None] = lambda: None

    def fileno(self) -> int:
        return self._descriptor

    def lines(self) -> list[bytes]:
        """The whole lines that have come; waits for something to come. Raises `_Gone`."""
        chunk = os.read(self._descriptor, 1 << 20)
        if not chunk:
            raise _Gone
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return lines

    def setup(self) -> Setup:
        while not (lines := self.lines()):
            pass
        (line,) = lines  # the driver sends no order before it knows that this machine is ready
        return Setup.model_validate_json(line)

    def read(self) -> list[Job] | None:
        """Jobs, for a `Grader`; `None` when there will be no more."""
        orders = [Order.model_validate_json(line) for line in self.lines()]
        jobs = [order.job for order in orders if order.job]
        if len(jobs) == len(orders):
            return jobs
        self.stop()
        return None


def main() -> None:
    """Judge until the driver says stop, or is gone."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # Ray blocks SIGINT, and student code would inherit that
    orders = _Orders(os.dup(0))
    # Nothing but lines goes to the driver, and nobody else reads its.
    with open(os.dup(1), "wb") as out, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)

        def say(line: Line) -> None:
            out.write(line.line())
            out.flush()

        try:
            _judge(orders.setup(), orders, say)
        except (_Gone, BrokenPipeError):
            os._exit(0)
        except (AutograderError, SandboxUnavailable) as error:
            say(Line(refused=str(error)))
        except Exception as error:
            traceback.print_exc()
            say(Line(refused=f"{type(error).__name__}: {error}"))


def _judge(setup: Setup, orders: _Orders, say: Callable[[Line], None]) -> None:
    from autograder.runs import run  # imports what only grading needs

    if setup.parts > 1:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[setup.part :: setup.parts])
    loaded = suite.load(setup.assignment)
    with run.sandbox_for(loaded, setup.minimum_level) as sandbox:
        grader = Grader(loaded, sandbox, None, workers=setup.workers, tier=setup.tier)
        grader.warm_up()
        ready = Ready(
            suite_hash=loaded.hash, framework=suite.version(), tier=run.tier_of(loaded),
            isolation=isolation_record(sandbox), models=model_hashes(loaded.assignment),
        )  # fmt: skip
        say(Line(ready=ready))

        def done(each: Graded) -> None:
            result = results.content_of(each.result).decode() if each.result else ""
            say(Line(judged=Judged(student=each.student, result=result, problem=each.problem)))

        told, before = time.monotonic(), ""

        def tick() -> None:
            nonlocal told, before
            now = str([(each.student, each.check) for each in grader.activities()])
            if now != before and time.monotonic() - told >= TELL_S:
                told, before = time.monotonic(), now
                say(Line(doing=tuple(grader.activities())))

        orders.stop = grader.stop
        grader.watch(tick)
        grader.grade((), done, orders)
