"""The wire under fuzzing, shortly, and what fuzzing found; and broken frames in a real judged run.

The long run is `python tests/benchmarks/fuzz_wire.py --seconds 300`. What a frame may hold is tested in `test_wire.py`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autograder.checks import CheckFailed, SubmissionFault, show
from autograder.finding import Finding, Outcome
from autograder.judging.remote import RunningSubmission
from autograder.manifest import Manifest, TaskEntry
from autograder.suite import repository
from autograder.worker import wire

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SEED = 20261123
RUNS = {"judge": 500, "worker": 400, "grader": 60, "store": 300}
"""Inputs of each target; those of the grader take two processes each."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")


def fuzz(*arguments: str, **environment: str) -> dict[str, Any]:
    """The figures of a run of the fuzzer. Not more than a few hundred inputs: how long they take is the machine's."""
    command = [sys.executable, str(BENCHMARKS / "fuzz_wire.py"), "--seconds", "300", "--seed", str(SEED), "--json"]
    done = subprocess.run(
        [*command, *arguments], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == bool(figures["findings"])
    return figures


@pytest.fixture(scope="module")
def targets() -> Iterator[Any]:
    """The module `fuzz_targets`, which lies beside the benchmark and nowhere that Python looks."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("fuzz_targets")
    sys.path.remove(str(BENCHMARKS))


class TestFuzzer:
    """The fuzzer itself."""

    @pytest.mark.parametrize("target", RUNS)
    def test_nothing_is_found(self, target: str) -> None:
        """Hundreds of malformed inputs end as they may end, each in time and in bounded memory."""
        figures = fuzz("--runs", str(RUNS[target]), "--target", target)
        assert figures["findings"] == []
        assert figures["inputs"] >= RUNS[target]
        tried = figures["targets"][target]
        assert len(tried["outcomes"]) > 1, "all inputs ended alike: none of them got anywhere"
        assert 0 < tried["peak_bytes"] < 512 << 20
        if target == "judge":
            assert {"value", "SubmissionFault", "SubmissionRaised", "CheckFailed"} <= tried["outcomes"].keys()
        if figures["engine"].startswith("atheris"):
            assert tried["edges"] > 50

    def test_without_atheris_it_says_so_and_fuzzes_all_the_same(self, tmp_path: Path) -> None:
        """Where the coverage-guided engine cannot be had the figures name the reason, and are real."""
        (tmp_path / "atheris.py").write_text("raise ImportError('none for this machine')")
        figures = fuzz("--runs", "150", "--target", "judge", PYTHONPATH=str(tmp_path))
        assert figures["engine"] == (
            "random mutations without coverage: atheris cannot be imported (none for this machine)"
        )
        assert figures["findings"] == []
        assert figures["inputs"] == 150
        assert figures["targets"]["judge"]["edges"] is None
        assert len(figures["targets"]["judge"]["outcomes"]) > 2

    @pytest.mark.parametrize(
        ("fault", "kind"),
        [
            ("raise KeyError(data)", "exception"),
            ("while time.thread_time() - began < 1: pass", "time"),
            ("return str(len(b'x' * (64 << 20)))", "memory"),
        ],
    )
    def test_it_sees_what_it_looks_for(self, tmp_path: Path, fault: str, kind: str) -> None:
        """An exception, a busy loop and a large allocation are findings, with the input, once each; others are none."""
        script = (
            f"import sys, time; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
            "import fuzz_wire\n"
            "from pathlib import Path\n"
            "class Target:\n"
            "  limit_s = 0.0\n"
            "  def run(self, data):\n"
            "    began = time.thread_time()\n"
            "    if data[:3] != b'bad': return 'fine'\n"
            f"    {fault}\n"
            "    return 'late'\n"
            f"watch = fuzz_wire.Watch(Target(), Path({str(tmp_path)!r}))\n"
            "for data in (b'good', b'bad 1', b'bad 2', b'good'): watch(data)\n"
            "watch.note()\n"
        )
        subprocess.run([sys.executable, "-c", script], check=True)
        report = json.loads((tmp_path / "report.json").read_bytes())
        assert [(found["kind"], found["data"]) for found in report["findings"]] == [(kind, "YmFkIDE=")]
        assert (report["inputs"], report["outcomes"]["fine"]) == (4, 2)


BIG = 8 << 20
"""Bytes of a tensor of which one object per number would take a minute, and gigabytes."""
RAISED: dict[str, Any] = {"type": "E", "mro": ["E"], "text": "", "lines": [], "name": None, "data": {}}


class TestFound:
    """What fuzzing found in the judge's reading of replies, each as it was found."""

    @pytest.fixture
    def say(self, targets: Any) -> Iterator[Any]:
        """A running submission whose worker loads in order, then says `messages`; a tensor of `BIG` bytes comes with each."""
        started = []

        def start(*messages: Any, loads: bool = True) -> RunningSubmission:
            said = targets.LOADED if loads else b""
            for message in messages:
                said += targets.frame(targets.tree(message), *([bytes(BIG)] if "Raw" in repr(message) else []))
            started.append(RunningSubmission([("cell", "")], targets.Peers(said, "ends"), call_s=30.0))
            return started[-1]

        yield start
        for running in started:
            running.close()

    @pytest.fixture
    def big(self, targets: Any) -> Any:
        """A large tensor, as a message holds it."""
        return targets.Raw((wire.ARRAY, "torch", "uint8", (BIG,), 0))

    @pytest.mark.parametrize("key", ["kind", "type", "parameters", "one of the parameters"])
    def test_a_description_is_of_texts(self, say: Any, big: Any, key: str) -> None:
        """A tensor for a text or for the list of them is a fault at once, and is not taken apart number by number."""
        found = {"kind": "callable", "type": "function", "parameters": []}
        found |= {"parameters": ["a", big]} if key.startswith("one") else {key: big}
        with pytest.raises(SubmissionFault, match="a description that is none"):
            say(["value", found]).describe("f")

    @pytest.mark.parametrize("place", ["the line", "its number", "its text"])
    def test_a_line_of_a_traceback_is_cell_number_and_text(self, say: Any, big: Any, place: str) -> None:
        """The same for the lines of an exception: nothing is converted that could be anything."""
        line = {"the line": big, "its number": ["cell", big, "x"], "its text": ["cell", 1, big]}[place]
        with pytest.raises(SubmissionFault, match="an exception that is not one"):
            say(["raised", RAISED | {"lines": [line]}]).f()

    def test_what_failed_to_load_has_names(self, say: Any, big: Any) -> None:
        """A tensor for the name of a cell is a fault."""
        with pytest.raises(SubmissionFault, match="no list of what failed to load"):
            say(["value", {big: RAISED}], loads=False).f()

    def test_a_load_fault_keeps_nothing_of_what_was_sent(self, say: Any, big: Any) -> None:
        """The fault is told to every later check, so it must not hold on to the frame that was at fault."""
        running = say(["value", {"cell": RAISED, "other": big}], loads=False)
        with pytest.raises(SubmissionFault) as fault:
            running.f()
        assert fault.value.__context__ is None

    def test_a_wrong_argument_has_a_short_message(self, say: Any) -> None:
        """The name of an argument is the submission's to choose; a megabyte of it does not go into the finding."""
        running = say(["invoke", 0, [1], {"x" * 1_000_000: 1}], ["value", None])
        with pytest.raises(CheckFailed, match="wrong arguments") as failed:
            running.f(lambda one: one)
        assert len(failed.value.message) < 1_000

    def test_a_callback_that_fails_keeps_nothing_of_what_was_sent(self, say: Any, big: Any) -> None:
        """What was handed to it is free when the check has ended, not whenever Python looks for cycles."""
        seen: list[weakref.ref[Any]] = []

        def fail(value: Any) -> None:
            seen.append(weakref.ref(value))
            raise LookupError

        running = say(["invoke", 0, [big], {}], ["value", None])
        gc.disable()
        try:
            with pytest.raises(LookupError):
                running.f(fail)
            assert [each() for each in seen] == [None]
        finally:
            gc.enable()

    @pytest.mark.parametrize("value", ["\ud800", 1 << 20_000, ["x" * (5 << 20)]], ids=type)
    def test_a_value_of_ours_that_cannot_cross_is_no_fault_of_the_submission(self, say: Any, value: Any) -> None:
        """A mistake in a suite makes a check BROKEN: it comes out as an error of ours."""
        with pytest.raises(TypeError, match="a check sent a value that cannot cross"):
            say(["value", 1]).f(value)

    def test_whatever_a_callback_was_given_it_can_give_back(self, say: Any) -> None:
        """The largest integer that is received is one that can be sent; a larger one is the submission's fault."""
        largest = [wire.INT, hex((1 << wire.MAX_BITS) - 1)]
        too_large = [wire.INT, hex(1 << wire.MAX_BITS)[2:]]
        raw = importlib.import_module("fuzz_targets").Raw
        assert say(["invoke", 0, [raw(tuple(largest))], {}], ["value", 5]).f(lambda value: value) == 5
        with pytest.raises(SubmissionFault, match="too large"):
            say(["invoke", 0, [raw(tuple(too_large))], {}], ["value", 5]).f(lambda value: value)


FINDING = {"check": "test_bytes_per_kv_head", "task": "kv_bytes_per_token", "hidden": False, "sentence": "It works."}
BROKEN = {"findings": [FINDING | {"outcome": "BROKEN"}], "times": {}, "overloaded": False}


class TestJudgesOutput:
    """What the grader reads from a judge's pipe."""

    @pytest.mark.parametrize(
        "said",
        [
            b"{}", b"\xff", b"[]", b"5", b"null", b'"findings"', b"[" * 100_000, b'{"error": [1]}', b'{"findings": 5}',
            b'{"findings": [5]}', b'{"findings": [], "times": []}', b'{"findings": [], "times": {"x": "y"}}',
            b'{"findings": []}', b'{"findings": [], "times": {"x": 1%s}}' % (b"0" * 400), b" " * (65 << 20),
        ],
        ids=lambda said: said[:30].decode(errors="replace"),
    )  # fmt: skip
    def test_nonsense_withholds_one_grade_and_stops_nobody(self, targets: Any, said: bytes) -> None:
        """A judge that ends in good order and writes nonsense is one that failed; the run goes on."""
        assert targets.grader(b"\0" + said) in ("problem", "withheld")

    def test_doubts_come_to_an_end(self, targets: Any) -> None:
        """A judge that meets something unexplained in every try is not asked for ever."""
        assert (
            targets.grader(b"\0" + json.dumps(BROKEN | {"doubts": ["test_bytes_per_kv_head"]}).encode()) == "withheld"
        )

    def test_a_value_is_shown_in_a_few_lines(self) -> None:
        """Four levels of twenty texts of two hundred characters would make a finding of megabytes."""
        value: Any = "x" * 200
        for _ in range(4):
            value = [value] * 20
        assert len(show(value)) <= 1_000


# --------------------------------------------------------------------------------------------- frames in a judged run

HELPERS = """
import os, stat, struct, time
import msgspec
LINES = []
for number in range(3, 64):
    try:
        if stat.S_ISSOCK(os.fstat(number).st_mode): LINES.append(number)
    except OSError: pass
def say(data):
    left = memoryview(data)
    while left: left = left[os.write(LINES[0], left):]
def frame(tree, *buffers):
    body = tree if isinstance(tree, bytes) else msgspec.msgpack.encode(tree)
    lengths = b"".join(struct.pack("!Q", len(each)) for each in buffers)
    return struct.pack("!IH", len(body), len(buffers)) + lengths + body + b"".join(buffers)
def silence():
    while True: time.sleep(1)
"""
ATTACKS = {
    "honest": ("def f(): return 5", ""),
    "drips": (
        "def f():\n  for byte in frame(b'\\xc0' * 1000):\n    say(bytes([byte]))\n    time.sleep(0.05)",
        "did not answer within",
    ),
    "stops in the middle": ("def f(): say(frame([0, 'value', 5])[:9]); silence()", "did not answer within"),
    "is cut off": ("def f(): say(frame([0, 'value', 5])[:9]); os._exit(0)", "ended with exit code 0"),
    "announces too much": ("def f(): say(struct.pack('!IH', 2**32 - 1, 2**16 - 1)); silence()", "at most 4,194,304"),
    "announces too large a tensor": ("def f(): say(struct.pack('!IHQ', 9, 1, 1 << 62)); silence()", "at most 1,073,741,824"),
    "promises a gigabyte": ("def f(): say(struct.pack('!IHQ', 1, 1, 1 << 30) + b'\\xc0'); silence()", "did not answer within"),
    "nests deeply": ("def f(): say(frame(b'\\x91' * 1_000_000 + b'\\xc0')); silence()", "cannot be read: not a message"),
    "nests a little too deeply": (
        "def f():\n  tree = 5\n  for _ in range(33): tree = [0, tree]\n  say(frame([0, 'value', tree])); silence()",
        "nested deeper than 32",
    ),
    "sends keys that hash alike": (
        "def f():\n"
        "  import itertools\n"
        "  keys = [[1, *key] for key in itertools.product([-1, -2], repeat=15)]\n"
        "  say(frame([0, 'value', [2, *[part for key in keys for part in (key, None)]]])); silence()",
        "did not answer within",
    ),
    "names one tensor many times": (
        "def f():\n"
        "  size = 1 << 20\n"
        "  say(frame([0, 'value', [0, *[[4, 'torch', 'bool', [size], 0]] * 1_000]], bytes(size))); silence()",
        "cannot be read: a malformed tensor",
    ),
    "describes itself with a tensor": (
        "size = 4 << 20\n"
        "parameters = ['parameters', [4, 'torch', 'uint8', [size], 0]]\n"
        "say(frame([0, 'value', [2]]))\n"
        "say(frame([0, 'value', [2, 'kind', 'callable', 'type', 'x', *parameters]], bytes(size)))\n"
        "silence()",
        "sent a description that is none",
    ),
}  # fmt: skip
"""Cells of the task, and what the student reads of it."""

JUDGED = """
import json, os, sys
import torch  # what judges load at the first tensor is no growth
from pathlib import Path
from autograder.judging.judge import judge
from autograder.manifest import Manifest
from autograder.sandboxing.sandbox import best_sandbox
from autograder.submission import Submission

def peak():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) << 10

folder = Path(sys.argv[1])
manifest = Manifest.load(folder)
helpers, attacks = json.load(sys.stdin)
with best_sandbox((), 0) as sandbox:
    judges = []
    for name, source in attacks.items():
        if (pid := os.fork()) == 0:
            before = peak()
            submission = Submission("one.ipynb", {"helpers": helpers, "f": source})
            found = judge(manifest.public_assignment(), [folder / "public_checks.py"], submission, manifest, sandbox, seed=1)
            said = {"findings": [each.model_dump(mode="json") for each in found], "grew": peak() - before}
            (folder / name).write_text(json.dumps(said))
            os._exit(0)
        os.waitpid(pid, 0)
"""
CHECK = '''
from autograder.checks import expect_equal

def test_f(submission):
    """It gives five."""
    expect_equal(submission.f(), 5, "f()")
'''


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a real judge found about each of the attacks, in the best sandbox of this machine, and by how much it grew."""
    folder = tmp_path_factory.mktemp("judged")
    task = TaskEntry(title="F", minutes=1, points=1, public={"test_f": 1})
    real = Manifest.load(repository() / "assignments" / "kv_cache")
    given = {"assignment": "one", "cells": ("helpers", "f"), "given": {}, "stubs": {}, "tasks": {"f": task}}
    manifest = real.model_copy(update={**given, "preload": (), "call_s": 1.0, "check_s": 5.0})
    (folder / "manifest.json").write_text(manifest.dump())
    (folder / "public_checks.py").write_text(CHECK)
    request = json.dumps([HELPERS, {name: source for name, (source, _) in ATTACKS.items()}])
    subprocess.run([sys.executable, "-c", JUDGED, str(folder)], input=request, text=True, check=True, timeout=300)
    return {name: json.loads((folder / name).read_text()) for name in ATTACKS}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
class TestJudgedRun:
    """Frames that a submission writes into its line itself, judged like any other submission."""

    @pytest.mark.parametrize("name", [name for name in ATTACKS if name != "honest"])
    def test_a_broken_frame_fails_the_check_with_a_reason(self, judged: dict[str, Any], name: str) -> None:
        """Whatever the frame, the check is FAILED, says why, and the judge's memory stays in bounds."""
        (found,) = map(Finding.model_validate, judged[name]["findings"])
        assert (found.check, found.outcome) == ("test_f", Outcome.FAILED)
        assert ATTACKS[name][1] in found.message
        assert len(found.message) < 1_000
        assert judged[name]["grew"] < 400 << 20

    def test_the_honest_one_passes(self, judged: dict[str, Any]) -> None:
        """The same check, with the same helpers, can be passed."""
        assert [found["outcome"] for found in judged["honest"]["findings"]] == [Outcome.PASSED]
