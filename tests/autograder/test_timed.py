"""Measuring speed: blocks, pausing, the lease, whose fault it is, and submissions that cheat or only look as if they did.

The task of all submissions is attention without a loop over the queries; the reference loops. On a quiet machine the honest
ones are about twenty times as fast, and twice is asked for, so that a busy machine changes no outcome.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autograder import suite
from autograder.checks import CheckFailed, SubmissionFault, SubmissionRaised, expect_equal, fail
from autograder.finding import Finding, Outcome
from autograder.judging.block_memory import HostMemory
from autograder.judging.blocks import Feed, MovedWhilePaused, WorkerSide
from autograder.judging.remote import RunningSubmission
from autograder.judging.timed import Inconclusive, NeedsReview, NotHere, Timed, TooSlow
from autograder.pages.feedback import rows
from autograder.sandboxing.pausing import Pausing, below
from autograder.sandboxing.sandbox import (
    LandlockSandbox,
    Limits,
    NamespaceSandbox,
    ProcessSandbox,
    Sandbox,
    SandboxUnavailable,
    best_sandbox,
)
from autograder.spec import Assignment, Task, Threshold
from gpu_env.lease import Held, LeaseUnavailable, lease
from gpu_env.paired import Rule
from gpu_env.roofline import Work

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="speed is measured on Linux only")

FOLDER = suite.repository() / "tests" / "submissions" / "timing"
LENGTH, WIDTH = 128, 64
QUICK = Rule(block_s=0.010, processes=1)
"""Half a block and one process of each side: the true ratios here are far from what is asked for."""
THRESHOLD = {
    "cpu": Threshold(2.0, 1.0, "the reference against itself is 1, one matrix product about 20", "2 cores AMD EPYC")
}
LOOP = """
import torch

def attend(q, k, v):
    return torch.stack([torch.softmax(k @ row / 8.0, 0) @ v for row in q])
"""
PRODUCT = """
import torch

def attend(q, k, v):
    return torch.softmax(q @ k.T / 8.0, -1) @ v
"""


def three_tensors(rng: random.Random) -> list[torch.Tensor]:
    """Queries, keys and values of one head."""
    generator = torch.Generator().manual_seed(rng.getrandbits(63))
    return [torch.randn(LENGTH, WIDTH, generator=generator) for _ in range(3)]


def like_queries(q: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    """Memory for a result."""
    return torch.empty_like(q)


def close_to_torch(result: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """The result must be that of torch's own attention, to within a few roundings of float32."""
    expected = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    if not torch.allclose(result, expected, rtol=1e-4, atol=1e-5):
        fail("Attention is not what it should be.")


ATTENTION: dict[str, Any] = {"inputs": three_tensors, "output": like_queries, "right": close_to_torch}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """The strongest sandbox to be had here, with torch loaded."""
    with best_sandbox(["torch", "numpy"], 0) as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The judge's own comparisons take no processor from what is measured."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def timed(source: str, sandbox: Sandbox, *, seed: str = "secret", **more: Any) -> Timed:
    """A measurement of a submission that consists of `source`."""
    thresholds = more.pop("thresholds", THRESHOLD)
    return Timed([("attend", source)], sandbox, Limits(cpu_s=300), thresholds, seed=seed, rule=QUICK, **more)


def outcome(source: str, sandbox: Sandbox) -> tuple[str, str]:
    """How the measurement of a submission ends, and what it says."""
    measurement = timed(source, sandbox)
    try:
        measurement.expect("attend", reference=LOOP, **ATTENTION)
    except (CheckFailed, SubmissionFault, SubmissionRaised) as error:
        return "FAILED", str(error)
    except NeedsReview as error:
        return "REVIEW", str(error)
    except Inconclusive as error:
        return "INCONCLUSIVE", str(error)
    return "PASSED", repr(measurement.measurements)


def files(kind: str) -> list[Any]:
    """The submissions of a kind, as parameters."""
    return [pytest.param(path, id=path.stem) for path in sorted((FOLDER / kind).glob("*.py"))]


class TestCorpus:
    """Attacks on the measurement, and honest code that looks like them."""

    @pytest.mark.parametrize("path", files("hostile"))
    def test_no_attack_passes(self, path: Path, sandbox: Sandbox) -> None:
        """Each attack ends as its head says, on a machine that is too noisy perhaps undecided, and never as passed."""
        head = path.read_text(encoding="utf-8")
        expected = re.search(r"^ends as: ([A-Z ]+)$", head, re.M)
        assert expected
        assert re.search(r"^attack: (?:[TDVK]\d+ ?)+$", head, re.M)
        ended, said = outcome(head, sandbox)
        assert ended in [*expected[1].split(), "INCONCLUSIVE"], said

    @pytest.mark.parametrize("path", files("honest"))
    def test_honest_code_passes(self, path: Path, sandbox: Sandbox) -> None:
        """Threads, caches, workspaces, warnings and helpers cost nobody a point."""
        head = path.read_text(encoding="utf-8")
        assert re.search(r"^twin of: (?:[TDVK]\d+ ?)+$", head, re.M)
        for _ in range(3):
            ended, said = outcome(head, sandbox)
            if ended != "INCONCLUSIVE":  # the machine's word, not the submission's
                break
        assert ended == "PASSED", said


def side_of(source: str, sandbox: Sandbox, function: str = "attend", seed: int = 1, **more: Any) -> WorkerSide:
    """A side that runs `source`."""
    rng = random.Random(seed)
    settings: dict[str, Any] = ATTENTION | more
    running = RunningSubmission([("cell", source)], sandbox, Limits(cpu_s=300), call_s=20)
    return WorkerSide(running, function, Feed(settings.pop("inputs"), rng), rng, **settings)


@pytest.fixture
def side(sandbox: Sandbox) -> Iterator[Callable[..., WorkerSide]]:
    """Make sides, whose workers end with the test."""
    made: list[WorkerSide] = []

    def make(source: str, *args: Any, **more: Any) -> WorkerSide:
        made.append(side_of(source, more.pop("sandbox", sandbox), *args, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


class TestBlocks:
    """One block of calls."""

    @pytest.mark.parametrize("level", [0, 1, 3])
    def test_blocks_run_at_every_level(self, level: int, side: Callable[..., WorkerSide]) -> None:
        """Shared memory and stopping work in a plain process, behind Landlock and in namespaces."""
        try:
            kinds = {0: ProcessSandbox, 1: LandlockSandbox, 3: NamespaceSandbox}
            with kinds[level]() as own:
                one = side(PRODUCT, sandbox=own)
                assert 0 < one.time_block(3) < 20
                assert 0 < one.time_block(3, apart=True) < 20
                one.close()
        except SandboxUnavailable as error:
            pytest.skip(str(error))

    def test_every_call_gets_inputs_of_its_own(self, side: Callable[..., WorkerSide]) -> None:
        """Tensors, arrays and plain values arrive as they were drawn, in order, call by call."""
        drawn, seen = [], []

        def inputs(rng: random.Random) -> list[Any]:
            number = rng.randrange(1000)
            drawn.append(number)
            small = torch.tensor([number, 1], dtype=torch.bfloat16)
            return [torch.full((3, 5), float(number)), {"n": [number]}, numpy.full(7, number, "int16"), small, "text"]

        def right(result: Any, *given: Any) -> None:
            seen.append(result)
            expect_equal(result, [float(given[1]["n"][0])] * 2 + [given[1]["n"][0], "text"], "What came")

        source = "def f(a, b, c, d, e): return [float(a.mean()), float(c[6]), b['n'][0], e]"
        one = side(source, "f", inputs=inputs, output=None, right=right)
        for calls in (1, 10, 10):
            one.time_block(calls)
        assert len(seen) == 1 + 2 + 2
        assert len(drawn) == 21

    def test_several_results_and_odd_sizes(self, side: Callable[..., WorkerSide]) -> None:
        """A tuple of tensors and arrays of any shape comes back bit by bit."""

        def output(x: Any, y: Any) -> tuple[Any, Any]:
            return torch.empty(3, 1, dtype=torch.float64), numpy.empty((1, 7), "uint8")

        def right(result: Any, x: Any, y: Any) -> None:
            assert torch.equal(result[0], x.double() * 2)
            assert (result[1] == y).all()

        def inputs(rng: random.Random) -> list[Any]:
            return [torch.tensor([[rng.random()] for _ in range(3)]), numpy.frombuffer(rng.randbytes(7), "uint8")[None]]

        one = side("def f(x, y): return x.double() * 2, y", "f", inputs=inputs, output=output, right=right)
        one.time_block(5)

    @pytest.mark.parametrize(
        ("source", "says"),
        [
            ("def attend(q, k, v): return q.double()", "torch.float64, and a Tensor of shape"),
            ("def attend(q, k, v): return q[0]", "shape (64,)"),
            ("def attend(q, k, v): return q.numpy()", "a ndarray of shape"),
            ("def attend(q, k, v): return None", "a value of type NoneType"),
            ("def attend(q, k, v): return q, k", "a value of type tuple"),
        ],
    )
    def test_another_kind_of_result_is_told(self, source: str, says: str, side: Callable[..., WorkerSide]) -> None:
        """The student reads what came and what is asked for."""
        with pytest.raises(CheckFailed, match=re.escape(says)):
            side(source).time_block(2)

    def test_what_a_call_raises_is_the_submissions(self, side: Callable[..., WorkerSide]) -> None:
        """An exception ends the measurement as it ends a check."""
        with pytest.raises(SubmissionRaised, match="ZeroDivisionError"):
            side("def attend(q, k, v): return 1 / 0").time_block(2)

    def test_a_worker_that_never_answers_meets_its_limit(self, sandbox: Sandbox) -> None:
        """An endless call costs one limit, not the run."""
        rng = random.Random(1)
        running = RunningSubmission([("c", "def attend(q, k, v):\n  while True: pass")], sandbox, call_s=0.5)
        one = WorkerSide(running, "attend", Feed(three_tensors, rng), rng, right=close_to_torch, output=like_queries)
        with pytest.raises(SubmissionFault, match="did not answer"):
            one.time_block(1)
        one.close()

    def test_calls_that_come_apart_are_computed_apart(self, side: Callable[..., WorkerSide]) -> None:
        """Whoever answers 20 calls by one computation has to make 20 when inputs come one by one."""
        cheat = side((FOLDER / "hostile" / "answers_all_calls_at_once.py").read_text())
        assert cheat.time_block(20, apart=True) >= 20 * 0.004

    def test_kept_inputs_stay_as_they_were(self, side: Callable[..., WorkerSide]) -> None:
        """A submission may keep a tensor that it was given; the next block does not change it."""
        source = """
import torch
kept = []
def attend(q, k, v):
    for tensor, copy in kept:
        assert torch.equal(tensor, copy)
    kept.append((q, q.clone()))
    return torch.softmax(q @ k.T / 8.0, -1) @ v
"""
        one = side(source)
        for calls in (3, 3, 3, 5):
            one.time_block(calls)

    def test_inputs_may_be_overwritten(self, side: Callable[..., WorkerSide]) -> None:
        """What a submission does to its inputs reaches neither the judge nor the other side."""
        source = (
            "import torch\ndef attend(q, k, v):\n  r = torch.softmax(q @ k.T / 8.0, -1) @ v\n  q.zero_()\n  return r"
        )
        for calls in (2, 2):
            side(source).time_block(calls)

    def test_a_missing_result_is_found_in_every_call(self, side: Callable[..., WorkerSide]) -> None:
        """One call of many whose result is not there fails the block, compared or not."""
        source = """
import sys
import torch
calls = 0
def attend(q, k, v):
    global calls
    calls += 1
    return torch.softmax(q @ k.T / 8.0, -1) @ v if calls != 17 else sys._getframe(1).f_locals["place"][0]
"""
        with pytest.raises(CheckFailed, match="was not there"):
            side(source, right=lambda *_: None).time_block(40)

    def test_inputs_of_different_shapes_are_our_mistake(self, side: Callable[..., WorkerSide]) -> None:
        """A check whose inputs change their shape is broken, not failed."""
        one = side("def f(x): return x", "f", inputs=lambda rng: [torch.ones(rng.choice([2, 3]))], output=None)
        with pytest.raises(RuntimeError, match="same shapes"):
            one.time_block(40)

    def test_a_block_that_is_too_large_comes_in_parts(
        self, side: Callable[..., WorkerSide], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However much memory the inputs of a block need, little of it is used at once, and all calls are made."""
        monkeypatch.setattr("autograder.judging.blocks.MOST_BYTES", 1000)
        seen: list[int] = []
        one = side(
            "calls = 0\ndef f(x):\n  global calls\n  calls += 1\n  return calls",
            "f",
            inputs=lambda _: [numpy.zeros(400, "uint8")],
            output=None,
            right=lambda result, _: seen.append(result),
        )
        one.time_block(9)
        assert len(seen) == 5
        assert seen[-1] == 9
        assert [(2 * part < each <= 2 * part + 2) for part, each in enumerate(seen)] == [True] * 5

    def test_too_many_calls_are_told(self, side: Callable[..., WorkerSide]) -> None:
        """The author learns that one call must do more."""
        with pytest.raises(RuntimeError, match="too short"):
            side("def f(): return 1", "f", inputs=lambda _: [], output=None).time_block(1 << 17)

    def test_shared_memory_cannot_be_cut(self) -> None:
        """A worker that shortened it would end the judge at its next look."""
        memory = HostMemory([numpy.zeros(100)], numpy.zeros(100), 3)
        for each in memory.share():
            seals = fcntl.fcntl(each.fileno(), fcntl.F_GET_SEALS)
            assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            with pytest.raises(PermissionError):
                os.ftruncate(each.fileno(), 0)

    @given(st.lists(st.tuples(st.booleans(), st.integers(1, 5)), max_size=30))
    def test_no_side_gets_the_same_inputs_twice(self, takes: list[tuple[bool, int]]) -> None:
        """Whatever the order and the numbers of calls, every call of a side is new to it, and sides share what they can."""
        numbers = iter(range(10_000))
        feed = Feed(lambda _: [next(numbers)], random.Random(1))
        sides, seen = (object(), object()), ([], [])  # type: tuple[object, object], tuple[list[Any], list[Any]]
        for which, calls in takes:
            seen[which].extend(feed.take(sides[which], calls))
        for each in seen:
            assert len(set(each)) == len(each)
        if [which for which, _ in takes[:2]] in ([True, False], [False, True]):
            assert seen[0][: len(seen[1])][:1] == seen[1][:1]


class TestPausing:
    """Stopping a worker from outside."""

    BUSY = """
import os, threading, time

def burn():
    while True:
        sum(range(1000))

def start():
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            burn()
        os._exit(0)
    os.wait()
    if os.fork() == 0:
        burn()
    for _ in range(2):
        threading.Thread(target=burn, daemon=True).start()

def answer():
    return 42
"""

    def test_everything_stands_still(self, sandbox: Sandbox) -> None:
        """Threads, children and orphans use no processor while stopped, and go on afterwards."""
        running = RunningSubmission([("cell", self.BUSY)], sandbox, Limits(cpu_s=300))
        running.start()
        worker = running.worker()
        assert len(worker.processes()) == 3
        pausing = Pausing(worker)
        pausing.stop()
        pausing.stop()
        time.sleep(0.2)
        assert pausing.look() == 0.0
        pausing.resume()
        assert running.answer() == 42
        pausing.stop()
        assert pausing.look() == 0.0
        running.close()
        assert worker.processes() == []

    def test_forks_do_not_escape(self, sandbox: Sandbox) -> None:
        """A worker that forks without end stands still all the same."""
        source = """
import os, threading

def fork():
    while True:
        try:
            pid = os.fork()
        except OSError:
            continue
        if pid == 0:
            os._exit(0) if os.getpid() % 3 else [sum(range(1000)) for _ in range(20)] and os._exit(0)
        try:
            os.waitpid(-1, os.WNOHANG)
        except OSError:
            pass

def start():
    threading.Thread(target=fork, daemon=True).start()
"""
        running = RunningSubmission([("cell", source)], sandbox, Limits(cpu_s=300, processes=12))
        running.start()
        pausing = Pausing(running.worker())
        for _ in range(5):
            time.sleep(0.02)
            pausing.stop()
            time.sleep(0.02)
            assert pausing.look() == 0.0
            pausing.resume()
        running.close()

    def test_a_worker_that_goes_on_by_itself_is_seen(self, sandbox: Sandbox) -> None:
        """A timer that continues the worker shows on its CPU clock."""
        source = (FOLDER / "hostile" / "wakes_itself_up.py").read_text()
        running = RunningSubmission([("cell", source)], sandbox, Limits(cpu_s=300))
        pausing = Pausing(running.worker())
        deadline = time.monotonic() + 60
        while not pausing.ran_s and time.monotonic() < deadline:  # a stop at the wrong moment cancels the timer
            pausing.stop()
            time.sleep(0.1)
            pausing.look()
            pausing.resume()
            time.sleep(0.05)
        assert pausing.ran_s > 0
        running.close()

    def test_the_submission_is_told_to_a_person(self, side: Callable[..., WorkerSide]) -> None:
        """Its block does not count."""
        one = side((FOLDER / "hostile" / "wakes_itself_up.py").read_text())

        def measure() -> None:
            for _ in range(200):
                one.time_block(1)
                time.sleep(0.05)

        with pytest.raises(MovedWhilePaused, match="while it was to stand still"):
            measure()

    def test_descendants_are_found(self) -> None:
        """Children of children, and not oneself."""
        shell = subprocess.Popen(["sh", "-c", "sleep 30 & sleep 30 & wait"])
        try:
            deadline = time.monotonic() + 10
            while len(below(shell.pid)) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(below(shell.pid)) == 2
            assert set(below(shell.pid)) < set(below(os.getpid()))
        finally:
            for pid in [*below(shell.pid), shell.pid]:
                os.kill(pid, signal.SIGKILL)
            shell.wait()


class TestVerdicts:
    """From measurements to outcomes."""

    def test_a_right_and_slow_submission_has_its_share(self, sandbox: Sandbox) -> None:
        """Credit lies between none at the naive speed and less than all at the threshold; the message says why."""
        measurement = timed(PRODUCT, sandbox, thresholds={"cpu": Threshold(1e6, 1.0, "1", "x")})
        with pytest.raises(TooSlow) as raised:
            measurement.expect("attend", reference=LOOP, **ATTENTION)
        assert 0 < raised.value.credit < 1
        share = math.log(measurement.measurements["speedup"]) / math.log(1e6)
        assert share <= raised.value.credit <= share + 0.051
        assert "1e+06 times is asked for" in raised.value.message
        assert f"{raised.value.credit:.0%} of the points" in raised.value.message
        assert {"speedup", "speedup_low", "speedup_high", "pairs", "block_ms"} <= measurement.measurements.keys()

    def test_a_wrong_submission_is_told_what_is_wrong(self, sandbox: Sandbox) -> None:
        """Speed does not matter then."""
        with pytest.raises(CheckFailed, match="Attention is not"):
            timed("def attend(q, k, v): return q", sandbox).expect("attend", reference=LOOP, **ATTENTION)

    @pytest.mark.parametrize(
        ("reference", "says"),
        [
            ("def attend(q, k, v): return q", "Attention is not what it should be"),
            ("def attend(q, k, v): return 1 / 0", "ZeroDivisionError"),
            ("def other(): pass", "NameError"),
            ("import os\nos._exit(3)", "exit code 3"),
        ],
    )
    def test_what_the_reference_does_wrong_is_our_fault(self, reference: str, says: str, sandbox: Sandbox) -> None:
        """It ends as an exception that makes the check BROKEN."""
        with pytest.raises(RuntimeError, match=f"reference implementation failed.*{says}"):
            timed(PRODUCT, sandbox).expect("attend", reference=reference, **ATTENTION)

    def test_a_call_too_short_to_be_timed_is_our_fault(self, sandbox: Sandbox) -> None:
        """The author is told before anybody is measured."""
        with pytest.raises(RuntimeError, match=r"takes .* us. Let one do more"):
            timed("def f(): return 1", sandbox).expect(
                "f", reference="def f(): return 1", inputs=lambda _: [], right=lambda result: None
            )

    def test_plain_values_are_measured_too(self, sandbox: Sandbox) -> None:
        """A class that the student defines is driven by code of the suite, and gives plain values."""
        slow = "class Queue:\n  def __init__(s): s.a = []\n  def put(s, x): s.a.insert(0, x)\n  def get(s): return s.a.pop()"
        fast = "from collections import deque\n" + slow.replace("s.a = []", "s.a = deque()").replace(
            "insert(0, ", "appendleft("
        )
        driver = """
def run(values):
    queue = Queue()
    for value in values:
        queue.put(value)
    return [queue.get() for _ in values][-3:]
"""

        def right(result: Any, values: list[int]) -> None:
            expect_equal(result, values[-3:], "The last three")

        measurement = timed(fast, sandbox, thresholds={"cpu": Threshold(1.5, 1.0, "1", "x")})
        measurement.expect(
            "run",
            reference=slow,
            inputs=lambda rng: [[rng.randrange(1 << 40) for _ in range(12_000)]],
            right=right,
            driver=driver,
        )
        assert measurement.measurements["speedup"] > 1.4

    def test_without_a_gpu_a_gpu_threshold_is_not_measured(self, sandbox: Sandbox) -> None:
        """Withheld, not failed; a CPU threshold beside it is measured instead."""
        if sandbox.devices:
            pytest.skip("workers here can use a GPU")
        gpu = {"gpu": Threshold(2.0, 1.0, "1", "H100")}
        with pytest.raises(NotHere, match="GPU"):
            timed(PRODUCT, sandbox, thresholds=gpu).expect("attend", reference=LOOP, **ATTENTION)
        assert timed(PRODUCT, sandbox, thresholds=gpu | THRESHOLD).device == "cpu"

    def test_a_check_measures_once_and_has_a_threshold(self, sandbox: Sandbox) -> None:
        """Both are mistakes of the suite."""
        with pytest.raises(RuntimeError, match="no threshold"):
            timed(PRODUCT, sandbox, thresholds={}).expect("attend", reference=LOOP, **ATTENTION)
        measurement = timed(PRODUCT, sandbox)
        measurement.measurements["waited_s"] = 0.0
        with pytest.raises(RuntimeError, match="measures once"):
            measurement.expect("attend", reference=LOOP, **ATTENTION)

    def test_less_time_than_the_work_takes_is_for_a_person(self, sandbox: Sandbox) -> None:
        """No machine of ours does 1 PFLOP in a millisecond; the machine is probed again before anybody is accused."""
        with pytest.raises((NeedsReview, Inconclusive), match=r"cannot do the work in less than|faster now than"):
            timed(PRODUCT, sandbox).expect("attend", reference=LOOP, **ATTENTION, least=Work(flops=1e15))

    def test_signs_of_life_are_given(self, sandbox: Sandbox) -> None:
        """Whoever counts a silent judge as hanging hears of this one all the time."""
        signs: list[str] = []
        measurement = timed(LOOP, sandbox, alive=lambda: signs.append("alive"), quiet=lambda: signs.append("quiet"))
        with pytest.raises(TooSlow):
            measurement.expect("attend", reference=LOOP, **ATTENTION)
        assert signs.count("alive") > 20
        assert [sign for sign in signs if sign == "quiet"] == ["quiet"], "other processes of the submission end once"

    @pytest.mark.parametrize("outcome", [Outcome.PASSED, Outcome.FAILED, Outcome.INCONCLUSIVE])
    def test_students_see_their_own_speed(self, outcome: Outcome) -> None:
        """The figures are the judge's, so they are shown of a hidden check too, and of one that passed."""
        task = Task("attend", "Attend", 1, {"test_a": 1}, {"test_b": 4}, {"test_b": THRESHOLD})
        figures = {"speedup": 1.417, "speedup_low": 1.381, "speedup_high": 1.47, "speedup_asked": 2.0, "pairs": 20.0}
        finding = Finding(
            check="test_b", task="attend", outcome=outcome, hidden=True, sentence="Fast.", message="secret",
            measurements=figures,
        )  # fmt: skip
        (row,) = rows(Assignment("a", "A", (task,)), [finding])
        said = dict(row.details)
        assert said["measured:"] == "1.42 times as fast as the reference (1.38 to 1.47); 2 is asked for"
        assert "secret" not in str(said)


class TestLease:
    """One measurement at a time."""

    def test_the_second_waits_for_the_first(self, tmp_path: Path) -> None:
        """It says so meanwhile, and goes on when the first one ends; other devices are free."""
        asked: list[int] = []
        with lease("cpu", folder=tmp_path) as held, lease("GPU-0", folder=tmp_path):
            assert held.waited_s < 5
            code = f"""
import pathlib, time
from gpu_env.lease import lease
with lease("cpu", folder=pathlib.Path({str(tmp_path)!r}), waiting=lambda: print("waiting", flush=True)) as held:
    print("had", held.waited_s > 0.5, flush=True)
"""
            other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
            assert other.stdout
            assert other.stdout.readline() == "waiting\n"
            asked.append(1)
        assert other.communicate(timeout=60)[0].splitlines()[-1] == "had True"
        assert asked

    def test_a_killed_holder_lets_go(self, tmp_path: Path) -> None:
        """The kernel takes the lock from a process that is gone."""
        code = f"""
import pathlib, time
from gpu_env.lease import lease
with lease("cpu", folder=pathlib.Path({str(tmp_path)!r})):
    print("had", flush=True)
    time.sleep(600)
"""
        holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert holder.stdout
        assert holder.stdout.readline() == "had\n"
        with pytest.raises(LeaseUnavailable, match="another process"), lease("cpu", folder=tmp_path, wait_s=0.2):
            pass
        holder.kill()
        holder.wait()
        with lease("cpu", folder=tmp_path, wait_s=60):
            pass

    def test_the_file_is_ours_alone(self, tmp_path: Path) -> None:
        """Mode 0600, no link is followed, and no folder or pipe passes for the file."""
        with lease("cpu", folder=tmp_path):
            (file,) = tmp_path.iterdir()
            assert file.stat().st_mode & 0o777 == 0o600
        file.unlink()
        file.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(LeaseUnavailable, match="cannot be opened"), lease("cpu", folder=tmp_path):
            pass
        assert not (tmp_path / "elsewhere").exists()
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(LeaseUnavailable, match="not a plain file"), lease("cpu", folder=tmp_path):
            pass

    def test_without_a_place_for_locks_everybody_goes_on(self, tmp_path: Path) -> None:
        """Systems without /dev/shm measure without a lease."""
        with lease("cpu", folder=tmp_path / "none") as held:
            assert held == Held("cpu", 0.0)


COUNT = """
calls = 0

def count():
    global calls
    calls += 1
    return calls
"""
SUITE = {
    "test_public.py": '''
def test_runs(submission):
    """It gives something."""
    import torch
    submission.attend(*(torch.ones(2, 64) for _ in range(3)))
''',
    "test_hidden.py": '''
import random
import torch
from autograder.checks import fail

LOOP = """
import torch
def attend(q, k, v):
    return torch.stack([torch.softmax(k @ row / 8.0, 0) @ v for row in q])
"""
MORE = {
    "inputs": lambda rng: [torch.full((128, 64), rng.random()) for _ in range(3)],
    "output": lambda q, k, v: torch.empty_like(q),
    "right": lambda result, q, k, v: None if torch.allclose(result, v, atol=1e-4) else fail("It is wrong."),
}


def test_speed(submission, timed):
    """It is faster than a loop.

    Hint: Use one product.
    """
    torch.set_num_threads(1)
    before = submission.count()
    timed.expect("attend", reference=LOOP, **MORE)
    if (before, submission.count()) != (1, 1):
        raise RuntimeError("the submission's other process was there all the time")


def test_speed_on_a_gpu(submission, timed):
    """It is faster than a loop on a GPU."""
    timed.expect("attend", reference=LOOP, **MORE)


def test_unmeasured(submission, timed):
    """Nothing is measured here."""


def test_bad_reference(submission, timed):
    """The reference is wrong."""
    timed.expect("attend", reference="def attend(q, k, v): return q + 1", **MORE)
''',
    "judge.py": """
import json, os, sys
from pathlib import Path
from autograder.judging.judge import judge
from autograder.manifest import Manifest
from autograder.sandboxing.sandbox import best_sandbox
from autograder.spec import Assignment, Task, Threshold
from autograder.submission import Submission

fast = {"cpu": Threshold(2.0, 0.5, "loop 1, product 20", "a machine")}
names = ("test_speed", "test_speed_on_a_gpu", "test_unmeasured", "test_bad_reference")
thresholds = dict.fromkeys(names, fast) | {"test_speed_on_a_gpu": {"gpu": Threshold(2.0, 1.0, "3", "H100")}}
task = Task("attend", "Attend", 1, {"test_runs": 1}, dict.fromkeys(names, 10), thresholds)
assignment = Assignment("speedy", "Speedy", (task,), ("torch",))
manifest = Manifest(
    assignment="speedy", title="Speedy", release="1", preload=("torch",), call_s=10, check_s=60, cpu_s=300,
    memory_bytes=2 << 30, cells=("attend",), given={}, stubs={}, tasks={},
)


class Watcher:
    signs = 0

    def pytest_judge_alive(self):
        self.signs += 1


folder = Path(sys.argv[1])
with best_sandbox(["torch"], 0) as sandbox:
    for source in json.load(sys.stdin):
        watcher = Watcher()
        submission = Submission("attend.py", {"attend": source})
        sys.stdout.flush()
        if (pid := os.fork()) == 0:
            files = [folder / "test_public.py", folder / "test_hidden.py"]
            findings = judge(assignment, files, submission, manifest, sandbox, seed=7, watchers=[watcher])
            print(json.dumps([[each.model_dump(mode="json") for each in findings], watcher.signs]), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
""",
}


def test_findings_carry_what_was_measured(tmp_path: Path) -> None:
    """Fast enough, too slow, suspicious, not measurable here and our own mistakes come out as findings, with figures."""
    for name, text in SUITE.items():
        (tmp_path / name).write_text(text)
    suspicious = (FOLDER / "hostile" / "wakes_itself_up.py").read_text()
    done = subprocess.run(
        [sys.executable, str(tmp_path / "judge.py"), str(tmp_path)],
        input=json.dumps([f"{source}\n{COUNT}" for source in (PRODUCT, LOOP, suspicious)]),
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
    assert len(lines) == 3, done.stdout + done.stderr
    assert all(signs > 10 for _, signs in lines[:2])
    fast, slow, strange = ({each["check"]: each for each in findings} for findings, _ in lines)
    for each in (fast, slow, strange):
        assert each["test_runs"]["outcome"] == "PASSED"
        assert not each["test_runs"]["measurements"]
        assert each["test_unmeasured"]["outcome"] == "BROKEN"
        assert "measured nothing" in each["test_unmeasured"]["message"]
        assert each["test_bad_reference"]["outcome"] == "BROKEN"
        assert "reference implementation failed: It is wrong." in each["test_bad_reference"]["message"]
        if not Path("/dev/nvidiactl").exists():
            assert each["test_speed_on_a_gpu"]["outcome"] == "SKIPPED"
    assert fast["test_speed"]["outcome"] in ("PASSED", "INCONCLUSIVE"), fast["test_speed"]
    assert fast["test_speed"]["credit"] is None
    assert fast["test_speed"]["measurements"]["speedup"] > 2
    assert slow["test_speed"]["outcome"] in ("FAILED", "INCONCLUSIVE"), slow["test_speed"]
    if slow["test_speed"]["outcome"] == "FAILED":
        assert 0 < slow["test_speed"]["credit"] < 1
        assert slow["test_speed"]["hint"] == "Use one product."
        assert "2 times is asked for" in slow["test_speed"]["message"]
        assert slow["test_speed"]["expected"] == "at least 2 times as fast"
    assert strange["test_speed"]["outcome"] in ("REVIEW", "INCONCLUSIVE"), strange["test_speed"]
