"""The judge's end of an engine: a submission's service asks over a connected socket, and the check decides what comes back.

    with ScriptedEngine(submission, answer) as engine:              # answer(call) is called for every request
        with serve(submission, "serve_app", {...}, sockets={"engine": engine.theirs}) as service:
            ...
            call = engine.next("generate")                          # waits until the service has asked for it
            call.part("Hello"); call.result({...})                  # or call.error("overloaded", "...")

JSON, one object per line. The service sends {"id": 1, "op": "generate", "args": {...}}, and gets any number of
{"id": 1, "event": "part", "value": ...} and then one "result" or "error". What to do with an `op` is the check's to know.

Covered: that the judge sees every request, and is the only one who can answer it; waiting without a clock of the check's own.
Not covered: what a request says. All of it is the submission's word; its shape only is looked at.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

from autograder.checks import CheckFailed, SubmissionFault
from autograder.judging.remote import RunningSubmission

__all__ = ["Call", "ScriptedEngine"]

MAX_LINE = 1 << 20
MAX_CALLS = 20_000
SEND_S = 30.0
"""How long a service may leave its answers unread."""

T = TypeVar("T")


class Call:
    """One request of the service's. `args` are the submission's word, a JSON object."""

    def __init__(self, engine: ScriptedEngine, number: int, op: str, args: dict[str, Any]) -> None:
        self._engine = engine
        self._number = number
        self.op = op
        self.args = args

    def part(self, value: Any) -> None:
        """Send a part of the answer; more follows."""
        self._engine._send(self._number, "part", value)

    def result(self, value: Any = None) -> None:
        """Send the answer, or its end."""
        self._engine._send(self._number, "result", value)

    def error(self, kind: str, text: str, **more: Any) -> None:
        """Say that it failed."""
        self._engine._send(self._number, "error", {"kind": kind, "text": text, **more})


class ScriptedEngine:
    """The engine of one service. `answer` is called in a thread of ours for each request; it may answer now, later or never."""

    def __init__(self, submission: RunningSubmission, answer: Callable[[Call], object] | None = None) -> None:
        self._submission = submission
        self._answer = answer or (lambda call: None)
        self._ours, self.theirs = socket.socketpair()
        """`theirs` is to be passed to the service."""
        self._ours.settimeout(SEND_S)
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._calls: list[Call] = []
        self._taken: set[int] = set()
        self._nonsense = ""
        self._mistake: Exception | None = None
        self._thread = threading.Thread(target=self._read, name="engine", daemon=True)

    def __enter__(self) -> ScriptedEngine:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        self.theirs.close()
        self._thread.join()
        self._ours.close()
        if error is None:
            self._raise()

    def calls(self, op: str | None = None) -> list[Call]:
        """What was asked so far, or what of it was `op`."""
        with self._changed:
            self._raise()
            return [call for call in self._calls if op in (None, call.op)]

    def wait(self, ready: Callable[[Sequence[Call]], T | None], what: str) -> T:
        """Wait until `ready(calls)` is not None and return it. Raises `SubmissionFault`, which says `what` was not done."""
        end = time.monotonic() + self._submission.time_left()
        with self._changed:
            while True:
                self._raise()
                if (found := ready(self._calls)) is not None:
                    return found
                if not self._changed.wait(max(0.0, min(0.5, end - time.monotonic()))):
                    if reason := self._submission.end_reason():
                        raise SubmissionFault(reason)
                    if time.monotonic() >= end:
                        raise SubmissionFault(f"did not do in time what it should: {what}", timeout=True)

    def next(self, op: str, what: str = "") -> Call:
        """The earliest request `op` that `next` has not given yet; waits for it."""

        def found(calls: Sequence[Call]) -> Call | None:
            return next((call for i, call in enumerate(calls) if call.op == op and i not in self._taken), None)

        call = self.wait(found, what or f"ask the engine to {op}")
        self._taken.add(self._calls.index(call))
        return call

    def say(self, event: str, value: Any) -> None:
        """Send what nobody asked for, as id 0. It is read before whatever is sent later."""
        self._send(0, event, value)

    def _raise(self) -> None:
        if self._mistake is not None:
            raise self._mistake
        if self._nonsense:
            raise CheckFailed(f"Your service sent the engine something other than a request: {self._nonsense}.")

    def _read(self) -> None:
        kept = bytearray()
        while True:
            try:
                data = self._ours.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError:
                return
            if not data:
                return
            kept += data
            *lines, rest = kept.split(b"\n")
            kept = bytearray(rest)
            for line in lines:
                self._take(bytes(line))
            if len(kept) > MAX_LINE or len(self._calls) > MAX_CALLS:
                with self._changed:
                    self._nonsense = f"more than {MAX_CALLS:,} requests, or one of more than {MAX_LINE:,} bytes"
                    self._changed.notify_all()
                return

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        with self._changed:
            fields = [type(message.get(key)) for key in ("id", "op", "args")] if type(message) is dict else []
            if fields != [int, str, dict]:
                self._nonsense = self._nonsense or repr(line[:100])
                self._changed.notify_all()
                return
            call = Call(self, message["id"], message["op"], message["args"])
            self._calls.append(call)
        try:
            self._answer(call)  # before anybody hears of it: a check that waits for a request finds it answered
        except Exception as error:
            self._mistake = error
        with self._changed:
            self._changed.notify_all()

    def _send(self, number: int, event: str, value: Any) -> None:
        line = json.dumps({"id": number, "event": event, "value": value}).encode() + b"\n"
        with self._sending, contextlib.suppress(OSError):  # a service that is gone is noticed by whoever waits for it
            self._ours.sendall(line)
