"""Grade many submissions: find them, skip what is graded, judge the rest in parallel, store every result at once.

This process gets warm once (suite, oracles, models, zygote) and forks a judge for each submission. It takes no findings on
trust: a judge that dies, hangs or sends nonsense has its submission judged once more, and so has one that met a fault of the
machine (`autograder.judging.blame`), after all others and alone if load was the fault; then the grade is withheld.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import json
import os
import re
import secrets
import selectors
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from pydantic import BaseModel

from autograder import results, suite
from autograder.finding import Finding, Outcome
from autograder.grade import Graded, score
from autograder.judging import machine, oracle
from autograder.judging.blame import UNEXPLAINED, Blame
from autograder.judging.judge import judge, limits_of, rehearse
from autograder.manifest import Manifest
from autograder.results import IsolationRecord, Result
from autograder.runs.progress import Activity
from autograder.sandboxing.sandbox import Limits, Sandbox, SandboxUnavailable
from autograder.spec import Assignment
from autograder.submission import Submission, UnreadableSubmission
from autograder.suite import Suite
from autograder.worker import walls
from gpu_env import device, models

if TYPE_CHECKING:
    from autograder.signing import PublicKey, SigningKey

__all__ = ["Executor", "Grader", "Inbox", "Job", "discover", "first_interrupt", "graded_as"]
__all__ += ["isolation_record", "model_hashes", "result_file", "store", "stored"]

JUDGE_TRIES = 2
DOUBTFUL_TRIES = JUDGE_TRIES + UNEXPLAINED
"""How often at most a submission is judged that meets something unexplained each time."""
MAX_SAID_BYTES = 64 << 20
"""Of a judge's findings; those of forty checks have some ten kilobytes."""
SILENCE_S = 60.0
"""How much longer than one check may last a judge may be silent; half of it is what a worker may take to start."""
WAIT_S = 60.0
"""How long one run waits, all in all, for the machine to recover before it judges something again."""
BEGINS = re.compile(rb"^#(.*)\n", re.MULTILINE)
"""What a judge says, ahead of its findings, when a check begins."""
QUIET = 0.7
"""The share of a processor that a program must get for the machine to count as quiet."""
PASSING = frozenset({Outcome.BROKEN, Outcome.INCONCLUSIVE, Outcome.SKIPPED})
"""Outcomes that may be others next time (a model was missing, a machine was busy): the submission is judged again."""


@dataclass(frozen=True)
class Job:
    """One submission to grade: who, and either its content or why there is none."""

    student: str
    submission: Submission | None
    problem: str = ""
    seed: int | None = None
    """That of an earlier run, to be replayed; a fresh one if there is none."""
    only: str | None = None
    """The only task whose checks are run, for mutants; such a result gives no grade."""


def discover(submitted: Path, name: str, manifest: Manifest, students: Iterable[str] = ()) -> list[Job]:
    """The submissions for `name` under nbgrader's `submitted/` folder, by student. Unreadable ones are jobs with a problem."""
    from autograder.students import pair

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


def stored(
    loaded: Suite, folder: Path, job: Job, minimum_level: int, tier: str = "cpu", signer: PublicKey | None = None
) -> Graded | None:
    """What an earlier run found out about the same content at `minimum_level` of isolation or above, if it is stored.

    Findings that may have been the machine's fault do not count: they are tried again. Raises `results.Refused` if what
    is stored was changed or, with a `signer`, is not signed by it.
    """
    if job.submission is None:
        return Graded(job.student, None, None, job.problem, fresh=False)
    result = results.load(result_file(loaded, folder, job, tier), signer, at_home=True)
    if result is None or result.isolation.level < minimum_level:
        return None
    if any(each.outcome in PASSING for each in result.findings):
        return None
    return graded_as(loaded, result, fresh=False)


def result_file(loaded: Suite, folder: Path, job: Job, tier: str = "cpu") -> Path:
    """Where the result of `job` is stored under `folder`."""
    assert job.submission is not None
    name = results.key(job.submission.hash, loaded.hash, tier)
    return results.path(folder, loaded.assignment.name, job.student, name)


def model_hashes(assignment: Assignment) -> dict[str, str]:
    """The models that lie here, for oracles or workers: name to SHA-256 of the manifest, which has that of every file."""
    found = {}
    for name in sorted({*models.CATALOGUE, *assignment.models}):
        with contextlib.suppress(models.ModelMissing, OSError):
            found[name] = hashlib.sha256((models.find(name) / models.MANIFEST).read_bytes()).hexdigest()
    return found


def isolation_record(sandbox: Sandbox) -> IsolationRecord:
    """The isolation in force, for results."""
    used = sandbox.isolation
    return IsolationRecord(name=used.name, level=used.level, walls=used.walls, refused=used.refused)


def store(loaded: Suite, folder: Path, job: Job, result: Result, signing_key: SigningKey | None = None) -> None:
    """Store `result`, and a copy of what was judged for it. Raises `StoreError`."""
    assert job.submission is not None
    results.keep(folder, job.submission)
    results.save(result_file(loaded, folder, job, result.tier), result, signing_key)


def graded_as(loaded: Suite, result: Result, *, fresh: bool) -> Graded:
    """What became of a job whose findings are those of `result`."""
    return Graded(result.student, result, score(loaded.assignment, result.findings, result.withheld), fresh=fresh)


class Executor(Protocol):
    """Whoever grades: this machine (`Grader`) or several (`autograder.runs.cluster`)."""

    stopping: bool
    """No further job is started."""

    @property
    def isolation(self) -> str:
        """The isolation in force, in words; known once it is warm."""

    def warm_up(self) -> None:
        """Get ready to judge. Raises what its parts raise."""

    def grade(self, jobs: Iterable[Job], done: Callable[[Graded], None]) -> None:
        """Judge `jobs`; `done` is called with each as it ends, its result stored. Ctrl-C finishes what runs."""

    def activities(self) -> list[Activity]:
        """What each worker does now."""

    def watch(self, tick: Callable[[], None]) -> None:
        """Have `tick` called a few times per second while jobs run."""


class Inbox(Protocol):
    """Jobs that come while others run."""

    def fileno(self) -> int:
        """What to wait for."""

    def read(self) -> list[Job] | None:
        """The jobs that have come, or `None` if there will be no more. Called when there is something to read."""


@dataclass
class Grader:
    """Grades submissions of one suite in one sandbox, results under `folder`; without one, `done` has to store them."""

    suite: Suite
    sandbox: Sandbox
    folder: Path | None
    workers: int = field(
        default_factory=lambda: len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    )
    tier: str = "cpu"
    signing_key: SigningKey | None = None
    devices: tuple[str, ...] = ()
    """What speed is measured on, in place of this machine's devices."""
    stopping: bool = False
    wait_s: float = WAIT_S
    tick: Callable[[], None] = field(default=lambda: None)
    _running: dict[int, _Running] = field(default_factory=dict)

    @property
    def isolation(self) -> str:
        """The isolation in force, in words."""
        return f"{self.sandbox.isolation.name} (level {self.sandbox.isolation.level})"

    def warm_up(self) -> None:
        """Load what all judges share: the suite's modules, the values of its oracles, what pytest imports."""
        rehearse(self.suite.assignment, self.suite.files, self.suite.manifest, self.sandbox)
        oracle.prepare()
        gc.collect()
        gc.freeze()  # the collector of a fork must not touch, and so copy, what is shared

    def grade(self, jobs: Iterable[Job], done: Callable[[Graded], None], inbox: Inbox | None = None) -> None:
        """Judge `jobs`, and those that come by `inbox`, in parallel; `done` is called with each as it ends, its result stored.

        After `stop` (or Ctrl-C) no further job is started, those running are finished; a second Ctrl-C ends them too.
        Raises `StoreError` when results cannot be written; what was stored stays.
        """
        waiting = [_Try(job) for job in jobs][::-1]
        running = self._running
        with selectors.DefaultSelector() as selector, first_interrupt(self.stop):
            if inbox:
                selector.register(inbox, selectors.EVENT_READ)
            try:
                while running or ((waiting or inbox) and not self.stopping):
                    while waiting and self._may_start(waiting[-1], running.values()):
                        attempt = waiting.pop()
                        try:
                            started = self._start(attempt, [each.slot for each in running.values()])
                        except (OSError, SandboxUnavailable) as error:
                            found = self._failed(attempt, f"it could not be started: {error}", wait=True)
                            self._settle(found, waiting, done)
                            break
                        running[started.pipe] = started
                        selector.register(started.pipe, selectors.EVENT_READ)
                    self.tick()
                    for ready, _ in selector.select(timeout=0.2):
                        if ready.fd in running:
                            running[ready.fd].read()
                        elif inbox and (more := inbox.read()) is not None:
                            waiting[:0] = [_Try(job) for job in more[::-1]]
                        elif inbox:
                            selector.unregister(inbox)
                            inbox = None
                    for each in [each for each in running.values() if each.over(self._patience())]:
                        selector.unregister(each.pipe)
                        del running[each.pipe]
                        self._settle(self._finish(each), waiting, done)
            finally:
                for each in running.values():
                    each.end()
                running.clear()

    def activities(self) -> list[Activity]:
        """What each worker does now."""
        now, running = time.monotonic(), sorted(self._running.values(), key=lambda each: each.slot)
        return [
            Activity(str(each.slot + 1), each.attempt.job.student, each.check, now - each.started) for each in running
        ]

    def watch(self, tick: Callable[[], None]) -> None:
        """Have `tick` called a few times per second while jobs run."""
        self.tick = tick

    def stop(self) -> None:
        """Start no further job."""
        self.stopping = True

    def _may_start(self, attempt: _Try, running: Collection[_Running]) -> bool:
        """Whether `attempt` may be started beside what runs; after a wait, if the machine needs one and nothing runs."""
        if len(running) >= self.workers or any(each.attempt.alone for each in running) or (attempt.alone and running):
            return False
        if attempt.wait and not running:
            self._wait()
        return not self.stopping

    @staticmethod
    def _settle(found: Graded | _Try, waiting: list[_Try], done: Callable[[Graded], None]) -> None:
        """Hand on a grade, or put the next try behind all others: what was wrong may have passed by then."""
        if isinstance(found, _Try):
            waiting.insert(0, found)
        else:
            done(found)

    def _failed(self, attempt: _Try, why: str, *, wait: bool = False) -> Graded | _Try:
        """The next try after a judge that failed, or the end of trying."""
        if attempt.number < JUDGE_TRIES and not self.stopping:
            return dataclasses.replace(attempt, number=attempt.number + 1, wait=wait)
        why = f"The judge failed {attempt.number} times ({why[:1500]}). That is no fault of the submission. "
        why += "Run the same command again; `autograder doctor` tells of the machine."
        return Graded(attempt.job.student, None, None, why)

    def _wait(self) -> None:
        """Give the machine some time to recover; no longer than until it is quiet, and `WAIT_S` in the whole run."""
        end = time.monotonic() + self.wait_s
        while not self.stopping and time.monotonic() < end:
            self.wait_s -= 1.0
            time.sleep(1.0 - machine.PROBE_S)
            if machine.free_share(None) >= QUIET:
                break

    def _start(self, attempt: _Try, taken: Collection[int]) -> _Running:
        """Fork a judge. Raises OSError, `SandboxUnavailable`."""
        self.sandbox.revive()
        job = attempt.job
        seed = secrets.randbits(63) if job.seed is None else job.seed
        slot = next(number for number in range(self.workers) if number not in taken)
        parent = os.getpid()
        read, write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        started = time.monotonic()
        try:
            pid = os.fork()
        except OSError:
            os.close(read)
            os.close(write)
            raise
        if pid == 0:
            os.close(read)
            self._judge_and_exit(attempt, seed, write, started, parent, slot)
        os.close(write)
        os.set_blocking(read, False)
        return _Running(attempt, seed, pid, read, started, slot)

    def _limits(self, slot: int) -> Limits:
        """The limits of what runs in `slot`: a processor for each, else one submission's busy processes slow all others."""
        limits = limits_of(self.suite.assignment)
        if self.workers < 2 or not hasattr(os, "sched_getaffinity"):
            return limits
        cores = sorted(os.sched_getaffinity(0))
        return dataclasses.replace(limits, core=cores[slot % len(cores)])

    def _patience(self) -> float:
        """Seconds without a sign of life after which a judge counts as hanging."""
        return self.suite.assignment.check_s + SILENCE_S

    def _judge_and_exit(self, attempt: _Try, seed: int, write: int, started: float, parent: int, slot: int) -> None:
        """In the forked judge: into the pipe go signs of life, then findings as JSON. Does not return."""
        code = 1
        times = {"fork_s": time.monotonic() - started}
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; running ones are finished
            if sys.platform == "linux":
                walls.set_parent_death_signal()  # a killed run must not go on in the background; its workers go with us
                if os.getppid() != parent:
                    os._exit(code)
            if torch := sys.modules.get("torch"):
                torch.set_num_threads(1)  # a pool of threads that the parent has used does not survive the fork
            job, sign = attempt.job, _SignOfLife(write)
            assert job.submission is not None
            blame = Blame(attempt.doubted, sign.give)
            findings = judge(
                self.suite.assignment, self.suite.files, job.submission, self.suite.manifest, self.sandbox,
                seed=seed, only=job.only, limits=self._limits(slot), times=times, watchers=[sign],
                blame=blame, devices=self.devices,
            )  # fmt: skip
            text = json.dumps({
                "findings": [finding.model_dump(mode="json") for finding in findings], "times": times,
                "doubts": blame.doubts, "overloaded": blame.overloaded,
            })  # fmt: skip
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

    def _finish(self, each: _Running) -> Graded | _Try:
        """Store what a judge found, or give the next try. Ends a judge that hangs."""
        status, attempt = each.end(), each.attempt
        job = attempt.job
        assert job.submission is not None
        try:
            if len(each.data) > MAX_SAID_BYTES:
                raise ValueError(f"it wrote more than {MAX_SAID_BYTES:,} bytes")
            if not each.ended:
                raise ValueError(f"no sign of life for {each.silent_s():.0f} s")
            said = _Said.model_validate_json(BEGINS.sub(b"", each.data).strip() or b"{}")
            if status or said.findings is None:
                raise ValueError(said.error or f"it ended without findings, {_how(status)}")
        except ValueError as error:
            return self._failed(attempt, str(error))
        doubted = (*attempt.doubted, *said.doubts)
        broken = any(finding.outcome is Outcome.BROKEN for finding in said.findings)
        again = attempt.number < (DOUBTFUL_TRIES if said.doubts else JUDGE_TRIES)
        if broken and again and not self.stopping:
            alone = said.overloaded or bool(doubted)
            return _Try(job, attempt.number + 1, doubted, alone=alone, wait=said.overloaded)
        result = Result(
            assignment=self.suite.assignment.name,
            student=job.student,
            source=job.submission.source,
            submission_hash=job.submission.hash,
            submission_copy=results.copy_of(job.submission)[0],
            suite_hash=self.suite.hash,
            release=self.suite.manifest.release,
            framework=suite.version(),
            tier="gpu" if self.tier == "gpu" else "cpu",
            seed=each.seed,
            isolation=isolation_record(self.sandbox),
            machine=device.describe().as_dict(),
            models=model_hashes(self.suite.assignment),
            seconds=round(time.monotonic() - each.started, 3),
            times={name: round(value, 5) for name, value in said.times.items()} | {"tries": attempt.number},
            withheld=job.submission.review,
            remarks=job.submission.remarks,
            spec=self.suite.assignment,
            findings=said.findings,
        )
        if self.folder is not None:
            store(self.suite, self.folder, job, result, self.signing_key)
        return graded_as(self.suite, result, fresh=True)


class _Said(BaseModel):
    """What a judge writes into its pipe before it ends: findings, or the error that kept it from them."""

    findings: tuple[Finding, ...] | None = None
    times: dict[str, float] = {}
    doubts: tuple[str, ...] = ()
    overloaded: bool = False
    error: str = ""


@dataclass(frozen=True)
class _Try:
    """One attempt to judge a submission."""

    job: Job
    number: int = 1
    doubted: tuple[str, ...] = ()
    """The checks in which the tries before met something that nobody could explain."""
    alone: bool = False
    """Nothing of ours may run beside it: the fault may have been another submission's."""
    wait: bool = False
    """The machine needs time to recover."""


@dataclass
class _Running:
    """A forked judge."""

    attempt: _Try
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
    check: str = ""
    """The check that it began last."""

    def read(self) -> None:
        """Take what has arrived."""
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(self.pipe, 1 << 20)
            self.data += chunk
            self.heard = time.monotonic()
            self.ended = not chunk
            if begun := BEGINS.findall(chunk):
                self.check = begun[-1].decode(errors="replace")

    def over(self, patience_s: float) -> bool:
        """Whether there is nothing more to wait for: it has said all, too much, or nothing for `patience_s`."""
        return self.ended or len(self.data) > MAX_SAID_BYTES or self.silent_s() > patience_s

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
    """A pytest plug-in that writes lines ahead of the findings: an empty one, or the name of a check that begins."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def give(self, check: str = "") -> None:
        """Write one."""
        os.write(self._pipe, f"#{check}\n".encode() if check else b"\n")

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.give(item.name)

    def pytest_judge_alive(self) -> None:
        """A measurement goes on."""
        self.give()


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
        os.write(
            2,
            b"\nFinishing what runs. Ctrl-C once more stops at once. Either way the same command goes on from there.\n",
        )

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
