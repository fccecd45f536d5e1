"""Grade many submissions: find them, skip what is graded, judge the rest in parallel, store every result at once.

This process gets warm once (suite, oracles, models, zygote) and forks a judge for each submission. It takes no findings on
trust: a judge that dies, hangs or sends nonsense has its submission judged once more, then the grade is withheld.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import secrets
import selectors
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from autograder import oracle, results, suite
from autograder.finding import Finding, Outcome
from autograder.grade import Score, score
from autograder.judge import judge, rehearse
from autograder.manifest import Manifest
from autograder.results import IsolationRecord, Result
from autograder.sandbox import Limits, Sandbox
from autograder.submission import Submission, UnreadableSubmission
from autograder.suite import Suite
from autograder.worker import walls
from gpu_env import device

__all__ = ["Graded", "Grader", "Job", "discover", "first_interrupt", "stored"]

JUDGE_TRIES = 2
SILENCE_S = 60.0
"""How much longer than one check may last a judge may be silent; half of it is what a worker may take to start."""
PASSING = frozenset({Outcome.BROKEN, Outcome.INCONCLUSIVE, Outcome.SKIPPED})
"""Outcomes that may be others next time (a model was missing, a machine was busy): the submission is judged again."""


@dataclass(frozen=True)
class Job:
    """One submission to grade: who, and either its content or why there is none."""

    student: str
    submission: Submission | None
    problem: str = ""


@dataclass(frozen=True)
class Graded:
    """What became of a job. `result` is `None` where nothing could be judged; `problem` then says why."""

    student: str
    result: Result | None
    score: Score | None
    problem: str = ""
    fresh: bool = True

    @property
    def status(self) -> str:
        if self.score is None:
            return "withheld"
        return "withheld" if self.score.withheld else "graded"


def discover(submitted: Path, name: str, manifest: Manifest, students: Iterable[str] = ()) -> list[Job]:
    """The submissions for `name` under nbgrader's `submitted/` folder, by student. Unreadable ones are jobs with a problem."""
    from autograder import pair

    wanted = set(students)
    jobs = []
    for folder in sorted(submitted.glob(f"*/{name}")):
        student = folder.parent.name
        if student.startswith(".") or (wanted and student not in wanted):  # nbgrader skips hidden folders too
            continue
        try:
            student.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(student).decode(errors="backslashreplace")
            jobs.append(Job(shown, None, "The name of the folder is not valid UTF-8. Rename it, then grade again."))
            continue
        try:
            jobs.append(Job(student, pair.read(folder, manifest, graded_only=True).submission))
        except UnreadableSubmission as error:
            jobs.append(Job(student, None, str(error)))
        except Exception as error:  # a mistake of ours that one submission brings to light must not stop the others
            why = (
                f"The autograder could not read it ({type(error).__name__}: {error}). Please report this fault of ours."
            )
            jobs.append(Job(student, None, why))
    return jobs


def stored(loaded: Suite, folder: Path, job: Job, minimum_level: int, tier: str = "cpu") -> Graded | None:
    """What an earlier run found out about the same content at `minimum_level` of isolation or above, if it is stored.

    Findings that may have been the machine's fault do not count: they are tried again.
    """
    if job.submission is None:
        return Graded(job.student, None, None, job.problem, fresh=False)
    result = results.load(_file(loaded, folder, job, tier))
    if result is None or result.isolation.level < minimum_level:
        return None
    found = (result.student, result.submission_hash, result.suite_hash)
    if found != (job.student, job.submission.hash, loaded.hash):
        return None
    if any(each.outcome in PASSING for each in result.findings):
        return None
    return _graded(loaded, result, fresh=False)


def _file(loaded: Suite, folder: Path, job: Job, tier: str) -> Path:
    assert job.submission is not None
    name = results.key(job.submission.hash, loaded.hash, tier)
    return results.path(folder, loaded.assignment.name, job.student, name)


def _graded(loaded: Suite, result: Result, *, fresh: bool) -> Graded:
    return Graded(result.student, result, score(loaded.assignment, result.findings, result.withheld), fresh=fresh)


@dataclass
class Grader:
    """Grades submissions of one suite in one sandbox, results under `folder`."""

    suite: Suite
    sandbox: Sandbox
    folder: Path
    limits: Limits = field(default_factory=Limits)
    workers: int = field(
        default_factory=lambda: len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    )
    tier: str = "cpu"
    stopping: bool = False

    def warm_up(self) -> None:
        """Load what all judges share: the suite's modules, the values of its oracles, what pytest imports."""
        rehearse(self.suite.assignment, self.suite.files, self.suite.manifest, self.sandbox)
        oracle.prepare()
        gc.collect()
        gc.freeze()  # the collector of a fork must not touch, and so copy, what is shared

    def grade(self, jobs: Iterable[Job], done: Callable[[Graded], None]) -> None:
        """Judge `jobs` in parallel; `done` is called with each as it ends, its result stored.

        After `stop` (or Ctrl-C) no further job is started, those running are finished; a second Ctrl-C ends them too.
        Raises `StoreError` when results cannot be written; what was stored stays.
        """
        waiting = [(job, 1) for job in jobs][::-1]
        running: dict[int, _Running] = {}
        with selectors.DefaultSelector() as selector, first_interrupt(self.stop):
            try:
                while running or (waiting and not self.stopping):
                    while waiting and len(running) < self.workers and not self.stopping:
                        started = self._start(*waiting.pop(), [each.slot for each in running.values()])
                        running[started.pipe] = started
                        selector.register(started.pipe, selectors.EVENT_READ)
                    for ready, _ in selector.select(timeout=0.2):
                        running[ready.fd].read()
                    for each in [each for each in running.values() if each.ended or each.silent_s() > self._patience()]:
                        selector.unregister(each.pipe)
                        del running[each.pipe]
                        graded = self._finish(each)
                        if graded is None:
                            waiting.append((each.job, each.tries + 1))
                        else:
                            done(graded)
            finally:
                for each in running.values():
                    each.end()

    def stop(self) -> None:
        """Start no further job."""
        self.stopping = True

    def _start(self, job: Job, tries: int, taken: Collection[int]) -> _Running:
        seed = secrets.randbits(63)
        slot = next(number for number in range(self.workers) if number not in taken)
        parent = os.getpid()
        read, write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            self._judge_and_exit(job, seed, write, started, parent, slot)
        os.close(write)
        os.set_blocking(read, False)
        return _Running(job, tries, seed, pid, read, started, slot)

    def _limits(self, slot: int) -> Limits:
        """The limits of what runs in `slot`: a processor for each, else one submission's busy processes slow all others."""
        if self.workers < 2 or not hasattr(os, "sched_getaffinity"):
            return self.limits
        cores = sorted(os.sched_getaffinity(0))
        return dataclasses.replace(self.limits, core=cores[slot % len(cores)])

    def _patience(self) -> float:
        """Seconds without a sign of life after which a judge counts as hanging."""
        return self.suite.assignment.check_s + SILENCE_S

    def _judge_and_exit(self, job: Job, seed: int, write: int, started: float, parent: int, slot: int) -> None:
        """In the forked judge: into the pipe go signs of life, then findings as JSON. Does not return."""
        code = 1
        times = {"fork_s": time.monotonic() - started}
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; running ones are finished
            if sys.platform == "linux":
                walls.set_parent_death_signal()  # a killed run must not go on in the background; its workers go with us
                if os.getppid() != parent:
                    os._exit(code)
            assert job.submission is not None
            findings = judge(
                self.suite.assignment, self.suite.files, job.submission, self.suite.manifest, self.sandbox,
                seed=seed, limits=self._limits(slot), times=times, watchers=[_SignOfLife(write)],
            )  # fmt: skip
            text = json.dumps({"findings": [finding.model_dump(mode="json") for finding in findings], "times": times})
            with open(write, "wb") as stream:
                stream.write(text.encode("utf-8", errors="replace"))
            code = 0
        except BaseException as error:
            with contextlib.suppress(BaseException), open(write, "wb") as stream:
                stream.write(
                    json.dumps({"error": f"{type(error).__name__}: {error}"}).encode("utf-8", errors="replace")
                )
        finally:
            os._exit(code)

    def _finish(self, each: _Running) -> Graded | None:
        """Store what a judge found; `None` if it must be tried again. Ends a judge that hangs."""
        status = each.end()
        assert each.job.submission is not None
        try:
            if not each.ended:
                raise ValueError(f"no sign of life for {each.silent_s():.0f} s")
            data = json.loads(bytes(each.data)) if each.data.strip() else {}
            if status or "findings" not in data:
                raise ValueError(data.get("error") or f"it ended without findings, {_how(status)}")
            findings = tuple(Finding.model_validate(item) for item in data["findings"])
        except ValueError as error:
            if each.tries < JUDGE_TRIES and not self.stopping:
                return None
            why = f"The judge failed {each.tries} times ({str(error)[:1500]}). "
            why += "That is no fault of the submission. Run the same command again; `autograder doctor` tells of the machine."
            return Graded(each.job.student, None, None, why)
        isolation = self.sandbox.isolation
        result = Result(
            assignment=self.suite.assignment.name,
            student=each.job.student,
            source=each.job.submission.source,
            submission_hash=each.job.submission.hash,
            suite_hash=self.suite.hash,
            release=self.suite.manifest.release,
            framework=suite.version(),
            tier="gpu" if self.tier == "gpu" else "cpu",
            seed=each.seed,
            isolation=IsolationRecord(
                name=isolation.name, level=isolation.level, walls=isolation.walls, refused=isolation.refused
            ),
            machine=device.describe().as_dict(),
            models={},
            seconds=round(time.monotonic() - each.started, 3),
            times={name: round(value, 5) for name, value in data["times"].items()},
            withheld=each.job.submission.review,
            remarks=each.job.submission.remarks,
            findings=findings,
        )
        results.save(_file(self.suite, self.folder, each.job, self.tier), result)
        return _graded(self.suite, result, fresh=True)


@dataclass
class _Running:
    """A forked judge."""

    job: Job
    tries: int
    seed: int
    pid: int
    pipe: int
    started: float
    slot: int
    """Which of those that run at the same time it is."""
    data: bytearray = field(default_factory=bytearray)
    heard: float = field(default_factory=time.monotonic)
    ended: bool = False
    """It has said all that it will say."""

    def read(self) -> None:
        """Take what has arrived."""
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(self.pipe, 1 << 20)
            self.data += chunk
            self.heard = time.monotonic()
            self.ended = not chunk

    def silent_s(self) -> float:
        return time.monotonic() - self.heard

    def end(self) -> int:
        """Wait for its end, after killing it if it has not said all; gives the wait status."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        os.close(self.pipe)
        return os.waitpid(self.pid, 0)[1]


class _SignOfLife:
    """A pytest plug-in that writes a line break when a check begins: blank space before JSON means nothing."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def pytest_runtest_setup(self) -> None:
        os.write(self._pipe, b"\n")


def _how(status: int) -> str:
    """A wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


@contextlib.contextmanager
def first_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C calls `stop`, so that what runs can be finished; the second one is a KeyboardInterrupt."""
    asked = False

    def handle(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        stop()
        # not print, which may be what the signal interrupted
        os.write(2, b"\nFinishing what runs. Ctrl-C once more stops at once.\n")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
