"""Whose fault: what the machine does costs no points, and what a submission does is not taken for the machine's.

Real graders, sandboxes and processes. Each fault of the machine stands beside the submission's own that looks like it. The
machine may be busy with something else meanwhile; a submission that this hinders is tried again here, as a person would.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autograder.finding import Outcome
from autograder.grade import Graded
from autograder.judging import blame, machine, remote
from autograder.manifest import Manifest
from autograder.runs import grading
from autograder.runs.grading import Grader, Job
from autograder.sandboxing.isolation import Limits, Sandbox, SandboxUnavailable
from autograder.sandboxing.sandbox import LandlockSandbox, NamespaceSandbox, ProcessSandbox, best_sandbox, probe
from autograder.spec import Assignment, Task
from autograder.submission import Submission
from autograder.suite import Suite
from autograder.worker import walls

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the evidence is Linux's")
pinned = pytest.mark.skipif(
    sys.platform != "linux" or probe().level < 1 or len(os.sched_getaffinity(0)) < 2,
    reason="a worker has a processor of its own at level 1 and above, where there are two",
)
TIMES = 3
"""How often a person would grade again on a machine that says that it is overloaded."""
CALL_S = 1.0
CHECKS = """
import os
from autograder.checks import expect_equal

def test_one(submission):
    \"\"\"One comes back.\"\"\"
    expect_equal(submission.f(1), 1, "f(1)")
"""
HIDDEN = """
import os
import pathlib
from autograder.checks import expect_equal
from gpu_env import models

def test_two(submission):
    \"\"\"Two comes back.\"\"\"
    expect_equal(submission.f(2), 2, "f(2)")

def test_three(submission):
    \"\"\"Three comes back.\"\"\"
    expect_equal(submission.f(3), 3, "f(3)")

def test_ours(submission):
    \"\"\"What this machine lacks is not the submission's.\"\"\"
    if model := os.environ.get("NEEDED_MODEL"):
        models.find(model)
    if (flag := os.environ.get("BREAKS_UNTIL")) and not pathlib.Path(flag).exists():
        pathlib.Path(flag).with_name("flag").touch()
        raise OSError("a fault of ours")
    if os.environ.get("COMPUTES"):
        import torch
        torch.ones(1500, 1500) @ torch.ones(1500, 1500)
    expect_equal(submission.f(4), 4, "f(4)")
"""
ALL = {"test_one", "test_two", "test_three", "test_ours"}
BURN = "import time\ndef burn(seconds):\n    end = time.thread_time() + seconds\n    while time.thread_time() < end: pass\n"


def own(body: str) -> str:
    """A submission whose function does `body` at the second check, before it answers."""
    return (
        f"{BURN}def f(n):\n    if n == 2:\n{textwrap.indent(textwrap.dedent(body).strip(), '        ')}\n    return n\n"
    )


RIGHT = own("pass")
WORKS = own("burn(0.4)")
LOOPS = own("while True: pass")
SLEEPS = own("time.sleep(1e6)")
CROWD = own(
    """
    import os
    for _ in range(59):
        if os.fork() == 0:
            while True: pass
    while True: pass
    """
)
HIDES = own(
    """
    import os, signal
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel then forgets what children used
    while True:
        reading, writing = os.pipe()
        for _ in range(3):
            if os.fork() == 0:
                burn(0.02)
                os._exit(0)
        os.close(writing)
        burn(0.004)
        os.read(reading, 1)  # until all children ended
        os.close(reading)
    """
)
WAITS = own("import threading\nthreading.Thread(target=time.sleep, args=(0.5,)).start()\ntime.sleep(0.5)")
"""Two threads while it waits, by which others can see that it does."""
KILLS_ITSELF = own("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
KILLS_ITSELF_SOMEWHERE = (
    "import os, random, signal\nwhere = random.SystemRandom().randrange(1, 4)\n"
    "def f(n):\n    if n == where: os.kill(os.getpid(), signal.SIGKILL)\n    return n\n"
)


@dataclasses.dataclass
class Course:
    """A grader of one small assignment with the checks above, and what it found."""

    grader: Grader
    folder: Path

    def grade(self, source: str, student: str = "ada") -> Graded:
        """What becomes of a submission in one run."""
        (found,) = self.grade_all({student: source})
        return found

    def grade_all(self, sources: dict[str, str]) -> list[Graded]:
        """The same for several."""
        found: list[Graded] = []
        self.grader.wait_s = 3.0
        self.grader.grade([self.job(source, student) for student, source in sources.items()], found.append)
        return found

    def decided(self, source: str) -> Graded:
        """What becomes of a submission, tried again if the machine says that it is overloaded."""
        for _ in range(TIMES):
            found = self.grade(source)
            if not any("The machine is overloaded" in message for message in messages(found).values()):
                return found
        pytest.fail(f"this machine is overloaded all the time: {messages(found)}")

    def job(self, source: str, student: str = "ada") -> Job:
        return Job(student, Submission("here", {"f": source}))

    def is_stored(self, source: str) -> bool:
        """Whether a further run would take what is stored for a grade."""
        return grading.stored(self.grader.suite, self.folder, self.job(source), 0) is not None


def outcomes(found: Graded) -> dict[str, Outcome]:
    """Outcome by check."""
    assert found.result, found.problem
    return {finding.check: finding.outcome for finding in found.result.findings}


def messages(found: Graded) -> dict[str, str]:
    """Message by check; of what was not judged, the problem."""
    return {each.check: each.message for each in found.result.findings} if found.result else {"": found.problem}


def tries(found: Graded) -> int:
    """How often it was judged."""
    assert found.result
    return int(found.result.times["tries"])


def assert_passed(found: Graded) -> None:
    """All points, nothing withheld."""
    assert set(outcomes(found).values()) == {Outcome.PASSED}, messages(found)
    assert found.status == "graded"


def assert_failed(found: Graded, *says: str) -> None:
    """The second check costs its points, no other does, and the reason is told."""
    assert found.status == "graded", messages(found)
    assert outcomes(found) == dict.fromkeys(ALL, Outcome.PASSED) | {"test_two": Outcome.FAILED}, messages(found)
    for word in says:
        assert word in messages(found)["test_two"]


def assert_withheld(found: Graded, *says: str) -> None:
    """No point is lost: the grade waits and says why."""
    assert found.status == "withheld", outcomes(found)
    for word in says:
        assert word in str(messages(found)), messages(found)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    folder = tmp_path_factory.mktemp("suite")
    files = {"test_public.py": CHECKS, "test_hidden.py": HIDDEN}
    for name, text in files.items():
        (folder / name).write_text(text)
    task = Task("f", "F", 1, {"test_one": 1}, {"test_two": 1, "test_three": 1, "test_ours": 1})
    assignment = Assignment("small", "Small", (task,), call_s=CALL_S, memory_bytes=256 << 20)
    manifest = Manifest(
        assignment="small", title="Small", release="r", preload=(), call_s=CALL_S, check_s=60, cpu_s=60,
        memory_bytes=256 << 20, cells=("f",), given={}, stubs={}, tasks={},
    )  # fmt: skip
    return Suite(assignment, manifest, tuple(folder / name for name in files), "0" * 64)


def why_not(kind: type[NamespaceSandbox | LandlockSandbox | ProcessSandbox]) -> str:
    """Why a kind of sandbox cannot be had here; nothing if it can."""
    try:
        kind().close()
    except SandboxUnavailable as error:
        return f"cannot be had here: {error}"
    return ""


KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(bool(why := why_not(kind)), reason=why), id=kind.__name__)
    for kind in (NamespaceSandbox, LandlockSandbox, ProcessSandbox)
]


@pytest.fixture(scope="module", params=KINDS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Each level that can be had here."""
    with contextlib.closing(request.param()) as made:
        yield made


@contextlib.contextmanager
def best() -> Iterator[NamespaceSandbox | LandlockSandbox | ProcessSandbox]:
    """A sandbox of one's own, of the strongest kind here."""
    with best_sandbox((), 0) as made:
        yield made


@pytest.fixture
def course(suite: Suite, sandbox: Sandbox, tmp_path: Path) -> Course:
    """A grader on every level."""
    return Course(Grader(suite, sandbox, tmp_path, workers=2), tmp_path)


@contextlib.contextmanager
def hogs(count: int, seconds: float = 600.0) -> Iterator[None]:
    """`count` busy processes on the processor that the first worker of a run gets; each in a session of its own, as the
    kernel shares processors between sessions. They end after `seconds` by themselves."""
    core = min(os.sched_getaffinity(0))
    code = f"import os, time\nos.sched_setaffinity(0, {{{core}}})\nend = time.monotonic() + {seconds}\n"
    code += "print(flush=True)\nwhile time.monotonic() < end: pass"
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
        for _ in range(count)
    ]
    try:
        for each in started:
            assert each.stdout
            each.stdout.readline()
        yield
    finally:
        for each in started:
            each.kill()
        for each in started:
            each.communicate()


class TestTimeOuts:
    """Endless loops and sleep are the submission's; what others take of its processor is not."""

    def test_an_endless_loop_fails_and_names_the_limit(self, course: Course) -> None:
        """A submission that uses its processor all the time has had its time."""
        found = course.decided(LOOPS)
        assert_failed(found, "Your code did not answer within 1 s, the limit of one call.")

    def test_sleep_fails_however_busy_the_machine_is(self, course: Course) -> None:
        """Who wants no processor is not kept from one: no second try, no withheld grade."""
        with hogs(8):
            found = course.grade(SLEEPS)
        assert_failed(found, "did not answer within 1 s")
        assert tries(found) == 1

    def test_a_crowd_of_its_own_is_no_overload(self, course: Course) -> None:
        """A submission that starts 59 busy processes waits for itself."""
        assert_failed(course.decided(CROWD), "did not answer within 1 s")

    @pinned
    def test_honest_work_on_a_processor_that_others_take_waits(self, suite: Suite, tmp_path: Path) -> None:
        """Work of 0.4 s that gets a tenth of a processor is withheld with the reason and stored; later it passes."""
        with best() as sandbox:
            course = Course(Grader(suite, sandbox, tmp_path, workers=2), tmp_path)
            with hogs(24):
                course.grader.wait_s = 0
                found: list[Graded] = []
                course.grader.grade([course.job(WORKS)], found.append)
            assert_withheld(found[0], "Others took", "The machine is overloaded: grade again when it is quieter")
            assert tries(found[0]) == grading.JUDGE_TRIES
            assert not course.is_stored(WORKS)
            assert_passed(course.decided(WORKS))
            assert course.is_stored(WORKS)

    @pinned
    def test_an_endless_loop_on_a_busy_machine_is_decided_when_it_is_quieter(
        self, suite: Suite, tmp_path: Path
    ) -> None:
        """Overload withholds only as long as it lasts: the next try waits for its end, and finds the loop."""
        with best() as sandbox, hogs(24, seconds=3 * CALL_S):
            course = Course(Grader(suite, sandbox, tmp_path, workers=2), tmp_path)
            assert_failed(course.decided(LOOPS), "did not answer within 1 s")

    @pinned
    def test_work_hidden_from_the_kernel_ends_as_a_failure(self, suite: Suite, tmp_path: Path) -> None:
        """Children that are never waited for look like somebody else's load, but they are gone with the submission."""
        with best() as sandbox:
            course = Course(Grader(suite, sandbox, tmp_path, workers=2), tmp_path)
            assert_failed(course.decided(HIDES), "did not answer within 1 s")

    def test_a_quota_of_the_container_is_not_the_submissions(self, suite: Suite, tmp_path: Path) -> None:
        """Where the grader gets 0.4 of a processor, 0.6 s of work within a limit of 1 s pass; a loop fails all the same."""
        period = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
        quota = 40_000 if not period.exists() else int(period.read_text()) * 4 // 10
        with control_group("cpu", old="cpu.cfs_quota_us", new="cpu.max", value=str(quota)), best() as sandbox:
            course = Course(Grader(suite, sandbox, tmp_path, workers=2), tmp_path)
            assert_passed(course.decided(own("burn(0.6)")))
            assert_failed(course.decided(LOOPS), "did not answer within 1 s")

    @pinned
    def test_loading_has_the_same_rule(self, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A submission that sleeps while it is loaded fails; one whose imports lack a processor waits."""
        monkeypatch.setattr(remote, "LOAD_S", CALL_S)
        monkeypatch.setattr(grading, "JUDGE_TRIES", 1)
        with best() as sandbox, hogs(24):
            course = Course(Grader(suite, sandbox, tmp_path, workers=2), tmp_path)
            found = course.grade("import time\ntime.sleep(1e6)")
            assert found.status == "graded"
            assert "did not answer within 1 s, the limit of loading" in messages(found)["test_one"]
            assert_withheld(course.grade(f"{BURN}burn(0.4)\n{RIGHT}"), "The machine is overloaded")


# ------------------------------------------------------------------------------------------------ kills


def workers_of(sandbox: NamespaceSandbox | LandlockSandbox) -> list[psutil.Process]:
    """The workers at hand: launcher, zygote, keeper, process 1, worker."""
    found = [psutil.Process(sandbox._launcher.pid)]
    for _ in range(4):
        found = [child for each in found for child in each.children()]
    return found


@contextlib.contextmanager
def operator(do: Callable[[], bool], times: int) -> Iterator[None]:
    """Somebody else on this machine, who does something `times` times: `do` says whether it could be done."""
    over = threading.Event()

    def work() -> None:
        left = times
        while left and not over.is_set():
            with contextlib.suppress(psutil.Error):
                left -= do()
            time.sleep(0.01)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def own_sandbox() -> Iterator[NamespaceSandbox | LandlockSandbox]:
    """A sandbox with a zygote, for one test."""
    with best() as made:
        if isinstance(made, ProcessSandbox):
            pytest.skip(f"no zygote here: {made.isolation.refused}")
        yield made


@pytest.fixture
def own_course(suite: Suite, own_sandbox: NamespaceSandbox | LandlockSandbox, tmp_path: Path) -> Course:
    """A grader with a sandbox of its own."""
    return Course(Grader(suite, own_sandbox, tmp_path, workers=2), tmp_path)


@pytest.fixture
def kill_workers(own_sandbox: NamespaceSandbox | LandlockSandbox) -> Callable[[signal.Signals, int], object]:
    """Somebody who sends signals to workers that wait, each of them once, or to the process so many generations above."""

    def start(number: signal.Signals, times: int, above: int = 0) -> object:
        done: set[int] = set()

        def send() -> bool:
            for worker in workers_of(own_sandbox):
                if worker.pid not in done and worker.num_threads() > 1:
                    [worker, *worker.parents()][above].send_signal(number)
                    done.add(worker.pid)
                    return True
            return False

        return operator(send, times)

    return start


class TestKills:
    """A kill from outside costs nothing; a submission that kills itself, or uses too much, pays."""

    @pytest.mark.parametrize(
        ("number", "above"),
        [(signal.SIGKILL, 0), (signal.SIGTERM, 0), (signal.SIGKILL, 1), (signal.SIGKILL, 2)],
        ids=["worker", "worker, politely", "process 1", "keeper"],
    )
    def test_a_kill_from_outside_is_tried_again(
        self,
        own_course: Course,
        kill_workers: Callable[..., contextlib.AbstractContextManager[None]],
        number: signal.Signals,
        above: int,
    ) -> None:
        """An operator who ends a worker, or what stands above it, costs a second try, and nothing else."""
        with kill_workers(number, 1, above):
            found = own_course.grade(WAITS)
        assert_passed(found)
        assert tries(found) == 2

    def test_a_submission_that_kills_itself_fails(self, course: Course) -> None:
        """The same signal at the same place in the second try is the submission's own."""
        found = course.grade(KILLS_ITSELF)
        assert_failed(found, "Your code was killed by signal SIGKILL")
        assert tries(found) == 2

    def test_killing_itself_here_and_there_does_not_withhold(self, course: Course) -> None:
        """A submission that kills itself at another place each time has a grade after three tries."""
        found = course.grade(KILLS_ITSELF_SOMEWHERE)
        assert found.status == "graded"
        assert Outcome.FAILED in outcomes(found).values()
        assert 2 <= tries(found) <= 1 + blame.UNEXPLAINED

    def test_a_kill_where_memory_is_short_is_the_machines(
        self,
        own_course: Course,
        kill_workers: Callable[..., contextlib.AbstractContextManager[None]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Every worker is killed, and less memory is left than a submission may use: withheld, however often; later passed."""
        with monkeypatch.context() as patch:
            patch.setattr(machine, "available_memory", lambda: 100 << 20)
            with kill_workers(signal.SIGKILL, 99):
                found = own_course.grade(WAITS)
        assert_withheld(found, "The machine is out of memory: 0.1 GiB are left, and one submission may use 0.2 GiB.")
        assert not own_course.is_stored(WAITS)
        assert_passed(own_course.decided(WAITS))

    def test_the_kernels_own_kill_is_the_machines(self, suite: Suite, tmp_path: Path) -> None:
        """The kernel's out-of-memory killer strikes as the grader may not use what it promises: withheld, with the reason."""
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            found = fresh.submit(grade_where_memory_is_short, suite, tmp_path).result()
        if isinstance(found, str):
            pytest.skip(found)
        killed, right = found
        assert_withheld(killed, "killed by signal SIGKILL", "The machine is out of memory")
        assert tries(killed) == grading.JUDGE_TRIES
        assert_passed(right)

    def test_a_memory_bomb_fails_and_names_the_limit(self, own_course: Course) -> None:
        """One process is refused more than the limit, several together are ended for it."""
        assert_failed(own_course.grade(own("b = bytearray(1 << 30)")), "MemoryError", "the limit is 0.2 GiB of memory")
        hold = "b = bytearray(b'x') * (150 << 20)\ntime.sleep(9)"
        crowd = (
            f"import os\nfor _ in range(3):\n    if os.fork() == 0:\n{textwrap.indent(hold, ' ' * 8)}\ntime.sleep(9)"
        )
        found = own_course.decided(own(crowd))
        assert_failed(found, "was killed: used more than 0.2 GiB of memory")


def grade_where_memory_is_short(suite: Suite, folder: Path) -> tuple[Graded, Graded] | str:
    """A submission that uses what it may, but more than there is, and a right one after it; or why that cannot be had.

    For a process of its own: the one of a long test run can be the largest in the group, and the kernel would kill that.
    """
    limit = {"old": "memory.limit_in_bytes", "new": "memory.max", "value": str(192 << 20)}
    try:
        with control_group("memory", **limit), best() as sandbox:
            course = Course(Grader(suite, sandbox, folder, workers=2), folder)
            return course.grade(own("b = bytearray(220 << 20)")), course.grade(RIGHT)
    except pytest.skip.Exception as skipped:  # cannot be pickled
        return str(skipped)


@contextlib.contextmanager
def control_group(controller: str, **settings: str) -> Iterator[None]:
    """Run this process, and all that it starts, in a control group. Skips where that needs more rights."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    old = next((path for _, kinds, path in lines if controller in kinds.split(",")), None)
    base = Path("/sys/fs/cgroup", controller if old is not None else "")
    group = base / f"infrastructure-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"control groups cannot be made here: {error}")
    try:
        try:
            (group / settings["old" if old is not None else "new"]).write_text(settings["value"])
            (group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError as error:
            pytest.skip(f"control groups cannot be limited here: {error}")
        yield
    finally:
        (base / (old or "").lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
        for _ in range(100):
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.05)


# ------------------------------------------------------------------------------------------------ what grading stands on


@contextlib.contextmanager
def few_processes(room: int) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """What is started inside may have `room` processes more than its user has now; gives what takes that room."""
    user = walls.NOBODY if os.geteuid() == 0 else os.geteuid()
    used = sum(each.num_threads() for each in psutil.process_iter() if each.uids().real == user)
    before = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (used + room, before[1]))

    @contextlib.contextmanager
    def fill() -> Iterator[None]:
        who = {"user": user, "group": user, "extra_groups": []} if os.geteuid() == 0 else {}
        resource.setrlimit(resource.RLIMIT_NPROC, before)  # for these, not for what runs already
        started = [subprocess.Popen(["sleep", "60"], cwd="/", **who) for _ in range(room + 20)]  # type: ignore[call-overload]
        try:
            yield
        finally:
            for each in started:
                each.kill()
                each.wait()

    try:
        yield fill
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, before)


class TestZygote:
    """A zygote that dies or cannot fork costs a try; nothing that a submission does is taken for it."""

    def test_a_dead_zygote_is_replaced(
        self, own_course: Course, own_sandbox: NamespaceSandbox | LandlockSandbox
    ) -> None:
        """Killed before a submission is judged, it is started again, behind the same walls."""
        before = own_sandbox.isolation
        own_sandbox._launcher.kill()
        own_sandbox._launcher.wait()
        assert_passed(own_course.grade(RIGHT))
        assert own_sandbox.isolation == before

    def test_a_zygote_that_dies_while_submissions_run_costs_a_try(
        self, own_course: Course, own_sandbox: NamespaceSandbox | LandlockSandbox
    ) -> None:
        """All that ran are judged again, and have their points."""

        def kill() -> bool:
            if any(worker.num_threads() > 1 for worker in workers_of(own_sandbox)):
                own_sandbox._launcher.kill()
                return True
            return False

        with operator(kill, 1):
            found = own_course.grade_all({"ada": WAITS, "bob": RIGHT, "eve": WAITS})
        for each in found:
            assert_passed(each)
        assert max(tries(each) for each in found) == 2

    def test_a_zygote_that_does_not_come_back_withholds_and_says_so(
        self, own_course: Course, own_sandbox: NamespaceSandbox | LandlockSandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a bounded number of tries every grade waits, none is lost."""
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/bin/false")
            own_sandbox._launcher.kill()
            own_sandbox._launcher.wait()
            found = own_course.grade_all({"ada": RIGHT, "bob": LOOPS})
        for each in found:
            assert each.result is None
            assert_withheld(each, "The zygote is gone, and could not be started again", "no fault of the submission")

    def test_a_zygote_that_cannot_fork_withholds_until_it_can(self, suite: Suite, tmp_path: Path) -> None:
        """At the machine's limit of processes no worker is to be had: withheld, stored, and passed when there is room."""
        with few_processes(room=40) as fill, best() as sandbox:
            if isinstance(sandbox, ProcessSandbox):
                pytest.skip("no zygote here")
            course = Course(Grader(suite, sandbox, tmp_path, workers=2), tmp_path)
            with fill():
                with contextlib.suppress(SandboxUnavailable):  # one keeper was forked before
                    sandbox.start(Limits()).kill()
                found = course.grade(RIGHT)
                assert_withheld(found, "Too many processes: raise the limit")
                assert tries(found) == grading.JUDGE_TRIES
                assert not course.is_stored(RIGHT)
            with contextlib.suppress(SandboxUnavailable):  # the refusal that waits for the next request
                sandbox.start(Limits()).kill()
            assert_passed(course.grade(RIGHT))

    def test_a_submission_at_its_own_limit_of_processes_fails(self, own_course: Course) -> None:
        """A fork bomb meets the limit of its own sandbox, and pays for it."""
        found = own_course.decided(own("import os\nfor _ in range(200):\n    if os.fork() == 0: time.sleep(9)"))
        assert found.status == "graded"
        assert outcomes(found)["test_two"] is Outcome.FAILED

    def test_a_disk_without_room_for_scratch_withholds(self, suite: Suite, tmp_path: Path) -> None:
        """Without walls of its own around scratch, a worker starts only where it may write what it is promised."""
        if why := why_not(LandlockSandbox):
            pytest.skip(why)
        with LandlockSandbox() as sandbox:
            course = Course(Grader(suite, sandbox, tmp_path, workers=2), tmp_path)
            promised = dataclasses.replace(Limits(), scratch_bytes=1 << 50)
            with pytest.raises(SandboxUnavailable, match="Make room"):
                sandbox.start(promised)
            assert_passed(course.grade(RIGHT))


class TestOurs:
    """Faults of suites and missing models: tried again in the same run, or withheld by name."""

    def test_a_missing_model_waits_and_a_missed_file_of_ones_own_fails(
        self, own_course: Course, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a check or a submission needs of a model that is not whole is no grade; any other file is the submission's."""
        folder = tmp_path / "models" / "small"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text('{"files": {"weights": {"bytes": 3, "sha256": ""}}}')
        monkeypatch.setenv("AUTOGRADER_MODELS", str(folder.parent))
        monkeypatch.setenv("NEEDED_MODEL", "small")
        opens = own("open('weights')")
        found = own_course.grade(RIGHT)
        assert outcomes(found)["test_ours"] is Outcome.SKIPPED
        assert_withheld(found, "small", "weights is not there")
        assert tries(found) == 1  # no model appears by itself
        assert not own_course.is_stored(RIGHT)
        loaded = own_course.grader.suite
        assignment = dataclasses.replace(loaded.assignment, models=("small",))
        own_course.grader.suite = dataclasses.replace(loaded, assignment=assignment)
        found = own_course.grade(opens)
        assert outcomes(found)["test_two"] is Outcome.SKIPPED
        assert_withheld(found, "weights is not there")
        (folder / "weights").write_text("abc")
        assert_passed(own_course.grade(RIGHT))
        assert_failed(own_course.grade(opens), "FileNotFoundError")

    def test_a_check_that_breaks_is_run_again(
        self, own_course: Course, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An error of the suite's costs a second try, if it lasts the grade; the same of a submission costs its points."""
        monkeypatch.setenv("BREAKS_UNTIL", str(tmp_path / "never"))
        found = own_course.grade(RIGHT)
        assert outcomes(found)["test_ours"] is Outcome.BROKEN
        assert tries(found) == grading.JUDGE_TRIES
        assert_withheld(found, "a fault of ours")
        assert not own_course.is_stored(RIGHT)
        (tmp_path / "flag").unlink()
        monkeypatch.setenv("BREAKS_UNTIL", str(tmp_path / "flag"))
        found = own_course.grade(RIGHT)
        assert_passed(found)
        assert tries(found) == 2
        assert_failed(own_course.decided(own("raise OSError('a fault of mine')")), "a fault of mine")

    def test_a_judge_computes_after_its_parent_did(self, own_course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
        """A check that uses torch passes where the process that judges are forked from has used torch's threads."""
        threads = torch.get_num_threads()
        torch.set_num_threads(4)
        try:
            assert (torch.ones(1500, 1500) @ torch.ones(1500, 1500)).sum()
            monkeypatch.setenv("COMPUTES", "1")
            assert_passed(own_course.decided(RIGHT))
        finally:
            torch.set_num_threads(threads)

    def test_a_judge_that_cannot_be_started_withholds(self, own_course: Course) -> None:
        """Where no more files can be opened: tried again, then the reason, nothing lost; with room it passes."""
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        blockers = [os.dup(0)]
        while blockers[-1] < max(map(int, os.listdir("/proc/self/fd"))) - 1:
            blockers.append(os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 2, before[1]))
        try:
            found = own_course.grade(RIGHT)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for each in blockers:
                os.close(each)
        assert_withheld(found, "it could not be started", "Too many open files")
        assert_passed(own_course.grade(RIGHT))


# ------------------------------------------------------------------------------------------------ the arithmetic

seconds = st.floats(0, 100, allow_nan=False)


@st.composite
def looks(draw: st.DrawFn) -> tuple[machine.Load, machine.Load]:
    """Two looks at one worker, in any state that counters can have."""
    before, more = (
        {field: draw(seconds) for field in ("at", "worker", "idle", "throttled", "judge", "judge_queued")}
        for _ in range(2)
    )
    queued = draw(st.one_of(st.none(), seconds))
    after = {field: before[field] + more[field] for field in before}
    later = None if queued is None else queued + draw(st.floats(-100, 100))
    return machine.Load(**before, queued=queued), machine.Load(**after, queued=later)


class TestArithmetic:
    """What others took of a worker's time, and how far a limit moves."""

    @given(looks())
    def test_others_take_no_more_than_there_was(self, pair: tuple[machine.Load, machine.Load]) -> None:
        """Between nothing and all of the time between two looks; nothing of what the worker had itself or left idle."""
        before, after = pair
        lasted = after.at - before.at
        assert 0 <= machine.taken(before, after) <= lasted
        if after.worker - before.worker >= lasted:
            assert machine.taken(before, after) == 0
        if after.throttled == before.throttled and after.idle - before.idle >= lasted:
            assert machine.taken(before, after) == 0

    @given(looks())
    def test_a_worker_that_wants_nothing_is_kept_from_nothing(self, pair: tuple[machine.Load, machine.Load]) -> None:
        """Neither running nor waiting for a processor is sleeping."""
        before, after = pair
        asleep = dataclasses.replace(after, worker=before.worker, queued=before.queued)
        if before.queued is not None and after.at > before.at:
            assert machine.taken(before, asleep) == 0

    def test_a_limit_moves_by_what_others_take_and_no_further_than_patience(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With nine tenths of the processor gone a limit of 0.2 s lasts 0.8 s and was unfair; with none gone, 0.2 s."""
        for share, lasts_s, unfair in ((0.9, 0.8, True), (0.0, 0.2, False), (0.5, 0.4, False)):
            looked = time.monotonic()

            def load(*_: object, share: float = share) -> machine.Load:
                now = time.monotonic()
                return machine.Load(now, (1 - share) * now, 0.0, 0.0, 0.0, 0.0, 0.0)

            monkeypatch.setattr(machine, "load_of", load)
            monkeypatch.setattr(blame, "LOOK_S", 0.0)
            asked = blame.Blame()
            asked.worker = ProcessSandbox().start(Limits())
            limit = asked.limit(0.2)
            limit.look()
            with pytest.raises(TimeoutError):
                limit.wait(asked.worker.sock)
            lasted = time.monotonic() - looked
            assert limit.taken_unfairly() > 0.8 if unfair else limit.taken_unfairly() == 0
            asked.worker.kill()
            assert lasts_s * 0.9 < lasted < lasts_s + 3

    @pytest.mark.parametrize("lists", [True, False], ids=["kernel lists children", "it does not"])
    def test_the_work_of_children_is_counted(self, lists: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """CPU time of living children and of those that were waited for is their parent's, on every kernel."""
        if not lists:
            monkeypatch.setattr(Path, "exists", lambda path: False)
        code = (
            f"import os, time\n{BURN}print(flush=True)\ninput()\n"
            "for _ in range(2):\n    if os.fork() == 0:\n        burn(0.2)\n        os._exit(0)\n    os.wait()\n"
            "reading, writing = os.pipe()\n"
            "if os.fork() == 0:\n    burn(0.2)\n    os.write(writing, b'.')\n    time.sleep(60)\n"
            "os.read(reading, 1)\nprint(flush=True)\ntime.sleep(60)"
        )
        pipe = subprocess.PIPE
        with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, process_group=0) as parent:
            assert parent.stdin
            assert parent.stdout
            parent.stdout.readline()
            before = machine.load_of(parent.pid, os.sched_getaffinity(0))
            parent.stdin.write(b"\n")
            parent.stdin.flush()
            parent.stdout.readline()
            after = machine.load_of(parent.pid, os.sched_getaffinity(0))
            os.killpg(parent.pid, signal.SIGKILL)
        assert before
        assert after
        assert 0.55 < after.worker - before.worker < 1.0  # 0.6, by a clock that ticks 100 times a second

    def test_memory_and_processors_of_this_machine_are_seen(self) -> None:
        """On Linux the evidence is there: some memory is left, and some share of a processor."""
        available = machine.available_memory()
        assert available is not None
        assert 0 < available < 1 << 50
        assert 0 < machine.free_share(min(os.sched_getaffinity(0))) <= 1
        load = machine.load_of(os.getpid(), os.sched_getaffinity(0))
        assert load is not None
        assert load.worker > 0
        assert machine.load_of(1 << 22, {0}) is None
