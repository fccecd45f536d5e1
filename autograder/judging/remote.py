"""The judge's view of a submission: functions and objects that live in a worker, called over the wire.

    submission.kv_cache_bytes(spec, [17], block_size=16)     a call; the value comes back
    pool = submission.BlockPool(8, 16)                        an object that stays in the worker
    pool.get_new_blocks(2)                                    a call of its method

A Python function among the arguments runs in the judge when the submission calls it.
"""

from __future__ import annotations

import inspect
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from autograder.checks import CheckFailed, SubmissionFault, SubmissionRaised, show
from autograder.judging.blame import Blame, FairLimit
from autograder.sandboxing.sandbox import Limits, Sandbox, SandboxUnavailable, Worker
from autograder.worker import arrays
from autograder.worker.wire import Array, Deadline, Ref, Wire, WireClosed, WireError

__all__ = ["Handle", "RunningSubmission"]

LOAD_S = 30.0
"""Seconds of wall time for loading a submission; a first `import torch` on a slow laptop takes ten."""
LOGGED_S = 2.0
"""Seconds for telling what a service logged. Its answer explains a verdict and makes none, so it costs nobody anything."""


class HasFileno(Protocol):
    """An open socket or file, as it can be passed to a worker."""

    def fileno(self) -> int:
        """Its descriptor."""


class Function:
    """A function of the submission, or a method of an object in its worker."""

    def __init__(self, session: Callable[[], _Session], target: Handle | None, name: str) -> None:
        self._session = session
        self._target = target
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._made(self._session().call(["call", self._target, self._name, list(args), kwargs]))

    def each(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call it once for each tuple of arguments, all in one message: a message costs more than a short call.

        The limit of one call holds for all of them; the first one that raises ends them.
        """
        values = self._session().call(["each", self._target, self._name, [list(args) for args in calls]])
        if type(values) is not list or len(values) != len(calls):
            raise self._session().broken("sent another number of answers than there were calls")
        return [self._made(value) for value in values]

    def _made(self, value: Any) -> Any:
        """`value`, which must be an object if we called a class: a check would stumble over anything else."""
        if self._target is None and self._name[:1].isupper() and not isinstance(value, Handle):
            raise CheckFailed(f"{self._name}(...) must give an object of that class.", show(value), self._name)
        return value


class Handle:
    """An object or function that stays in the worker. Attribute access gives its methods."""

    def __init__(self, session: _Session, ref: Ref) -> None:
        self._session = session
        self._ref = ref

    def __getattr__(self, name: str) -> Function:
        if name.startswith("__"):
            raise AttributeError(name)
        return Function(lambda: self._session, self, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.call(["call", self, None, list(args), kwargs])

    @property
    def _type_name(self) -> str:
        return self._ref.type_name

    def __repr__(self) -> str:
        return f"<an object of type {self._ref.type_name}>"


@dataclass(frozen=True)
class Description:
    """What the submission binds to a name: `kind` is missing, class, callable or value."""

    kind: str
    type_name: str
    parameters: tuple[str, ...] | None


class RunningSubmission:
    """A submission that can be called. Starts a worker when one is needed, and a fresh one after a fault.

    `cells` are (name, source) in order. `call_s` limits one call, in seconds that the machine had for it; `blame` decides
    whose fault it is if that is not enough. Raises `SandboxUnavailable` where no worker can be had (our fault).
    """

    def __init__(
        self,
        cells: Sequence[tuple[str, str]],
        sandbox: Sandbox,
        limits: Limits | None = None,
        *,
        call_s: float = 10.0,
        blame: Blame | None = None,
    ) -> None:
        self._cells = [list(cell) for cell in cells]
        self._sandbox = sandbox
        self._limits = limits or Limits()
        self._call_s = call_s
        self._blame = blame or Blame()
        self._session: _Session | None = None
        self._no_worker: SandboxUnavailable | None = None
        self._load_fault: SubmissionFault | None = None
        self._check_fault: SubmissionFault | None = None
        self._printed_before = self._printed_last = ""
        self.logged: SubmissionRaised | None = None
        """The last exception that a service logged in a check that did not pass: the submission's word."""
        self.load_errors: dict[str, SubmissionRaised] = {}
        self.times = {"worker_s": 0.0, "load_s": 0.0, "calls": 0.0}
        """What starting workers and loading the submission took, and how many messages were exchanged."""

    def __getattr__(self, name: str) -> Function:
        if name.startswith("_"):
            raise AttributeError(name)
        return Function(self._ready, None, name)

    def begin_check(self, deadline: Deadline) -> None:
        """A check begins: no call of it may last beyond `deadline`, and after a fault no further call is tried in it."""
        self._blame.begin_check(deadline.seconds)
        self._printed_before = self._session.worker.output() if self._session and not self._session.dead else ""
        self._printed_last = ""
        self._check_fault = self.logged = None

    def describe(self, name: str) -> Description:
        """What the submission binds to `name`."""
        try:
            found = self._ready().exchange(["describe", name])
        except SubmissionFault as fault:
            if self._load_fault or fault.timeout:
                raise
            self._check_fault = None  # it died between two checks: this one gets a new process, as after any fault
            found = self._ready().exchange(["describe", name])
        # Exact types: to look into a tensor makes a tensor of every number.
        if type(found) is not dict or [type(found.get(key)) for key in ("kind", "type")] != [str, str]:
            raise self._ready().broken("sent a description that is none")
        parameters = found.get("parameters")
        if parameters is None:
            return Description(found["kind"], found["type"][:200], None)
        if type(parameters) is not list or any(type(each) is not str for each in parameters):
            raise self._ready().broken("sent a description that is none")
        return Description(found["kind"], found["type"][:200], tuple(parameters))

    def worker(self) -> Worker:
        """The worker that it runs in; started if there is none. For `autograder.judging.blocks`."""
        return self._ready().worker

    def exchange(self, message: list[Any], sockets: Sequence[HasFileno] = ()) -> Any:
        """One message of the wire's protocol to the running worker, and its answer. For `served` and `blocks`."""
        return self._ready().exchange(message, sockets=sockets)

    def end_reason(self, wait_s: float = 0.0) -> str | None:
        """How the worker ended, to follow "your code ..."; `None` while it runs. Waits up to `wait_s` seconds for that."""
        return self._session.worker.end_reason(wait_s) if self._session else None

    def time_left(self) -> float:
        """Seconds that a call which begins now may take: the limit of one call, or what is left of the check."""
        seconds = self._time().limit_s
        if self._blame.check:
            self._blame.check.watch()
        return seconds

    def printed(self, lines: int = 10) -> str:
        """The last lines that the submission printed since the check began."""
        text = self._session.worker.output() if self._session else self._printed_last
        fresh = text.removeprefix(
            self._printed_before
        )  # all of it, where so much was printed that the middle was left out
        return "\n".join(fresh.strip().splitlines()[-lines:])[-1000:]

    def ask_log(self) -> None:
        """Have `logged` say what the running service logged last, if it still can."""
        if self._session and not self._session.dead:
            self.logged = self._session.logged()

    def fresh(self) -> None:
        """End the running worker, so that the next call meets a new one."""
        if self._session:
            self._session.kill()
            self._printed_last = self._session.worker.output()
            self._session = None

    close = fresh

    def _ready(self) -> _Session:
        if fault := self._load_fault or self._check_fault:
            raise fault
        if self._session is None or self._session.dead:
            self.fresh()
            began = time.monotonic()
            self._blame.worker = self._start()
            self._session = _Session(self._blame.worker, self)
            started = time.monotonic()
            self.times["worker_s"] += started - began
            try:
                failed = self._session.exchange(["load", self._cells], self._blame.limit(LOAD_S))
                if type(failed) is not dict or any(type(name) is not str for name in failed):
                    raise self._session.broken("sent no list of what failed to load")
                self.load_errors = {name: _raised(error) for name, error in failed.items()}
            except (SubmissionFault, WireError) as fault:
                timeout = isinstance(fault, SubmissionFault) and fault.timeout
                self._load_fault = SubmissionFault(f"While it was being loaded, your code {fault}.", timeout=timeout)
            finally:
                self.times["load_s"] += time.monotonic() - started
            if self._load_fault:  # raised here, without a context: it is kept, and that would keep what the worker sent
                raise self._load_fault
        return self._session

    def _start(self) -> Worker:
        if self._no_worker:
            raise self._no_worker
        try:
            return self._sandbox.start(self._limits)
        except SandboxUnavailable as error:
            self._no_worker = error  # to find that out again for every check may take half a minute each
            raise

    def _time(self) -> FairLimit:
        left = self._check_left()
        return self._blame.limit(self._call_s if left is None else min(left, self._call_s))

    def _check_left(self) -> float | None:
        """Seconds that the check still has; `None` outside of one. Raises `SubmissionFault` when there are none."""
        check = self._blame.check
        try:
            return check.left() if check else None
        except TimeoutError:
            assert check
            self._blame.ran_out(check)
            raise SubmissionFault(
                f"ran out of the {check.limit_s:g} s that the whole check has", timeout=True
            ) from None


class _Session:
    """One worker and the wire to it."""

    def __init__(self, worker: Worker, owner: RunningSubmission) -> None:
        self.worker = worker
        self.owner = owner
        self.wire = Wire(worker.sock)
        self.functions: list[Callable[..., Any]] = []
        self.dead = False

    def call(self, message: list[Any]) -> Any:
        if self.dead:
            raise SubmissionFault("lost an object: the process that held it ended in an earlier call")
        return self.exchange(message)

    def exchange(self, message: list[Any], limit: FairLimit | None = None, sockets: Sequence[HasFileno] = ()) -> Any:
        """Send, answer the worker's calls of our functions, and return the value of the reply."""
        try:
            return self._exchange(message, limit, sockets)
        except SubmissionRaised:
            raise
        except SubmissionFault as fault:
            self.kill()
            self.owner._check_fault = fault
            raise
        except BaseException:  # ours, perhaps in the middle of a frame or of a callback: the line is of no further use
            self.kill()
            raise

    def _exchange(self, message: list[Any], limit: FairLimit | None, sockets: Sequence[HasFileno]) -> Any:
        what = "one call" if limit is None else "loading"
        limit = limit or self.owner._time()
        failed: BaseException | None = None
        self.owner.times["calls"] += 1
        try:
            self._send(message, limit)
            if sockets:
                self._pass(sockets)
            while True:
                limit.wait(self.worker.sock)
                reply = self.wire.receive(self.decode, limit)
                kind = reply[0] if reply and type(reply[0]) is str else None  # == of an array is no bool
                if len(reply) == 4 and kind == "invoke" and failed is None:
                    began, used = time.monotonic(), time.thread_time()
                    try:
                        answer = ["value", self.invoke(*reply[1:])]
                    except Exception as error:
                        failed, answer = error, ["raised", None]
                    limit.forgive(max(0.0, time.monotonic() - began - (time.thread_time() - used)))  # we waited
                    self._send(answer, limit)
                elif failed is not None:
                    self.kill()
                    raise failed
                elif len(reply) == 2 and kind == "value":
                    return reply[1]
                elif len(reply) == 2 and kind == "raised":
                    raise _raised(reply[1])
                else:
                    raise WireError("an answer of no known kind")
        except TimeoutError:
            self.owner._blame.ran_out(limit)
            self.owner._check_left()  # how much of it was left says more about the machine than about the submission
            raise SubmissionFault(
                f"did not answer within {limit.limit_s:.3g} s, the limit of {what}", timeout=True
            ) from None
        except WireClosed:
            raise SubmissionFault(self.worker.end_reason() or "ended without an answer") from None
        except WireError as error:
            raise SubmissionFault(f"sent something that cannot be read: {error}") from None
        finally:
            failed = None  # its traceback holds this frame, and so what the worker sent: a cycle that would outlive the check

    def _send(self, message: list[Any], limit: FairLimit) -> None:
        try:
            self.wire.send(message, self.encode, limit)
        except WireError as error:  # our value, so our fault
            raise TypeError(f"a check sent a value that cannot cross: {error}") from None

    def _pass(self, sockets: Sequence[HasFileno]) -> None:
        try:
            socket.send_fds(self.worker.sock, [b"\0"], [each.fileno() for each in sockets])
        except TimeoutError:
            raise
        except OSError as error:
            raise WireClosed(str(error)) from None

    def logged(self) -> SubmissionRaised | None:
        """The last exception that the service logged. Nobody is blamed if it does not come."""
        limit = self.owner._blame.limit(LOGGED_S)
        try:
            self.wire.send(["logged"], self.encode, limit)
            limit.wait(self.worker.sock)
            reply = self.wire.receive(self.decode, limit)
            known = len(reply) == 2 and type(reply[0]) is str and reply[0] == "value" and reply[1] is not None
            return _raised(reply[1]) if known else None
        except (OSError, WireClosed, WireError):
            return None

    def broken(self, why: str) -> SubmissionFault:
        self.kill()
        return SubmissionFault(why)

    def kill(self) -> None:
        if not self.dead and self.owner._blame.check:
            self.owner._blame.check.look(again=True)  # while there is a worker to look at
        self.dead = True
        self.worker.kill()

    def function(self, number: Any) -> Callable[..., Any]:
        if type(number) is not int or not 0 <= number < len(self.functions):
            raise WireError("a call of a function that was never given")
        return self.functions[number]

    def invoke(self, number: Any, args: Any, kwargs: Any) -> Any:
        """Call one of our functions for the submission."""
        function = self.function(number)
        if type(args) is not list or type(kwargs) is not dict or not all(type(key) is str for key in kwargs):
            raise WireError("a call of a function with impossible arguments")
        try:
            inspect.signature(function).bind(*args, **kwargs)
        except TypeError as error:  # the submission's mistake, where one from inside the function is ours
            what = str(error)[:500]  # it names an argument as the submission did
            raise CheckFailed(f"Your code called a function that it was given with wrong arguments: {what}.") from None
        except ValueError:
            pass  # a built-in function without a signature
        return function(*args, **kwargs)

    def encode(self, value: Any) -> Any:
        if isinstance(value, Handle):
            if value._session is not self:
                raise SubmissionFault("lost an object: the process that held it ended in an earlier call")
            return Ref(False, value._ref.number, value._ref.type_name, value._ref.callable)
        if (array := arrays.to_array(value)) is not None:
            return array
        if callable(value):
            self.functions.append(value)
            return Ref(True, len(self.functions) - 1, "function", True)
        raise TypeError(f"a check sent a {type(value).__name__}, which cannot cross")

    def decode(self, item: Array | Ref) -> Any:
        if isinstance(item, Array):
            return arrays.from_array(item)
        return self.function(item.number) if item.mine else Handle(self, item)


RAISED = {"type": str, "mro": list, "text": str, "lines": list, "data": dict}


def _raised(data: Any) -> SubmissionRaised:
    """An exception that came over the wire; every field is the submission's word."""
    # Exact types first: attributes of a handle would be calls into the worker.
    if type(data) is not dict or [type(data.get(key)) for key in RAISED] != list(RAISED.values()):
        raise WireError("an exception that is not one")
    lines = data["lines"][:20]
    if any(type(line) is not list or [type(part) for part in line] != [str, int, str] for line in lines):
        raise WireError("an exception that is not one")
    mro = tuple(base[:200] for base in data["mro"][:20] if type(base) is str)
    attributes = {
        key[:200]: value[:2000] if type(value) is str else value
        for key, value in data["data"].items()
        if type(key) is str and type(value) in (int, float, str)
    }
    name = data.get("name")
    return SubmissionRaised(
        data["type"][:200],
        mro,
        data["text"][:2000],
        tuple((cell[:200], number, line[:200]) for cell, number, line in lines),
        name[:200] if type(name) is str else None,
        attributes,
    )
