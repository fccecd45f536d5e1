"""Grade many submissions: find them, skip what is graded, judge the rest in parallel, store every result at once.

This process gets warm once (suite, oracles, models, zygote) and forks a judge for each submission. It takes no findings on
trust: a judge that dies or sends nonsense has its submission judged once more, then the grade is withheld.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from autograder import oracle, results, suite
from autograder.finding import Finding
from autograder.grade import Score, score
from autograder.judge import judge
from autograder.manifest import Manifest
from autograder.results import IsolationRecord, Result
from autograder.sandbox import Limits, Sandbox
from autograder.submission import Submission, UnreadableSubmission
from autograder.suite import Suite
from gpu_env import device

__all__ = ["Graded", "Grader", "Job", "discover", "stored"]

JUDGE_TRIES = 2


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
        if wanted and student not in wanted:
            continue
        try:
            jobs.append(Job(student, pair.read(folder, manifest).submission))
        except UnreadableSubmission as error:
            jobs.append(Job(student, None, str(error)))
    return jobs


def stored(loaded: Suite, folder: Path, job: Job, minimum_level: int, tier: str = "cpu") -> Graded | None:
    """What an earlier run found out about the same content at `minimum_level` of isolation or above, if it is stored."""
    if job.submission is None:
        return Graded(job.student, None, None, job.problem, fresh=False)
    result = results.load(_file(loaded, folder, job, tier))
    if result is None or result.submission_hash != job.submission.hash or result.suite_hash != loaded.hash:
        return None
    return None if result.isolation.level < minimum_level else _graded(loaded, result, fresh=False)


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
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    tier: str = "cpu"
    stopping: bool = False

    def warm_up(self) -> None:
        """Load what all judges share: the suite's modules and the values of its oracles."""
        import importlib

        for file in ("test_public", "test_hidden"):
            importlib.import_module(f"grading.{self.suite.assignment.name}.{file}")
        oracle.prepare()

    def grade(self, jobs: Iterable[Job], done: Callable[[Graded], None]) -> None:
        """Judge `jobs` in parallel; `done` is called with each as it ends, its result stored.

        After `stop` (or Ctrl-C) no further job is started, those running are finished. Raises `StoreError` when results
        cannot be written; what was stored stays.
        """
        waiting = [(job, 1) for job in jobs][::-1]
        running: dict[int, _Running] = {}
        with selectors.DefaultSelector() as selector, _interrupt(self):
            try:
                while running or (waiting and not self.stopping):
                    while waiting and len(running) < self.workers and not self.stopping:
                        started = self._start(*waiting.pop())
                        running[started.pipe] = started
                        selector.register(started.pipe, selectors.EVENT_READ)
                    for ready, _ in selector.select(timeout=0.2):
                        each = running[ready.fd]
                        if not each.read():
                            continue
                        selector.unregister(ready.fd)
                        del running[ready.fd]
                        graded = self._finish(each)
                        if graded is None:
                            waiting.append((each.job, each.tries + 1))
                        else:
                            done(graded)
            finally:
                for each in running.values():
                    each.kill()

    def stop(self) -> None:
        """Start no further job."""
        self.stopping = True

    def _start(self, job: Job, tries: int) -> _Running:
        seed = secrets.randbits(63)
        read, write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            self._judge_and_exit(job, seed, write, started)
        os.close(write)
        os.set_blocking(read, False)
        return _Running(job, tries, seed, pid, read, started)

    def _judge_and_exit(self, job: Job, seed: int, write: int, started: float) -> None:
        """In the forked judge: findings as JSON into the pipe. Does not return."""
        code = 1
        times = {"fork_s": time.monotonic() - started}
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; running ones are finished
            assert job.submission is not None
            findings = judge(
                self.suite.assignment, self.suite.files, job.submission, self.suite.manifest, self.sandbox,
                seed=seed, limits=self.limits, times=times,
            )  # fmt: skip
            text = json.dumps({"findings": [finding.model_dump(mode="json") for finding in findings], "times": times})
            with open(write, "wb") as stream:
                stream.write(text.encode("utf-8", errors="replace"))
            code = 0
        except BaseException as error:
            with contextlib.suppress(BaseException), open(write, "wb") as stream:
                stream.write(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode("utf-8", errors="replace"))
        finally:
            os._exit(code)

    def _finish(self, each: _Running) -> Graded | None:
        """Store what a judge found; `None` if it must be tried again."""
        _, status = os.waitpid(each.pid, 0)
        os.close(each.pipe)
        assert each.job.submission is not None
        try:
            data = json.loads(bytes(each.data))
            if status or "findings" not in data:
                raise ValueError(data.get("error", "no findings"))
            findings = tuple(Finding.model_validate(item) for item in data["findings"])
        except ValueError as error:
            if each.tries < JUDGE_TRIES and not self.stopping:
                return None
            why = f"the judge failed {each.tries} times (wait status {status}): {error}"
            return Graded(each.job.student, None, None, why[:2000])
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
    data: bytearray = field(default_factory=bytearray)

    def read(self) -> bool:
        """Take what has arrived; whether that was all."""
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(self.pipe, 1 << 20)
            self.data += chunk
            return not chunk
        return False

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.pipe)


@contextlib.contextmanager
def _interrupt(grader: Grader) -> Iterator[None]:
    """The first Ctrl-C finishes what runs, the second one stops at once."""

    def handle(number: int, frame: object) -> None:
        if grader.stopping:
            raise KeyboardInterrupt
        grader.stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
