"""The worker's loop and the judge's view of it: calls, handles, callbacks, exceptions, faults, hostile code."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch

from autograder.checks import CheckFailed, SubmissionFault, SubmissionRaised, expect_equal, show
from autograder.judging.remote import Handle, RunningSubmission
from autograder.sandboxing.sandbox import InlineSandbox, Limits, ProcessSandbox
from autograder.worker.serve import serve
from autograder.worker.wire import Array, Deadline, Ref, Wire

Load = Callable[..., RunningSubmission]


@pytest.fixture
def load() -> Iterator[Load]:
    """Load cells, given as `name=source`, in a thread of this process."""
    yield from _loader(InlineSandbox)


@pytest.fixture
def load_process() -> Iterator[Load]:
    """Load cells in a process of its own."""
    yield from _loader(ProcessSandbox)


def _loader(sandbox: Callable[[], Any]) -> Iterator[Load]:
    started = []

    def start(call_s: float = 20.0, **cells: str) -> RunningSubmission:
        started.append(RunningSubmission(list(cells.items()), sandbox(), Limits(cpu_s=30), call_s=call_s))
        return started[-1]

    yield start
    for running in started:
        running.close()


def imitate(respond: Callable[[Wire, list[Any]], list[Any] | None]) -> Callable[[socket.socket], None]:
    """A worker that loads like ours and then answers what `respond` says, by the wire's own rules."""

    def keep(item: Any) -> Any:
        return item

    def run(sock: socket.socket) -> None:
        wire = Wire(sock)
        try:
            while True:
                message = wire.receive(keep, Deadline(None))
                reply = ["value", {}] if message[0] == "load" else respond(wire, message)
                if reply is None:
                    return
                wire.send(reply, keep, Deadline(None))
        except ConnectionError:
            return

    return run


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RunningSubmission]]:
    """A running submission whose worker does not follow the protocol."""
    started = []

    def start(respond: Callable[[Wire, list[Any]], list[Any] | None]) -> RunningSubmission:
        monkeypatch.setattr("autograder.sandboxing.sandbox.load", lambda name: imitate(respond))
        started.append(RunningSubmission([("cell", "")], InlineSandbox(), call_s=5))
        return started[-1]

    yield start
    for running in started:
        running.close()


class TestLoop:
    """The loop itself, spoken to over a socket pair."""

    def test_it_answers_until_the_line_closes(self) -> None:
        """Unknown messages are answered with an exception; a closed line ends the loop."""
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=serve, args=(theirs,))
        thread.start()
        wire = Wire(ours)

        def ask(*message: Any) -> list[Any]:
            wire.send(list(message), lambda item: item, Deadline(10))
            return wire.receive(lambda item: item, Deadline(10))

        assert ask("load", [["one", "def f(x): return x, x"]]) == ["value", {}]
        assert ask("call", None, "f", [3], {}) == ["value", (3, 3)]
        assert ask("no such message")[0] == "raised"
        assert ask("call", None, "f", [], {})[1]["type"] == "TypeError"
        assert ask("call", None, "__builtins__", [], {})[0] == "raised"
        ours.close()
        thread.join(10)
        assert not thread.is_alive()
        theirs.close()


class TestCells:
    """Loading."""

    def test_cells_fail_independently(self, load: Load) -> None:
        """A cell that does not parse, raises or exits takes only its own names with it."""
        running = load(
            first="def first(): return 1",
            syntax="def syntax(:",
            raising="partial = 1\nraise ValueError('on import')\ndef raising(): pass",
            leaving="import sys\nsys.exit(3)",
            last="def last(): return first() + partial",
        )
        assert running.last() == 2
        assert {name: error.type_name for name, error in running.load_errors.items()} == {
            "syntax": "SyntaxError",
            "raising": "ValueError",
            "leaving": "SystemExit",
        }
        assert running.load_errors["syntax"].lines == (("syntax", 1, "def syntax(:"),)
        assert running.load_errors["raising"].lines == (("raising", 2, "raise ValueError('on import')"),)

    def test_descriptions_tell_what_a_name_is(self, load: Load) -> None:
        """Function, class, value and nothing are told apart, with the parameters as written."""
        running = load(cell="def f(a, *, b: int = 2): ...\nclass C:\n  def __init__(self, x): ...\nv = 5\nimport math")
        assert running.describe("f").kind == "callable"
        assert running.describe("f").parameters == ("a", "b: int = 2")
        assert (running.describe("C").kind, running.describe("C").parameters) == ("class", ("x",))
        assert (running.describe("v").kind, running.describe("v").type_name) == ("value", "int")
        assert running.describe("nothing").kind == "missing"
        assert running.describe("print").kind == "missing", "builtins are not the submission's"

    def test_code_after_a_failed_cell_names_what_is_missing(self, load: Load) -> None:
        """A `NameError` carries the name, so that the student can be told where it is defined."""
        with pytest.raises(SubmissionRaised) as raised:
            load(cell="def f(): return helper()").f()
        assert raised.value.name == "helper"


class TestExceptions:
    """Exceptions of the submission, as data."""

    def test_an_exception_comes_with_the_students_lines_only(self, load: Load) -> None:
        """The traceback shows the submission's frames, deepest last, none of ours and none of the library."""
        running = load(
            a="import json\ndef inner(text):\n    return json.loads(text)", b="def outer(text): return inner(text)"
        )
        with pytest.raises(SubmissionRaised) as raised:
            running.outer("{")
        assert raised.value.type_name == "JSONDecodeError"
        assert raised.value.mro[:2] == ("JSONDecodeError", "ValueError")
        assert raised.value.lines == (
            ("b", 1, "def outer(text): return inner(text)"),
            ("a", 3, "return json.loads(text)"),
        )

    def test_attributes_of_an_exception_cross(self, load: Load) -> None:
        """Numbers and texts on an exception reach the check; objects do not."""
        source = (
            "class Short(ValueError):\n"
            "  def __init__(self): self.by, self.why, self.what = 7, 'x', object()\n"
            "def f(): raise Short"
        )
        with pytest.raises(SubmissionRaised) as raised:
            load(cell=source).f()
        assert raised.value.data == {"by": 7, "why": "x"}

    @pytest.mark.parametrize(
        ("source", "kind"),
        [
            ("def f(): raise NotImplementedError", "NotImplementedError"),
            ("def f(): raise SystemExit(0)", "SystemExit"),
            ("import sys\ndef f(): sys.exit()", "SystemExit"),
            ("def f(): raise KeyboardInterrupt", "KeyboardInterrupt"),
            ("def f(): return f()", "RecursionError"),
            ("def f(): raise GeneratorExit", "GeneratorExit"),
            ("def f(x): pass", "TypeError"),
            ("f = 5", "TypeError"),
            ("def g(): pass", "NameError"),
            ("class E(Exception):\n  def __str__(self): raise SystemExit\ndef f(): raise E", "E"),
            ("class E(Exception):\n  __dict__ = property(lambda self: 1 / 0)\ndef f(): raise E", "E"),
            ("class E(NameError):\n  name = property(lambda self: 1 / 0)\ndef f(): raise E", "E"),
            ("class M(type):\n  __name__ = 5\nclass E(Exception, metaclass=M): pass\ndef f(): raise E", "E"),
            ("def f(): raise ValueError('\\ud800' * 5000)", "ValueError"),
            ("def f():\n  e = ValueError()\n  e.data = '\\ud800'; e.big = 1 << 99999\n  raise e", "ValueError"),
        ],
    )
    def test_every_exception_is_an_answer(self, load: Load, source: str, kind: str) -> None:
        """Whatever is raised, however it resists being looked at, the worker answers and goes on."""
        running = load(cell=source + "\ndef still_here(): return True")
        with pytest.raises(SubmissionRaised) as raised:
            running.f()
        assert raised.value.type_name == kind
        assert len(raised.value.text) <= 2000
        assert running.still_here() is True


HOSTILE_OBJECTS = {
    "eq": "class X:\n  def __eq__(self, other): return True\n  __hash__ = None",
    "repr": "class X:\n  def __repr__(self): raise SystemExit",
    "class": "class X:\n  @property\n  def __class__(self): return int",
    "class raising": "class X:\n  @property\n  def __class__(self): raise SystemExit",
    "getattr": "class X:\n  def __getattr__(self, name): return 1 / 0",
    "getattribute": "class X:\n  def __getattribute__(self, name): raise KeyboardInterrupt",
    "name": "class M(type):\n  __name__ = property(lambda self: 1 / 0)\nclass X(metaclass=M): pass",
    "agreeable": (
        "class M(type):\n  def __eq__(self, other): return True\n  __hash__ = type.__hash__\nclass X(metaclass=M): pass"
    ),
    "float": "class X:\n  __float__ = __int__ = __index__ = lambda self: 5",
    "array": "class X:\n  dtype, shape = 'int64', (2,)\n  __array_interface__ = {'shape': (1 << 60,)}",
    "bool": "class X:\n  def __bool__(self): raise SystemExit\n  def __len__(self): return -1",
}


class TestObjects:
    """What stays in the worker."""

    def test_objects_keep_their_state_between_calls(self, load: Load) -> None:
        """A handle stands for one object: its methods are called there, and it can be passed back."""
        running = load(
            cell="class Pool:\n"
            "  def __init__(self, size): self.size = size\n"
            "  def take(self, n=1): self.size -= n; return self.size\n"
            "def size_of(pool): return pool.size"
        )
        pool, other = running.Pool(5), running.Pool(9)
        assert isinstance(pool, Handle)
        assert [pool.take(), pool.take(n=2), other.take()] == [4, 2, 8]
        assert running.size_of(pool) == 2
        assert repr(pool) == "<an object of type Pool>"
        with pytest.raises(SubmissionRaised, match="AttributeError"):
            pool.nothing()

    def test_functions_and_generators_stay_in_the_worker(self, load: Load) -> None:
        """What is neither number, text, list nor tensor comes back as something to call."""
        running = load(
            cell="def adder(n): return lambda x: x + n\ndef nested(): return [{'f': adder(1)}, (n for n in [7])]"
        )
        assert running.adder(2)(3) == 5
        functions, numbers = running.nested()
        assert functions["f"](1) == 2
        assert isinstance(numbers, Handle)

    @pytest.mark.parametrize("name", HOSTILE_OBJECTS)
    def test_hostile_objects_come_back_as_handles(self, load: Load, name: str) -> None:
        """No overloaded operator makes an object pass for a value, and a check that gets it fails it in good order."""
        running = load(cell=HOSTILE_OBJECTS[name] + "\nx = X()\ndef f(): return x\ndef g(): return [x, 1]")
        assert type(running.f()) is Handle
        value, one = running.g()
        assert type(value) is Handle
        assert one == 1
        with pytest.raises(CheckFailed) as failed:
            expect_equal(value, 5, "The answer")
        assert failed.value.value is not None
        assert failed.value.value.startswith("<an object of type X>")

    def test_subclasses_never_pass_for_their_base(self, load: Load) -> None:
        """A number, text, list or tensor that computes differently from its base does not reach a check as one."""
        running = load(
            cell="import torch, numpy\n"
            "def f(): return [type('S', (base,), {})() for base in (int, float, str, bytes, list, tuple, dict)]\n"
            "def g(): return [torch.ones(2).as_subclass(type('T', (torch.Tensor,), {})),"
            " numpy.ones(2).view(numpy.matrix),"
            " type('F', (numpy.float64,), {})(1), True, numpy.float64(1), torch.nn.Parameter(torch.ones(1))]"
        )
        assert {type(value) for value in running.f()} == {Handle}
        matrix_and_others, exact = running.g()[:3], running.g()[3:]
        assert {type(value) for value in matrix_and_others} == {Handle}
        assert [type(value) for value in exact] == [bool, numpy.float64, torch.Tensor]

    def test_tensors_and_big_ints_go_both_ways(self, load: Load) -> None:
        """Arguments and results of all kinds keep their type."""
        running = load(cell="def echo(*args, **kwargs): return args, kwargs")
        tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
        args, kwargs = running.echo(tensor, 1 << 100, (True, None), key={1: b"\xff"})
        assert torch.equal(args[0], tensor)
        assert args[1:] == (1 << 100, (True, None))
        assert kwargs == {"key": {1: b"\xff"}}

    @pytest.mark.parametrize(
        "source",
        [
            "x = []\nx.append(x)",
            "x = '\\ud800'",
            "x = 1 << 20000",
            "import torch\nx = torch.eye(2).to_sparse()",
            "x = 'x' * (5 << 20)",
        ],
    )
    def test_a_result_that_cannot_cross_is_the_submissions_error(self, load: Load, source: str) -> None:
        """An endless, unreadable or too large result says so, and the worker lives on."""
        running = load(cell=source + "\ndef f(): return x\ndef g(): return 1")
        with pytest.raises(SubmissionRaised, match="WireError"):
            running.f()
        assert running.g() == 1

    def test_showing_a_value_never_fails(self, load: Load) -> None:
        """Every value that can cross can be shown to a student, alone and in a list."""
        running = load(
            cell="import torch\ndef f(): return [object(), 1 << 13900, torch.ones(2), 'x' * 9999, print, None]"
        )
        values = running.f()
        for value in [*values, values]:
            assert len(show(value)) < 2000


class TestCallbacks:
    """Functions of the judge that the submission calls."""

    def test_a_function_runs_in_the_judge(self, load: Load) -> None:
        """The judge counts the calls itself; values and tensors cross on the way."""
        seen: list[Any] = []

        def model(tokens: list[int], *, scale: float = 1.0) -> torch.Tensor:
            seen.append(tokens)
            return torch.tensor(tokens) * scale

        running = load(cell="def f(model): return [model([n, n + 1], scale=2.0).sum().item() for n in range(3)]")
        assert running.f(model) == [2.0, 6.0, 10.0]
        assert seen == [[0, 1], [1, 2], [2, 3]]

    def test_an_object_may_be_handed_to_a_callback(self, load: Load) -> None:
        """What the submission passes to our function arrives like a result, and can be passed on."""
        got: list[Any] = []
        running = load(cell="class C:\n  n = 3\ndef f(take): take(C()); return True\ndef n(c): return c.n")
        assert running.f(lambda value: got.append(value)) is True
        assert running.n(got[0]) == 3

    def test_a_callback_that_raises_raises_in_the_check(self, load: Load) -> None:
        """Our own mistake in a callback comes out as it is, even if the submission swallows what it sees of it."""
        running = load(cell="def f(g):\n  try: g()\n  except RuntimeError: return 'swallowed'\ndef ok(): return 1")

        def broken() -> None:
            raise LookupError("ours")

        with pytest.raises(LookupError, match="ours"):
            running.f(broken)
        assert running.ok() == 1, "the next call meets a fresh worker"

    def test_an_abort_in_a_callback_leaves_no_half_message(self, load: Load) -> None:
        """An exception that is no error, such as pytest's skip, ends the worker: the next answer is the next call's."""
        running = load(cell="def f(g):\n  try: return g()\n  except BaseException: return 'late'\ndef ok(): return 1")
        with pytest.raises(pytest.skip.Exception):
            running.f(lambda: pytest.skip("no model"))
        assert running.ok() == 1

    def test_wrong_arguments_to_a_callback_are_the_submissions_mistake(self, load: Load) -> None:
        """Calling the model with one argument too many fails the check, it does not break it."""
        with pytest.raises(CheckFailed, match="wrong arguments"):
            load(cell="def f(g): return g(1, 2)").f(lambda one: one)

    def test_a_callback_cannot_be_called_after_its_time(self, load: Load) -> None:
        """A function kept from an earlier call still runs in the judge, within a later call only."""
        running = load(cell="kept = []\ndef keep(g): kept.append(g); return g(1)\ndef use(): return kept[0](2)")
        assert running.keep(lambda n: n * 10) == 10
        assert running.use() == 20


class TestFaults:
    """Submissions that do not answer."""

    def test_prints_do_not_disturb(self, load_process: Load) -> None:
        """Text on stdout and stderr, by Python or by descriptor, is kept apart from the answers, and bounded."""
        running = load_process(
            cell="import os, sys\n"
            "def f():\n"
            "  print('hello', flush=True); sys.stderr.write('oops\\n'); os.write(1, b'raw\\n')\n"
            "  return 1\n"
            "def flood():\n"
            "  for _ in range(2000): print('x' * 1000)\n"
            "  return 2\n"
            "def shut():\n"
            "  sys.stdout.close(); os.close(1); return 3"
        )
        assert running.f() == 1
        assert running.flood() == 2
        assert running.shut() == 3
        running.fresh()
        running.f()
        end = time.monotonic() + 5
        while "raw" not in running.printed() and time.monotonic() < end:
            time.sleep(0.01)
        assert set(running.printed().splitlines()) == {"hello", "oops", "raw"}

    def test_only_what_the_check_at_hand_printed_is_shown(self, load_process: Load) -> None:
        """Each check sees the last lines of its own, however much is printed."""
        running = load_process(cell="def f(text, times): print(*[text] * times, sep='\\n', flush=True)")
        for text, times in (("one", 1), ("two", 3), ("much", 5000)):
            running.begin_check(Deadline(30))
            running.f(text, times)
            end = time.monotonic() + 5
            while not running.printed() and time.monotonic() < end:
                time.sleep(0.01)
            assert set(running.printed().splitlines()) == {text}
            assert len(running.printed()) <= 1000
            time.sleep(0.05)

    @pytest.mark.parametrize(
        ("source", "says"),
        [
            ("import os\ndef f(): os._exit(3)", "exit code 3"),
            ("import os, signal\ndef f(): os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
            ("import os\ndef f(): os.closerange(3, 256)", "ended|was stopped|cannot be read"),
            (
                "import os\n"
                "def f():\n"
                "  for n in range(3, 256):\n"
                "    try: os.write(n, b'noise' * 99)\n"
                "    except OSError: pass",
                "cannot be read",
            ),
        ],
    )
    def test_a_dead_worker_is_a_fault_and_the_next_call_meets_a_fresh_one(
        self, load_process: Load, source: str, says: str
    ) -> None:
        """Exit, kill, a closed and a spoiled line fail the check at hand; the next check starts with a new process."""
        running = load_process(cell=source + "\ncount = []\ndef g(): count.append(1); return len(count)")
        running.begin_check(Deadline(30))
        assert running.g() == 1
        with pytest.raises(SubmissionFault, match=says) as fault:
            running.f()
        assert not fault.value.timeout
        with pytest.raises(SubmissionFault):
            running.g()
        running.begin_check(Deadline(30))
        assert running.g() == 1

    def test_an_endless_loop_meets_its_deadline_and_ends_the_check(self, load_process: Load) -> None:
        """One call's limit holds, is told, and no further call is tried in the same check."""
        running = load_process(call_s=20, cell="def f():\n  while True: pass\ndef g(): return 1")
        assert running.g() == 1
        running._call_s = 0.3
        running.begin_check(Deadline(30))
        began = time.monotonic()
        with pytest.raises(SubmissionFault, match=r"did not answer within 0\.3 s") as fault:
            running.f()
        assert fault.value.timeout
        with pytest.raises(SubmissionFault) as again:
            running.g()
        assert again.value is fault.value
        assert 0.25 < time.monotonic() - began < 5
        running._call_s = 20
        running.begin_check(Deadline(30))
        assert running.g() == 1

    def test_a_check_has_no_more_time_than_its_own(self, load_process: Load) -> None:
        """The limit of the whole check cuts calls that would each be quick enough."""
        running = load_process(cell="import time\ndef f(): time.sleep(0.2); return 1")
        assert running.f() == 1
        running.begin_check(Deadline(0.5))
        began = time.monotonic()
        with pytest.raises(SubmissionFault) as fault:
            [running.f() for _ in range(20)]
        assert fault.value.timeout
        assert time.monotonic() - began < 3

    def test_a_submission_that_dies_while_loading_is_tried_once(self, load_process: Load) -> None:
        """A crash on import is the answer of every call, without a new process each time."""
        running = load_process(cell="import os\nos._exit(4)")
        with pytest.raises(SubmissionFault, match="While it was being loaded, your code ended with exit code 4"):
            running.f()
        running.begin_check(Deadline(30))
        began = time.monotonic()
        for _ in range(50):
            with pytest.raises(SubmissionFault, match="While it was being loaded"):
                running.f()
        assert time.monotonic() - began < 1

    def test_an_object_is_lost_with_its_worker(self, load_process: Load) -> None:
        """A handle of a dead worker is refused, neither called nor handed to the new one as another object."""
        running = load_process(
            cell="import os\nclass C:\n  def n(self): return 1\ndef die(): os._exit(1)\ndef n(c): return c.n()"
        )
        old = running.C()
        with pytest.raises(SubmissionFault):
            running.die()
        running.begin_check(Deadline(30))
        assert running.C().n() == 1
        with pytest.raises(SubmissionFault, match="lost an object"):
            old.n()
        with pytest.raises(SubmissionFault, match="lost an object"):
            running.n(old)


HANDLE = Ref(True, 1, "X")
RAISED: dict[str, Any] = {"type": "E", "mro": ["E"], "text": "", "lines": [], "name": None, "data": {}}


class TestHostileWorkers:
    """Replies that no honest worker sends: the submission's fault, never the judge's crash."""

    @pytest.mark.parametrize(
        "reply",
        [
            [],
            ["value"],
            ["value", 1, 2],
            ["other", 1],
            [1, 2],
            [HANDLE, 1],
            [Array("numpy", "int64", (2,), bytes(16)), 1],
            [Array("torch", "int64", (2,), bytes(16)), 1],
            ["invoke", 0, [], {}],
            ["invoke", -1, [], {}],
            ["invoke", "f", [], {}],
            ["invoke", HANDLE, [], {}],
            ["raised", None],
            ["raised", HANDLE],
            ["raised", {}],
            ["raised", RAISED | {"data": HANDLE}],
            ["raised", RAISED | {"lines": HANDLE}],
            ["raised", RAISED | {"lines": [1]}],
            ["raised", RAISED | {"lines": [["cell", float("inf"), ""]]}],
            ["raised", RAISED | {"lines": [["cell", "x", ""]]}],
            ["raised", RAISED | {"mro": HANDLE}],
            ["raised", RAISED | {"type": 5}],
            ["raised", RAISED | {"text": Array("torch", "int64", (2,), bytes(16))}],
            ["value", Ref(False, 99, "function", True)],
            None,
        ],
        ids=str,
    )
    def test_a_nonsense_reply_is_a_fault(
        self, hostile: Callable[..., RunningSubmission], reply: list[Any] | None
    ) -> None:
        """No shape of a reply makes anything but a `SubmissionFault` come out."""
        with pytest.raises(SubmissionFault):
            hostile(lambda wire, message: reply).f()

    @pytest.mark.parametrize(
        "data", [{"name": [1]}, {"name": HANDLE}, {"text": "x" * 1_000_000}, {"data": {"k": HANDLE, 1: 1}}]
    )
    def test_fields_of_an_exception_are_cut_to_their_types(
        self, hostile: Callable[..., RunningSubmission], data: dict[str, Any]
    ) -> None:
        """An exception made by hand has a text of bounded length, and a name that is a text or nothing."""
        with pytest.raises(SubmissionRaised) as raised:
            hostile(lambda wire, message: ["raised", RAISED | data]).f()
        assert raised.value.name is None
        assert len(str(raised.value)) < 3000
        assert raised.value.data == {}

    @pytest.mark.parametrize(
        "found", [HANDLE, 5, {}, {"parameters": 5}, Array("numpy", "int64", (2,), bytes(16))], ids=str
    )
    def test_a_nonsense_description_is_a_fault(self, hostile: Callable[..., RunningSubmission], found: Any) -> None:
        """What a worker says about a name may be anything."""
        with pytest.raises(SubmissionFault):
            hostile(lambda wire, message: ["value", found]).describe("f")

    @pytest.mark.parametrize("args", [(5, {}), ([], []), ([], {1: 2}), (HANDLE, {})], ids=str)
    def test_impossible_arguments_to_a_callback_are_a_fault(
        self, hostile: Callable[..., RunningSubmission], args: tuple[Any, Any]
    ) -> None:
        """A call of our function that Python could not even express never reaches it."""
        with pytest.raises(SubmissionFault):
            hostile(lambda wire, message: ["invoke", 0, *args]).f(lambda *args, **kwargs: pytest.fail("was called"))

    def test_an_endless_stream_of_callbacks_meets_the_deadline(self, hostile: Callable[..., RunningSubmission]) -> None:
        """Calling our functions for ever is running for ever."""

        running = hostile(lambda wire, message: ["invoke", 0, [], {}])
        running._call_s = 0.5
        with pytest.raises(SubmissionFault) as fault:
            running.f(lambda: None)
        assert fault.value.timeout
