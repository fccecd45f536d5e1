"""What `fuzz_wire.py` fuzzes: each place where bytes of a process or a file that may lie or be damaged are read.

| target | reads, and who may lie or be damaged                            | may end in                        |
|--------|-----------------------------------------------------------------|-----------------------------------|
| judge  | `RunningSubmission`, every kind of call: a hostile worker       | a value or the submission's fault |
| worker | `worker.serve`, every message: a confused judge                 | its end, by whatever exception    |
| grader | `Grader.grade`, what a judge writes: a confused judge           | a stored result or a problem      |
| store  | `grading.stored`, a file of results: a damaged disk             | a result, none, `Refused`         |

"The submission's fault" is `SubmissionFault`, `SubmissionRaised` or `CheckFailed`, which all make a check FAILED.
A target takes bytes and gives a word for how it ended. Whatever else it raises is a finding; so are, in every target, time
beyond the limit and memory out of proportion, which `fuzz_wire.py` watches.
Not covered: sockets that are passed along; a judge that is not there (the line is always open at first).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import linecache
import math
import os
import random
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz_mutate import FINDING, frame, mutate_bytes, mutate_frames, mutate_json  # type: ignore[import-not-found]

from autograder import results, suite
from autograder.checks import CheckFailed, SubmissionFault, SubmissionRaised, expect_close, expect_equal, show
from autograder.grade import Graded
from autograder.judging import remote
from autograder.judging.remote import RunningSubmission
from autograder.runs.grading import Grader, Job, result_file, stored
from autograder.sandboxing.isolation import Limits, Worker
from autograder.sandboxing.sandbox import InlineSandbox
from autograder.submission import Submission
from autograder.worker import wire
from autograder.worker.serve import serve
from autograder.worker.wire import Deadline

__all__ = ["TARGETS", "Target"]

CALL_S = 0.2
"""Limit of one call where the worker says all that it has to say at once."""
STALL_S = 0.02
"""The same where it stops in the middle, or goes on byte by byte."""
AT_ONCE = 1 << 16
"""Bytes that a socket takes without anybody who reads them."""
MAX_TEXT = 3_000
"""Characters of any text that goes into a finding."""


@dataclass(frozen=True)
class Target:
    """One entry point. `run` takes an input and gives a word for how it ended; `mutate` is a pure function of its input."""

    run: Callable[[bytes], str]
    mutate: Callable[[bytes, random.Random], bytes]
    seeds: Callable[[], list[bytes]]
    limit_s: float
    """Seconds that an input may take by its own deadline."""


def tree(value: Any) -> Any:
    """A plain value as the wire lays it out."""
    if isinstance(value, list):
        return [wire.LIST, *map(tree, value)]
    if isinstance(value, tuple):
        return [wire.TUPLE, *map(tree, value)]
    if isinstance(value, dict):
        return [wire.DICT, *(tree(part) for pair in value.items() for part in pair)]
    return list(value.parts) if isinstance(value, Raw) else value


@dataclass(frozen=True)
class Raw:
    """A value with a tag of its own."""

    parts: tuple[Any, ...]


HANDLE = Raw((wire.REF, True, 0, "Pool", False))
TENSOR, ARRAY, SCALAR = (
    Raw((wire.ARRAY, kind, dtype, shape, number))
    for number, (kind, dtype, shape) in enumerate(
        [("torch", "bool", [4]), ("numpy", "int16", [1, 2]), ("scalar", "float32", [])]
    )
)
BUFFERS = (bytes(4), bytes(4), bytes(4))

# -------------------------------------------------------------------------------------------------------------- judge


class Peer(Worker):
    """A worker whose every word was written before it was asked. It ends its line, falls silent or drips."""

    def __init__(self, said: bytes, manner: str) -> None:
        self.sock, self._theirs = socket.socketpair()
        self.limits = Limits()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._say, args=(said, manner), daemon=True)
        if manner == "drips" or len(said) > AT_ONCE:
            self._thread.start()
        else:
            self._say(said, manner)

    def _say(self, said: bytes, manner: str) -> None:
        step, pause_s = (1, 0.001) if manner == "drips" else (AT_ONCE, 0.0)
        with contextlib.suppress(OSError):  # the judge has heard enough
            for position in range(0, len(said), step):
                self._theirs.sendall(said[position : position + step])
                if pause_s and self._over.wait(pause_s):
                    return
            if manner == "ends":
                self._theirs.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        if self._thread.is_alive():
            self._thread.join()
        self._theirs.close()

    def end_reason(self, wait_s: float = 0.0) -> str | None:
        return None

    def output(self) -> str:
        return ""


class Peers(InlineSandbox):
    """Gives one `Peer` after the other, all alike."""

    def __init__(self, said: bytes, manner: str) -> None:
        super().__init__()
        self._said = (said, manner)

    def start(self, limits: Limits) -> Worker:
        return Peer(*self._said)


def model(tokens: Any, *, scale: float = 1.0) -> int:
    """A function of the judge's with parameters that a call may miss."""
    return 1


def echo(*args: Any, **kwargs: Any) -> Any:
    """A function of the judge's that gives back what the worker sent: all that can be received can be sent."""
    return args, kwargs


LOADED = frame(tree(["value", {}]))
MADE = frame(tree(["value", HANDLE]))
OPERATIONS: list[tuple[bytes, Callable[[RunningSubmission], Any]]] = [
    (b"", lambda running: running.f()),
    (LOADED, lambda running: running.describe("f")),
    (LOADED, lambda running: running.f(model, echo, 1)),
    (LOADED, lambda running: running.f.each([(1,), (model, echo)])),
    (LOADED, lambda running: running.Pool(model, echo)),
    (LOADED + MADE, lambda running: running.Pool().take(model, echo)),
]
"""What a worker says in good order before it says the input, and what is asked of it."""
MANNERS = ["ends"] * 30 + ["stalls", "drips"]


def judge(data: bytes) -> str:
    """The first two bytes choose operation and manner, the rest is what the worker says."""
    before, operation = OPERATIONS[data[0] % len(OPERATIONS) if data else 0]
    manner = MANNERS[data[1] % len(MANNERS) if data[1:] else 0]
    seconds = CALL_S if manner == "ends" else STALL_S
    remote.LOAD_S = seconds
    running = RunningSubmission([("cell", "")], Peers(before + data[2:], manner), call_s=seconds)
    try:
        running.begin_check(Deadline(seconds))
        _look(operation(running))
        return "value"
    except SubmissionFault as fault:
        _bounded(str(fault))
        return "SubmissionFault, out of time" if fault.timeout else "SubmissionFault"
    except SubmissionRaised as raised:
        _bounded(str(raised), raised.type_name, raised.name or "", *raised.mro, *map(str, raised.lines))
        return "SubmissionRaised"
    except CheckFailed as failed:
        _bounded(failed.message)
        return "CheckFailed"
    finally:
        running.close()


def _look(value: Any) -> None:
    """Do with a value what checks do with it."""
    _bounded(show(value))
    for expected in (None, 5, [1, 2.0], {"k": (1,)}):
        with contextlib.suppress(CheckFailed):
            expect_equal(value, expected, "It")
    with contextlib.suppress(CheckFailed):
        expect_close(value, 1.0, "It")


def _bounded(*texts: str) -> None:
    if any(len(text) > MAX_TEXT for text in texts):
        raise AssertionError(f"a text of more than {MAX_TEXT:,} characters goes into a finding")


def judge_seeds() -> list[bytes]:
    raised = {"type": "E", "mro": ["E", "ValueError"], "text": "t", "lines": [["cell", 1, "x"]], "name": None}
    described = {"kind": "callable", "type": "function", "parameters": ["a", "b: int = 2"]}
    value = ["value", [1, 2.5, None, True, "text", (1, 2), {"k": 3}, Raw((wire.BYTES, "b")), Raw((wire.INT, "0xff"))]]
    invoke = ["invoke", 0, [[1, 2]], {"scale": 2.0}]
    said: list[list[list[Any]]] = [
        [["value", {"cell": raised | {"data": {"by": 1}}}], ["value", 5]],
        [["value", described]],
        [value, ["value", [TENSOR, ARRAY, SCALAR]]],
        [["value", [1, HANDLE]]],
        [["raised", raised | {"data": {"by": 7, "why": "x"}}]],
        [invoke, ["value", [HANDLE]]],
        [["invoke", 1, [TENSOR, ARRAY, SCALAR], {}], ["value", 1]],
        [["invoke", 0, [], {"x": 1}], ["value", 1]],
    ]
    whole = [b"".join(_framed(message) for message in messages) for messages in said]
    seeds = [bytes((number, 0)) + each for number in range(len(OPERATIONS)) for each in whole]
    return [*seeds, *(bytes((2, manner)) + whole[2][:-3] for manner in (0, 30, 31))]


def _framed(message: list[Any]) -> bytes:
    """A message as one frame, with the buffers if a tensor is in it."""
    return bytes(frame(tree(message), *(BUFFERS if "Raw(parts=(4," in repr(message) else ())))


def mutate_judge(data: bytes, rng: random.Random) -> bytes:
    head = bytearray(data[:2].ljust(2, b"\0"))
    if rng.random() < 0.1:
        head[rng.randrange(2)] = rng.randrange(256)
    return bytes(head + mutate_frames(data[2:], rng))


# ------------------------------------------------------------------------------------------------------------- worker

CELL = """
class Pool:
    def __init__(self, *args): self.args = args
    def take(self, *args, **kwargs): return args or self
def echo(*args, **kwargs): return args, kwargs
def apply(function, *args): return function(*args)
def fail(*args): raise ValueError(*args)
"""
LOAD = frame(tree(["load", [["cell", CELL]]]))


def worker(data: bytes) -> str:
    """A worker that has loaded a cell gets `data`, then the line is closed for writing."""
    ours, theirs = socket.socketpair()
    threads = [
        threading.Thread(target=each, daemon=True) for each in (lambda: _ask(ours, LOAD + data), lambda: _hear(ours))
    ]
    for thread in threads:
        thread.start()
    try:
        serve(theirs)
        return "ended with the line"
    except Exception as error:
        return f"ended by {type(error).__name__}"
    finally:
        with contextlib.suppress(OSError):
            theirs.shutdown(socket.SHUT_RDWR)
        theirs.close()
        for thread in threads:
            thread.join()
        ours.close()
        linecache.clearcache()  # a worker has one life; here they share a process


def _ask(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)


def _hear(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(1 << 16):
            pass


def worker_seeds() -> list[bytes]:
    given, kept = Raw((wire.REF, True, 0, "function", True)), Raw((wire.REF, False, 0, "Pool", False))
    messages: list[list[Any]] = [
        ["load", [["other", "x = 1"], ["broken", "def f("]]],
        ["describe", "echo"],
        ["describe", "nothing"],
        ["call", None, "echo", [1, "x", [2.5, None], (True,), Raw((wire.INT, "0xffff"))], {"k": {"a": 1}}],
        ["call", None, "echo", [TENSOR, ARRAY, SCALAR], {}],
        ["call", None, "fail", ["x"], {}],
        ["each", None, "echo", [[1], [2]]],
        ["drain"],
        ["ended", 0.0],
    ]
    conversation: list[list[Any]] = [
        ["call", None, "Pool", [1], {}],
        ["call", kept, "take", [kept], {}],
        ["call", kept, None, [], {}],
    ]
    callback: list[list[Any]] = [["call", None, "apply", [given, 1, kept], {}], ["value", [1]]]
    callback += [["call", None, "apply", [given], {}], ["raised", None], ["describe", "apply"]]
    return [*map(_framed, messages), *(b"".join(map(_framed, each)) for each in (conversation, callback))]


# --------------------------------------------------------------------------------------------------- grader and store


SILENT = 2
FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-")


class Confused(Grader):
    """A grader whose judges write bytes of our choice into their pipe, then end or fall silent."""

    said = b""
    how = 0

    def _judge_and_exit(self, attempt: Any, seed: int, write: int, started: float, parent: int, slot: int) -> None:
        with open(write, "wb") as stream:
            stream.write(self.said)
            stream.flush()
            if self.how == SILENT:
                time.sleep(60)
        os._exit(self.how & 1)

    def _patience(self) -> float:
        return STALL_S if self.how == SILENT else 30.0


@functools.cache
def _grader() -> Confused:
    """A grader of a real suite, its results in a temporary folder."""
    return Confused(suite.load("kv_cache"), InlineSandbox(), Path(FOLDER.name), workers=1, wait_s=0.0)


JOB = Job("student", Submission("kv_cache.ipynb", {"kv_cache_bytes": "x"}))


def grader(data: bytes) -> str:
    """The first byte says how the judge ends, the rest is what it wrote before. Every try of it does the same."""
    grading = _grader()
    grading.how, grading.said = (data[0] if data else 0), data[1:]
    graded: list[Graded] = []
    grading.grade([JOB], graded.append)
    (only,) = graded
    return _sound(only)


def _sound(graded: Graded) -> str:
    """What became of it in a word; its points must be some."""
    if graded.score is None:
        return "problem"
    if not 0 <= graded.score.points <= graded.score.max_points or math.isnan(graded.score.points):
        raise AssertionError(f"{graded.score.points} points of {graded.score.max_points}")
    return graded.status


def grader_seeds() -> list[bytes]:
    passed = b'\n\n{"findings": [%s], "times": {"fork_s": 0.01, "calls": 3}, "doubts": [], "overloaded": false}'
    full = FINDING | {"message": "m", "value": "1", "expected": "2", "credit": 0.5, "measurements": {"x": 1.0}}
    said = [passed % json_bytes(FINDING), passed % json_bytes(full), b'{"error": "ValueError: x"}', b"", b"[]"]
    return [bytes((how,)) + each for how in (0, 1) for each in said] + [bytes((SILENT,)) + said[0]]


def json_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


def mutate_grader(data: bytes, rng: random.Random) -> bytes:
    how = bytes((rng.choice((0, 1)),)) if rng.random() < 0.1 else data[:1].ljust(1, b"\0")
    return bytes(how + mutate_json(data[1:], rng))


def store(data: bytes) -> str:
    """A file of the store that holds `data`."""
    grading = _grader()
    file = result_file(grading.suite, Path(FOLDER.name), JOB, "cpu")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    try:
        graded = stored(grading.suite, Path(FOLDER.name), JOB, -1)
    except results.Refused:
        return "refused"
    if graded is None or graded.result is None:
        return "none"
    results.save(file, graded.result)
    if results.load(file) is None:
        raise AssertionError("a result that was loaded and saved cannot be loaded")
    return _sound(graded)


def store_seeds() -> list[bytes]:
    grading = _grader()
    file = result_file(grading.suite, Path(FOLDER.name), JOB, "cpu")
    made = []
    for seed in grader_seeds()[:2]:
        grader(seed)
        made.append(file.read_bytes())
    return [*made, b"", made[0][:-1]]


def mutate_store(data: bytes, rng: random.Random) -> bytes:
    """Most changes come with the digest that fits, so that they are looked at."""
    if rng.random() < 0.2:
        return bytes(mutate_bytes(data, rng))
    body = data.partition(b',\n "digest": ')[0]
    changed = mutate_json(body + b"\n}", rng).removesuffix(b"\n}")
    return bytes(changed) + b',\n "digest": "%s"\n}\n' % hashlib.sha256(changed).hexdigest().encode()


TARGETS = {
    "judge": Target(judge, mutate_judge, judge_seeds, CALL_S),
    "worker": Target(worker, mutate_frames, worker_seeds, 0.0),
    "grader": Target(grader, mutate_grader, grader_seeds, 0.0),
    "store": Target(store, mutate_store, store_seeds, 0.0),
}
