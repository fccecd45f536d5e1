"""The worker's loop: load a submission cell by cell, then answer the judge's calls until the line closes.

Messages from the judge, each answered by one `value` or `raised`:

    load      [[cell name, source], ...]     execute the cells in one module; a failing cell stops no other
    describe  name                           what the module binds to that name, and its parameters
    call      target, name, args, kwargs     call a function of the module, or a method of an object kept here
    each      target, name, [args, ...]      the same once for each list of arguments
    serve     name, kwargs, [name, ...]      serve the ASGI app that a function of the module makes; sockets follow
    drain                                    ask that service to stop
    ended     seconds                        whether it has stopped; waits that long for it
    logged                                   the last exception that it logged, as `raised` has it, or None
    reach                                    the port behind which a server of the judge's answers; a socket follows
    share, ready, go                         blocks of timed calls, see `autograder.worker.blocks`

While a call runs, student code that calls a function of the judge's sends `invoke` and waits for the answer.
"""

from __future__ import annotations

import contextlib
import inspect
import linecache
import random
import socket
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any

from autograder.worker import apps, arrays, blocks
from autograder.worker.wire import Array, Deadline, Ref, Wire, WireClosed, WireError

__all__ = ["serve"]

MAX_KEPT = 100_000
"""Objects that one worker keeps for the judge."""
MAX_TEXT = 2_000
MAX_TRACE = 12
FOREVER = Deadline(None)
TYPE_NAME: Callable[[type], str] = type.__dict__["__name__"].__get__
"""The name of a class, whatever its metaclass says that it is."""


def serve(sock: socket.socket) -> None:
    """Answer the judge on `sock` until it closes the line."""
    _Server(Wire(sock)).run()


class _Server:
    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.kept: dict[int, Any] = {}
        self.module = types.ModuleType("submission")
        self.cells: set[str] = set()
        self.lock = threading.RLock()  # student threads may call the judge's functions too
        self.service: apps.Service | None = None
        self.blocks = blocks.Blocks(wire.sock, self.find)

    def run(self) -> None:
        handlers: dict[str, Callable[..., Any]] = {"load": self.load, "describe": self.describe, "call": self.call}
        handlers |= {"each": self.each, "serve": self.serve_app, "drain": self.drain, "ended": self.ended}
        handlers |= {"logged": self.logged, "reach": self.reach}
        handlers |= {"share": self.blocks.share, "ready": self.blocks.ready, "go": self.blocks.go}
        while True:
            try:
                kind, *arguments = self.wire.receive(self.decode, FOREVER)
            except WireClosed:
                return
            try:
                reply = ["value", handlers[kind](*arguments)]
            except BaseException as error:  # SystemExit and KeyboardInterrupt of the submission are answers too
                reply = ["raised", self.describe_error(error)]
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            try:
                self.send(reply)
            except WireClosed:
                return
            except BaseException as error:
                self.send(["raised", self.describe_error(error)])

    def send(self, message: list[Any]) -> None:
        with self.lock:
            self.wire.send(message, self.encode, FOREVER)

    def load(self, cells: list[list[str]]) -> dict[str, Any]:
        """Execute the cells; gives the error of each that failed."""
        random.seed(0)  # the zygote's state is everybody's; a submission starts from a known one
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed(0)
        if torch := sys.modules.get("torch"):
            torch.manual_seed(0)
            # After a fork the first call makes torch's thread pool anew, and a second thread that calls meanwhile meets none.
            torch.set_num_threads(torch.get_num_threads())
        sys.modules["submission"] = self.module
        failed = {}
        for name, source in cells:
            filename = f"<{name}>"
            self.cells.add(filename)
            linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
            try:
                exec(compile(source, filename, "exec", dont_inherit=True), self.module.__dict__)  # noqa: S102 - what a worker is for
            except BaseException as error:
                failed[name] = self.describe_error(error)
        return failed

    def describe(self, name: str) -> dict[str, Any]:
        if name not in self.module.__dict__:
            return {"kind": "missing", "type": "", "parameters": None}
        value = self.module.__dict__[name]
        kind = "class" if inspect.isclass(value) else "callable" if callable(value) else "value"
        try:
            parameters = [str(parameter)[:200] for parameter in inspect.signature(value).parameters.values()]
        except (TypeError, ValueError):
            parameters = None
        return {"kind": kind, "type": type(value).__name__, "parameters": parameters}

    def call(self, target: Any, name: str | None, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if name is None:
            return target(*args, **kwargs)
        if target is None:
            return self.find(name)(*args, **kwargs)
        return getattr(target, name)(*args, **kwargs)

    def find(self, name: str) -> Any:
        if name not in self.module.__dict__:
            raise NameError(f"name {name!r} is not defined")
        return self.module.__dict__[name]

    def each(self, target: Any, name: str, calls: list[list[Any]]) -> list[Any]:
        return [self.call(target, name, args, {}) for args in calls]

    def serve_app(self, factory: str, kwargs: dict[str, Any], names: list[str]) -> None:
        listener, *others = apps.receive_sockets(self.wire.sock, 1 + len(names))
        app = self.call(None, factory, [], kwargs | dict(zip(names, others, strict=True)))
        self.service = apps.Service(app, listener, self.describe_error)

    def reach(self) -> int:
        from autograder.worker import relay

        return relay.Relay(apps.receive_sockets(self.wire.sock, 1)[0]).port

    def drain(self) -> None:
        if self.service is not None:
            self.service.drain()

    def ended(self, wait_s: float) -> bool:
        return self.service is None or self.service.ended(wait_s)

    def logged(self) -> Any:
        return None if self.service is None else self.service.logged()

    def invoke(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function that runs in the judge."""
        with self.lock:
            self.send(["invoke", number, list(args), kwargs])
            kind, value = self.wire.receive(self.decode, FOREVER)
        if kind == "value":
            return value
        raise RuntimeError("the function that you were given failed; that is not the fault of your code")

    def encode(self, value: Any) -> Any:
        if type(value) is _JudgeFunction:  # isinstance would ask the object for its __class__
            return Ref(False, value.number, "function", True)
        if (array := arrays.to_array(value)) is not None:
            return array
        if len(self.kept) >= MAX_KEPT:
            raise WireError(f"more than {MAX_KEPT:,} objects that are neither numbers, texts, lists nor tensors")
        self.kept[len(self.kept)] = value
        return Ref(True, len(self.kept) - 1, TYPE_NAME(type(value)), callable(value))

    def decode(self, item: Array | Ref) -> Any:
        if isinstance(item, Array):
            return arrays.from_array(item)
        return self.kept[item.number] if item.mine else _JudgeFunction(self, item.number)

    def describe_error(self, error: BaseException) -> dict[str, Any]:
        """An exception as data, its traceback cut to the lines of the submission."""
        try:
            return self._describe_error(error)
        except BaseException:  # a property or a metaclass of the exception fails
            kind = TYPE_NAME(type(error))[:200]
            text = "(an exception that cannot be looked at)"
            return {"type": kind, "mro": [kind], "text": text, "lines": [], "name": None, "data": {}}

    def _describe_error(self, error: BaseException) -> dict[str, Any]:
        try:
            text = str(error)
        except BaseException:
            text = "(its text could not be made)"
        lines = [
            [frame.filename.strip("<>"), frame.lineno or 0, (frame.line or "").strip()[:200]]
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename in self.cells
        ]
        if isinstance(error, SyntaxError) and error.filename in self.cells:
            lines = [[str(error.filename).strip("<>"), error.lineno or 0, (error.text or "").strip()[:200]]]
            text = str(error.msg)
        name = getattr(error, "name", None) if isinstance(error, NameError) else None
        return {
            "type": TYPE_NAME(type(error))[:200],
            "mro": [TYPE_NAME(base)[:200] for base in type(error).__mro__][:20],
            "text": _clean(text),
            "lines": lines[-MAX_TRACE:],
            "name": _clean(name) if type(name) is str else None,
            "data": {
                _clean(key): _clean(value) if type(value) is str else value
                for key, value in vars(error).items()
                if type(value) is str or type(value) is float or (type(value) is int and value.bit_length() <= 1024)
            },
        }


def _clean(text: str) -> str:
    """`text` so that it can cross: without lone surrogates, and not too long."""
    return str(text).encode(errors="replace").decode()[:MAX_TEXT]


class _JudgeFunction:
    """A function that runs in the judge, as student code sees it."""

    def __init__(self, server: _Server, number: int) -> None:
        self._server = server
        self.number = number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._server.invoke(self.number, args, kwargs)
