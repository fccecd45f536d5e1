"""The sandbox's contract: what every level promises, and what those with walls stop.

Hostile programs run as source text in a worker that serves `standin.serve` instead of the real loop. A level that
cannot be had here is skipped and says why; levels 1 and 2 run once more in an imitation of Docker's default container.
Each line that a module's head lists as covered is named by the test of it, with `covers`; `TestHeads` compares.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import re
import resource
import shutil
import signal
import site
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from autograder.sandboxing import selftest
from autograder.sandboxing.sandbox import (
    InlineSandbox,
    Isolation,
    LandlockSandbox,
    Limits,
    NamespaceSandbox,
    ProcessSandbox,
    Sandbox,
    SandboxUnavailable,
    Worker,
    best_sandbox,
    gpu_devices,
    probe,
)
from autograder.worker import confine, landlock, seccomp, walls, zygote

ROOT = Path(__file__).resolve().parents[2]
STANDIN = """
import json
def serve(sock):
    file = sock.makefile("rw")
    def reply(value):
        file.write(json.dumps(value) + "\\n")
        file.flush()
    exec(json.loads(file.readline()), {"reply": reply, "wait": file.readline})
"""
SMALL = Limits(cpu_s=20, memory_bytes=512 << 20)
HERE = probe()
print(f"isolation here: {HERE}")  # shown when a test of this file fails
PROC = "empty /proc" not in HERE.walls  # containers that mask parts of /proc get an empty one
NOTHING = "autograder.worker.zygote:serve_nothing"


def _why_no_landlock() -> str:
    try:
        LandlockSandbox(serve=NOTHING).close()
    except SandboxUnavailable as error:
        return str(error)
    return ""


NO_LANDLOCK = _why_no_landlock()
needs_landlock = pytest.mark.skipif(bool(NO_LANDLOCK), reason=f"level 1 or 2 cannot be had here: {NO_LANDLOCK}")
needs_namespaces = pytest.mark.skipif(HERE.level < 3, reason=f"no namespaces here: {'; '.join(HERE.refused)}")


needs_a_landlock_kernel = pytest.mark.skipif(
    "Landlock" not in str(HERE.walls), reason=f"no Landlock in this kernel: {HERE}"
)
HEADS = (
    "sandboxing.sandbox",
    *(f"worker.{name}" for name in ("walls", "confine", "seccomp", "landlock", "zygote", "__main__")),
)
COVERED: dict[str, list[str]] = {}
"""Line of a head → the tests of it."""
Test = TypeVar("Test", bound=Callable[..., object])


def covers(*lines: str) -> Callable[[Test], Test]:
    """Name the lines, as "module: line", that the test is about."""

    def note(test: Test) -> Test:
        for line in lines:
            COVERED.setdefault(line, []).append(test.__qualname__)
        return test

    return note


def _head(kind: str) -> dict[str, str]:
    """What the heads list as `kind`: "module: line" → what they say of it."""
    found, section = {}, ""
    for module in HEADS:
        for line in (importlib.import_module(f"autograder.{module}").__doc__ or "").splitlines():
            section = section if line.startswith(("- ", "  ")) else line
            if line.startswith("- ") and section.startswith(kind):
                name, _, text = line[2:].partition(": ")
                found[f"{module.rpartition('.')[2]}: {name}"] = text
    return found


def skip_known_gap(name: str) -> None:
    """Skip the test on a level whose head lists the gap; a gap that is not listed is an error."""
    pytest.skip(f"known gap, {name}: {_head('Not covered')[name]}")


class Student:
    """One worker that runs `source`, which calls `reply(value)` and may `wait()` for a line."""

    def __init__(self, sandbox: Sandbox, source: str, limits: Limits = SMALL) -> None:
        self.worker: Worker = sandbox.start(limits)
        self.worker.sock.settimeout(30)
        self._file = self.worker.sock.makefile("rw")
        self._file.write(json.dumps(source) + "\n")
        self._file.flush()

    def answer(self) -> Any:
        """The next value; None when the line is closed."""
        line = self._file.readline()
        return json.loads(line) if line else None

    def end(self) -> str | None:
        """How it ended by itself."""
        return self.worker.end_reason(30)


Start = Callable[..., Student]


@pytest.fixture(scope="module")
def standin() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users, such as workers
        os.chmod(folder, 0o755)
        Path(folder, "standin.py").write_text(STANDIN)
        yield {"serve": "standin:serve", "import_paths": [folder]}


@pytest.fixture(scope="module")
def namespaces(standin: dict[str, Any]) -> Iterator[NamespaceSandbox]:
    os.environ["GRADER_TOKEN"] = "canary-in-the-environment"
    with NamespaceSandbox(**standin) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def process(standin: dict[str, Any]) -> ProcessSandbox:
    os.environ["GRADER_TOKEN"] = "canary-in-the-environment"
    return ProcessSandbox(**standin)


@pytest.fixture(scope="module")
def landlocked(standin: dict[str, Any]) -> Iterator[LandlockSandbox]:
    os.environ["GRADER_TOKEN"] = "canary-in-the-environment"
    with LandlockSandbox(**standin) as sandbox:
        yield sandbox


KINDS = [
    pytest.param(LandlockSandbox, marks=needs_landlock, id="landlocked"),
    pytest.param(NamespaceSandbox, marks=needs_namespaces, id="namespaces"),
]
BOTH = [pytest.param("landlocked", marks=needs_landlock), pytest.param("namespaces", marks=needs_namespaces)]


@pytest.fixture(params=BOTH)
def walled(request: pytest.FixtureRequest) -> LandlockSandbox | NamespaceSandbox:
    """Each sandbox with walls that can be had here."""
    sandbox: LandlockSandbox | NamespaceSandbox = request.getfixturevalue(request.param)
    return sandbox


@pytest.fixture
def start_walled(walled: Sandbox) -> Iterator[Start]:
    """Start a student's program at every level with walls."""
    yield from _starter(walled)


@pytest.fixture
def start_landlocked(landlocked: LandlockSandbox) -> Iterator[Start]:
    """Start a student's program at level 1 or 2."""
    yield from _starter(landlocked)


def _starter(sandbox: Sandbox) -> Iterator[Start]:
    started: list[Student] = []

    def start(source: str, limits: Limits = SMALL) -> Student:
        started.append(Student(sandbox, source, limits))
        return started[-1]

    yield start
    for student in started:
        student.worker.kill()


@pytest.fixture
def start(namespaces: NamespaceSandbox) -> Iterator[Start]:
    """Start a student's program at level 3."""
    yield from _starter(namespaces)


@pytest.fixture(params=["process", *BOTH])
def start_any(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start a student's program at every level."""
    yield from _starter(request.getfixturevalue(request.param))


def _running(marker: str) -> list[str]:
    """Host processes whose command line contains `marker`."""
    found = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if marker in line]


def _comes(condition: Callable[[], object], within_s: float = 10.0) -> bool:
    """Whether `condition` becomes true in time."""
    deadline = time.monotonic() + within_s
    while not (true := bool(condition())) and time.monotonic() < deadline:
        time.sleep(0.02)
    return true


class TestEveryLevel:
    @covers("sandbox: one protocol")
    def test_answers_over_the_wire_and_ends_with_it(self, start_any: Start) -> None:
        """A worker answers, is alive until the judge closes the line, and then ends in order."""
        student = start_any("reply(6 * 7); wait()")
        assert student.answer() == 42
        assert student.worker.end_reason() is None
        student.worker.sock.shutdown(socket.SHUT_WR)
        assert student.end() == "ended with exit code 0"

    def test_exit_code_is_told(self, start_any: Start) -> None:
        """A submission that leaves with a code gets it named."""
        assert start_any("import os; os._exit(3)").end() == "ended with exit code 3"

    @covers("zygote: any end", "__main__: crashes")
    def test_signal_is_told(self, start_any: Start) -> None:
        """A crash is named by its signal."""
        student = start_any("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
        assert student.end() == "was killed by signal SIGSEGV"

    def test_reason_is_there_when_the_line_closes(self, start_any: Start) -> None:
        """A judge that sees the line close learns how the worker ended, at once or after killing it to be safe."""
        student = start_any("import os; os._exit(3)")
        assert student.answer() is None
        assert student.worker.end_reason() == "ended with exit code 3"
        student = start_any("import os; os._exit(4)")
        assert student.answer() is None
        student.worker.kill()
        assert student.worker.end_reason() == "ended with exit code 4"

    def test_kill_twice(self, start_any: Start) -> None:
        """Killing an endless loop works, and doing so again does nothing."""
        student = start_any("reply(1)\nwhile True: pass")
        assert student.answer() == 1
        student.worker.kill()
        student.worker.kill()
        assert student.worker.end_reason() == "was stopped by the grader"

    def test_kill_takes_children_along(self, start_any: Start) -> None:
        """Children of the submission are gone when kill returns."""
        student = start_any("import subprocess; subprocess.Popen(['sleep', '98761']); reply(1); wait()")
        assert student.answer() == 1
        assert _comes(lambda: _running("sleep 98761"))
        student.worker.kill()
        assert _comes(lambda: not _running("sleep 98761"), 0.5)

    def test_output_is_kept_and_made_harmless(self, start_any: Start) -> None:
        """Both streams come back, without terminal commands and broken characters."""
        source = "import sys; print('one\\x1b[31m\\x07'); sys.stderr.write('t\\u202ewo\\n')"
        student = start_any(f"{source}; sys.stdout.buffer.write(b'\\xff')")
        student.end()
        assert student.worker.output() == "one\ntwo\n\ufffd"

    def test_endless_output_is_cut(self, start_any: Start) -> None:
        """100 MB of prints neither block the worker nor fill the judge; beginning and end are kept."""
        source = "import os; print('begin')\nfor _ in range(1600): os.write(1, b'x' * 65536)\nprint('end')"
        student = start_any(source, replace(SMALL, output_bytes=1000))
        assert student.end() == "ended with exit code 0"
        text = student.worker.output()
        assert text.startswith("begin")
        assert text.endswith("end\n")
        assert "bytes left out" in text
        assert len(text) < 1100

    @covers("walls: limits", "confine: limits", "__main__: limits")
    def test_cpu_time_is_limited(self, start_any: Start) -> None:
        """An endless loop ends, and the reason says so."""
        assert (
            start_any("while True: pass", replace(SMALL, cpu_s=1)).end() == "was killed: used more than 1 s of CPU time"
        )

    @covers("walls: limits", "confine: limits", "__main__: limits")
    def test_memory_is_limited(self, start_any: Start) -> None:
        """An allocation beyond the limit fails in the submission."""
        source = "try: bytearray(3 << 30)\nexcept MemoryError: reply('refused')\nelse: reply('granted')"
        assert start_any(source).answer() == "refused"

    def test_environment_holds_no_secret(self, start_any: Start) -> None:
        """What the grader has in its environment is not in the worker's, nor in what the kernel remembers of it."""
        kernel = "open('/proc/self/environ', errors='replace').read()" if PROC else "''"
        seen = start_any(f"import os; reply([dict(os.environ), {kernel}])").answer()
        assert "canary" not in str(seen)
        assert seen[0]["HF_HUB_OFFLINE"] == "1"

    def test_current_folder_is_scratch(self, start_any: Start) -> None:
        """The submission may write files where it starts, and temporary files."""
        source = "import tempfile; open('a', 'w').write('1'); tempfile.NamedTemporaryFile(); reply(open('a').read())"
        assert start_any(source).answer() == "1"

    def test_nothing_stays_between_workers(self, start_any: Start) -> None:
        """A worker sees neither the changed modules nor the files of the one before it."""
        source = (
            "import json, os; reply([hasattr(json, 'mark'), os.listdir('.')]); json.mark = 1; open('b', 'w'); wait()"
        )
        assert [start_any(source).answer() for _ in range(2)] == [[False, []]] * 2


class TestWalls:
    @covers("seccomp: processors", "walls: limits", "confine: limits")
    def test_the_grader_chooses_the_processor(self, start_walled: Start) -> None:
        """A worker stays where it is put, whatever it asks for, and so do its children."""
        last = max(os.sched_getaffinity(0))
        source = """
import os
read, write = os.pipe()
os.sched_setaffinity(0, range(os.cpu_count()))
if os.fork() == 0:
    os.sched_setaffinity(0, {0})
    os.write(write, repr(sorted(os.sched_getaffinity(0))).encode())
    os._exit(0)
reply([sorted(os.sched_getaffinity(0)), eval(os.read(read, 100))])"""
        assert start_walled(source, replace(SMALL, core=last)).answer() == [[last], [last]]
        everywhere = sorted(os.sched_getaffinity(0))
        assert start_walled(source).answer() == [everywhere, everywhere]

    @covers("confine: files", "walls: files")
    def test_grader_files_cannot_be_opened(self, start_walled: Start, tmp_path: Path) -> None:
        """Hidden checks, solutions, accounts and other folders can be neither read, listed nor written."""
        (tmp_path / "gradebook.db").write_text("canary")
        hidden = [
            ROOT / "tests",
            ROOT / "autograder/sandboxing/sandbox.py",
            tmp_path,
            tmp_path / "gradebook.db",
            Path(__file__),
        ]
        hidden += map(Path, ("/etc/passwd-", "/etc/shadow", "/root/.bashrc", "/var/log", "/proc/1/environ"))
        source = f"""
import os
opened = []
for path in {list(map(str, hidden))}:
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC):
        try: os.listdir(path) if os.path.isdir(path) and flags == 0 else os.open(path, flags)
        except OSError: continue
        opened.append(path)
for folder in ('/dev/shm', '/tmp', '/var/tmp', '/run', {str(tmp_path)!r}, {str(ROOT)!r}, {sys.prefix!r}):
    if os.path.realpath(folder) in (os.getcwd(), '/dev/shm' if os.getcwd() == '/scratch' else ''): continue
    try: open(folder + '/canary', 'w').close()
    except OSError: continue
    opened.append(folder)
reply(opened)"""
        assert start_walled(source).answer() == []
        assert (tmp_path / "gradebook.db").read_text() == "canary"

    @covers("confine: network", "walls: network")
    def test_network_is_out_of_reach(self, start_walled: Start) -> None:
        """Neither a listener on the host's loopback nor an abstract Unix socket of the host answers."""
        abstract = f"\0canary-{os.getpid()}"
        with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
            unix.bind(abstract)
            unix.listen()
            source = f"""
import socket
def reach(family, address):
    try: socket.socket(family).connect(address)
    except OSError as error: return type(error).__name__
    return 'reached'
reply([reach(socket.AF_INET, ('127.0.0.1', {tcp.getsockname()[1]})), reach(socket.AF_UNIX, {abstract!r}),
       reach(socket.AF_INET, ('192.0.2.1', 80)), [name for _, name in socket.if_nameindex()]])"""
            answer = start_walled(source).answer()
        assert answer is None or "reached" not in answer[:3]

    @covers("walls: limits", "confine: limits")
    def test_cpu_limit_cannot_be_ignored(self, start_walled: Start) -> None:
        """A submission that ignores the warning is killed one second later, with the same reason."""
        source = "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
        assert start_walled(source, replace(SMALL, cpu_s=1)).end() == "was killed: used more than 1 s of CPU time"

    @covers("zygote: memory")
    def test_memory_of_many_processes_is_added_up(self, start_walled: Start) -> None:
        """Children that each stay below the limit are stopped together, with the reason."""
        source = """
import os, time
for _ in range(10):
    if os.fork() == 0:
        block = bytearray(b'x') * (150 << 20)
        time.sleep(60)
time.sleep(60)"""
        assert start_walled(source).end() == "was killed: used more than 0.5 GiB of memory"

    def test_memory_error_is_explained(self, start_walled: Start) -> None:
        """A submission that fills its memory piece by piece and ends is told how much it had."""
        reason = start_walled("blocks = []\nwhile True: blocks.append(bytearray(b'x') * (1 << 20))").end()
        assert reason is not None
        assert "of the allowed 0.5 GiB of memory" in reason or "used more than 0.5 GiB" in reason

    @covers("walls: leftovers", "confine: leftovers")
    def test_daemons_do_not_survive(self, start_walled: Start) -> None:
        """A process that left session and parent is gone when kill returns, and also when the worker just ends."""
        daemon = "import os\nif os.fork() == 0:\n os.setsid()\n"
        daemon += " if os.fork() == 0: os.execvp('sleep', ['sleep', '98763'])\n os._exit(0)"
        student = start_walled(f"{daemon}\nos.wait(); reply(1); wait()")
        assert student.answer() == 1
        assert _comes(lambda: _running("sleep 98763"))
        student.worker.kill()
        assert not _running("sleep 98763")
        assert start_walled(f"{daemon}\nos.wait()").end() == "ended with exit code 0"
        assert not _running("sleep 98763")

    @covers("confine: limits")
    def test_fork_bomb_stops(self, start_walled: Start, walled: Sandbox) -> None:
        """Processes and threads end at the limit, or it ends them; kill clears them."""
        source = """
import os, time
made = 0
try:
    while True:
        if os.fork() == 0: time.sleep(98762)
        made += 1
except OSError: reply(made)
wait()"""
        student = start_walled(source, replace(SMALL, processes=20))
        if walled.isolation.level == 1:
            assert student.end() == "was killed: used more than 20 processes"
        else:
            assert student.answer() == 19
        student.worker.kill()

    @covers("walls: limits")
    def test_scratch_is_limited_in_bytes_and_files(self, start_walled: Start, walled: Sandbox) -> None:
        """Neither many bytes in several files nor many empty files get through."""
        if walled.isolation.level < 3:
            skip_known_gap("confine: scratch quota")
        source = """
import os
done = 0
try:
    for i in range(40):
        with open(f'{folder}/{i}', 'wb', buffering=0) as file: done += file.write(bytes(1 << 20))
except OSError: pass
for i in range(40):
    try: os.remove(f'{folder}/{i}')
    except OSError: pass
made = 0
try:
    for made in range(1000): open(f'{folder}/f{made}', 'w').close()
except OSError: pass
reply([done, made])"""
        for folder in ("/scratch", "/dev/shm"):
            limits = replace(SMALL, scratch_bytes=8 << 20, scratch_files=100)
            written, files = start_walled(f"folder = {folder!r}\n{source}", limits).answer()
            assert 7 << 20 <= written <= 8 << 20
            assert files < 100

    @covers("confine: leftovers")
    def test_double_forking_bomb_is_cleared(self, start_walled: Start, walled: Sandbox) -> None:
        """Processes that keep forking while their parents die are gone, all of them, when kill returns."""
        source = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        os.setsid()
        while True:
            try:
                if os.fork(): os._exit(0)
                os.setpgid(0, 0)
            except OSError: pass
reply(1); wait()"""
        student = start_walled(source, replace(SMALL, processes=40))
        assert student.answer() == 1
        student.worker.kill()
        assert student.worker.output_has_ended(1.0)

    @covers("zygote: dead judge")
    def test_worker_of_a_killed_judge_ends(self, walled: Sandbox) -> None:
        """A judge that is killed leaves no worker behind."""
        judge = os.fork()
        if judge == 0:
            with contextlib.suppress(BaseException):
                student = Student(walled, "import os; os.execvp('sleep', ['sleep', '98764'])")
                student.end()
            os._exit(1)
        assert _comes(lambda: _running("sleep 98764"))
        os.kill(judge, signal.SIGKILL)
        os.waitpid(judge, 0)
        assert _comes(lambda: not _running("sleep 98764"))

    @covers("zygote: several judges")
    def test_forked_judges_share_a_zygote(self, walled: Sandbox) -> None:
        """Judges forked from the process that made the sandbox start workers at the same time, each its own."""

        def judge(number: int) -> bool:
            students = [Student(walled, f"reply({number * 100 + i}); wait()") for i in range(5)]
            right = [student.answer() for student in students] == [number * 100 + i for i in range(5)]
            for student in students:
                student.worker.kill()
            return right

        judges = []
        for number in range(2):
            if (pid := os.fork()) == 0:
                with contextlib.suppress(BaseException):
                    os._exit(0 if all(judge(number) for _ in range(4)) else 1)
                os._exit(2)
            judges.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in judges] == [0, 0]

    @covers("zygote: any end")
    def test_zygote_survives_its_workers(self, walled: Sandbox) -> None:
        """Workers that die in every way, several at once, leave a zygote that starts the next."""
        ways = ["import os; os.abort()", "import os; os.kill(-1, 9)", "1 / 0", "import os; os.close(3); os._exit(1)"]

        def run(way: str) -> None:
            student = Student(walled, way)
            student.end()
            student.worker.kill()

        threads = [threading.Thread(target=run, args=(way,)) for way in ways * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        student = Student(walled, "reply(1)")
        assert student.answer() == 1
        student.worker.kill()

    @pytest.mark.parametrize("kind", KINDS)
    def test_set_up_failure_is_our_fault(self, kind: Callable[..., Sandbox]) -> None:
        """A worker loop that cannot be imported is no fault of a submission, and the message names it."""
        with pytest.raises(SandboxUnavailable, match="no_such_module"):
            kind(serve="no_such_module:serve")

    @pytest.mark.parametrize("kind", KINDS)
    def test_missing_preload_is_told(self, kind: Callable[..., Any], standin: dict[str, Any]) -> None:
        """A module that cannot be imported in advance is named with its reason; the others are there."""
        with kind(["fractions", "no_such_module"], **standin) as sandbox:
            assert list(sandbox.preload_failed) == ["no_such_module"]
            assert sandbox.threads == 1
            student = Student(sandbox, "import sys; reply('fractions' in sys.modules)")
            assert student.answer() is True
            student.worker.kill()

    @pytest.mark.parametrize("kind", KINDS)
    def test_torch_works_and_starts_fast(
        self, kind: Callable[..., Any], standin: dict[str, Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A worker from a zygote with torch computes with several threads and starts in a fraction of the import."""
        pytest.importorskip("torch")
        with kind(["torch"], **standin) as sandbox:
            assert (sandbox.threads, sandbox.preload_failed) == (1, {})
            source = (
                "import torch; torch.set_num_threads(2); ones = torch.ones(600, 600); reply(float((ones @ ones).sum()))"
            )
            student = Student(sandbox, source)
            assert student.answer() == 600.0**3
            student.worker.kill()
            times = []
            for _ in range(20):
                before = time.perf_counter()
                worker = sandbox.start(SMALL)
                times.append(time.perf_counter() - before)
                worker.kill()
        with capsys.disabled():
            median, worst = statistics.median(times) * 1e3, max(times) * 1e3
            print(f"\n{sandbox.isolation.name}: start of a worker with torch {median:.1f} ms, largest {worst:.1f} ms")
        assert median < 300

    @covers("walls: devices")
    def test_gpu_devices_are_passed_on(self, walled: Sandbox, standin: dict[str, Any]) -> None:
        """A device file that was asked for can be opened, another cannot; address space is then not limited.

        A thread can be named, as CUDA does when it starts, and nothing of the machine can be set by the way.
        """
        source = """
import errno, os, resource, threading
def attempt(path, flags=os.O_RDWR):
    try: os.close(os.open(path, flags, 0o666))
    except OSError as error: return errno.errorcode[error.errno]
def name_a_thread():
    path = f'/proc/self/task/{threading.get_native_id()}/comm'
    if failure := attempt(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC): return failure
    with open(path, 'w') as file: file.write('cuda')
    with open(path) as file: return file.read().strip()
names = []
thread = threading.Thread(target=lambda: names.append(name_a_thread()))
thread.start(); thread.join()
settings = [attempt(path, os.O_WRONLY) for path in ('/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/proc/1/comm')]
reply([attempt('/dev/tty'), attempt('/dev/ptmx'), resource.getrlimit(resource.RLIMIT_AS)[0], names, settings])"""
        with type(walled)(devices=["/dev/tty"], **standin) as sandbox:  # type: ignore[call-arg, attr-defined]
            student = Student(sandbox, source)
            tty, other, address_space, names, settings = student.answer()
            student.worker.kill()
        assert tty == "ENXIO"  # it was reached, and there is no terminal behind it
        assert other in ("ENOENT", "EACCES")
        assert address_space == resource.RLIM_INFINITY
        assert names == ["cuda"]
        assert all(settings)  # each was refused

    @covers("sandbox: self-test")
    def test_self_test_passes_quickly(self, walled: LandlockSandbox | NamespaceSandbox) -> None:
        """Where the walls stand, the hostile programs get nowhere, in a fraction of a second."""
        before = time.perf_counter()
        walled.self_test()
        assert time.perf_counter() - before < 1.0  # 0.05 s on a quiet machine


@needs_landlock
class TestLandlocked:
    @covers("confine: other processes", "confine: own user", "seccomp: same user")
    def test_judge_is_neither_signalled_nor_looked_into(self, start_landlocked: Start, tmp_path: Path) -> None:
        """No signal, limit or priority reaches the judge, its zygote or process 1; no /proc file of theirs opens."""
        student = start_landlocked(f"""
import errno, fcntl, os, resource, signal, socket
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def attempt(function, *args):
    try: return str(function(*args))
    except OSError as error: return errno.errorcode[error.errno]
ours, theirs = socket.socketpair()
done = []
for pid in ({os.getpid()}, os.getppid()):
    done += [attempt(os.kill, pid, 15), attempt(os.kill, pid, 0), attempt(os.setpriority, os.PRIO_PROCESS, pid, 19)]
    done += [attempt(resource.prlimit, pid, resource.RLIMIT_CPU, (1, 1)), attempt(os.sched_setaffinity, pid, [0])]
    done += [attempt(open, f'/proc/{{pid}}/' + name) for name in ('mem', 'environ', 'cmdline')]
    done += [attempt(fcntl.fcntl, ours.fileno(), fcntl.F_SETOWN, pid)]
attempt(os.kill, -1, 15)
reply([done, attempt(os.listdir, '/proc'), os.getuid()])""")
        done, processes, uid = student.answer()
        assert set(done) <= {"EPERM", "EACCES"}
        assert processes == "EACCES"
        assert (uid >= confine.FIRST_UID) if os.getuid() == 0 else (uid == os.getuid())

    @covers("seccomp: same user")
    def test_files_of_the_same_user_keep_their_mode(self, start_landlocked: Start, tmp_path: Path) -> None:
        """What the grader owns keeps its mode and times, even where the submission has the grader's user id."""
        (file := tmp_path / "grades").write_text("1")
        before = file.stat()
        source = """
import os
for change in (lambda p: os.chmod(p, 0), lambda p: os.utime(p, (1, 1)), lambda p: os.setxattr(p, 'user.x', b'1'),
               lambda p: os.truncate(p, 0), lambda p: os.chown(p, os.getuid(), os.getgid())):
    try: change(FILE)
    except OSError: pass
reply(1)"""
        assert start_landlocked(source.replace("FILE", repr(str(file)))).answer() == 1
        after = file.stat()
        assert (after.st_mode, after.st_mtime_ns, after.st_size) == (before.st_mode, before.st_mtime_ns, 1)
        assert os.listxattr(file) == []

    @covers("confine: network", "seccomp: no connections")
    def test_only_connected_pairs_are_left_of_sockets(self, start_landlocked: Start) -> None:
        """No IP, no datagrams and no connections; event loops and threads, which use pairs, work."""
        source = """
import asyncio, errno, socket, subprocess
def attempt(function, *args):
    try: return str(function(*args))
    except OSError as error: return errno.errorcode[error.errno]
server = socket.socket(socket.AF_UNIX)
server.bind('server')
server.listen()
seen = [attempt(socket.socket, family, kind) for family, kind in ((2, 1), (2, 2), (10, 1), (1, 2))]
seen += [attempt(socket.socketpair, 1, 2), attempt(socket.socket(socket.AF_UNIX).connect, 'server')]
async def main(): return await asyncio.to_thread(lambda: 42)
reply([seen, asyncio.run(main()), subprocess.run(['echo', 'x'], start_new_session=True).returncode])"""
        refused = ["EAFNOSUPPORT"] * 3 + ["EPROTONOSUPPORT"] * 2 + ["EACCES"]
        assert start_landlocked(source).answer() == [refused, 42, 0]

    @covers("seccomp: process group", "confine: privileges")
    def test_nobody_leaves_the_process_group(self, start_landlocked: Start) -> None:
        """Leaving seems to work and does not; namespaces and capabilities are refused."""
        source = """
import ctypes, os
group = os.getpgid(0)
if (child := os.fork()) == 0:
    os.setsid()
    os.setpgid(0, 0)
    os._exit(os.getpgid(0) != group)
_, status = os.waitpid(child, 0)
libc = ctypes.CDLL(None, use_errno=True)
capabilities = any(libc.prctl(47, 1, number, 0, 0) > 0 for number in range(40))
reply([status, libc.unshare(0x10000000), libc.prctl(39, 0, 0, 0, 0), capabilities])"""
        assert start_landlocked(source).answer() == [0, -1, 1, False]

    @covers("confine: limits")
    def test_one_file_of_scratch_is_limited(self, start_landlocked: Start) -> None:
        """A file ends at the limit, a core dump is none, and files are gone with the worker."""
        source = """
import os
try:
    with open('big', 'wb', buffering=0) as file:
        while True: file.write(bytes(1 << 20))
except OSError: reply([os.stat('big').st_size, os.getcwd()])"""
        student = start_landlocked(source, replace(SMALL, scratch_bytes=8 << 20))
        size, folder = student.answer()
        assert size == 8 << 20
        student.end()
        assert not os.path.exists(folder)

    def test_closing_leaves_nothing(self, standin: dict[str, Any]) -> None:
        """Processes of running workers and all folders are gone when close returns."""
        sandbox = LandlockSandbox(**standin)
        daemon = "import os\nif os.fork() == 0: os.execvp('sleep', ['sleep', '98765'])\n"
        student = Student(sandbox, daemon + "reply(os.getcwd()); wait()")
        folder = Path(student.answer())
        assert _comes(lambda: _running("sleep 98765"))
        sandbox.close()
        assert not _running("sleep 98765")
        assert not folder.parent.exists()
        with contextlib.suppress(SandboxUnavailable):
            student.worker.kill()

    def test_it_starts_where_no_package_was_ever_installed_for_the_user(
        self, standin: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Python names a folder for such packages, in no virtual environment, that need not exist."""
        monkeypatch.setattr(site, "ENABLE_USER_SITE", True)
        monkeypatch.setattr(site, "getusersitepackages", lambda: str(tmp_path / ".local/lib/python/site-packages"))
        with LandlockSandbox(**standin) as sandbox:
            assert Student(sandbox, "reply(1)").answer() == 1

    def test_folders_of_killed_runs_are_swept(self, standin: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        """A folder whose run was killed as a whole is removed by the next, one of a running one is not."""
        monkeypatch.setattr("autograder.temporary.STALE_S", -1.0)
        old = Path(tempfile.mkdtemp(prefix="autograder-workers-"))
        with LandlockSandbox(**standin) as running, LandlockSandbox(**standin):
            assert not old.exists()
            student = Student(running, "open('x', 'w'); reply(1)")
            assert student.answer() == 1
            student.worker.kill()

    @pytest.mark.parametrize("victim", ["keeper", "process 1", "both"])
    def test_leftovers_of_a_worker_without_its_keeper_end(self, standin: dict[str, Any], victim: str) -> None:
        """Where something kills our own processes beside a worker, what the worker started does not stay."""
        with LandlockSandbox(**standin) as sandbox:
            daemon = "import os, time\nif os.fork() == 0: os.execvp('sleep', ['sleep', '98766'])\n"
            student = Student(sandbox, daemon + "reply(os.getppid()); wait()")
            first = student.answer()
            assert _comes(lambda: _running("sleep 98766"))
            keeper = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
            for pid in {"keeper": [keeper], "process 1": [first], "both": [keeper, first]}[victim]:
                os.kill(pid, signal.SIGKILL)
            if victim != "both":
                assert _comes(lambda: not _running("sleep 98766"), 5.0)
            with contextlib.suppress(SandboxUnavailable):
                student.worker.kill()
        assert not _running("sleep 98766")


def _in_fork(function: Callable[[], object]) -> Any:
    """What `function` gives in a fork of its own that cannot gain privileges."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            walls.call("no new privileges", "prctl", walls.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            os.write(writing, json.dumps(function()).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        answer = file.read()
    os.waitpid(pid, 0)
    return json.loads(answer)


def _attempt(function: Callable[..., object], *args: object) -> str:
    try:
        function(*args)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


class TestOneWall:
    """Walls that stand behind others in a worker, each alone in a fork."""

    @needs_a_landlock_kernel
    @covers("landlock: files", "landlock: cutting files short", "landlock: devices", "landlock: signals")
    @covers("landlock: abstract sockets", "landlock: TCP")
    def test_landlock(self, tmp_path: Path) -> None:
        """What was not given is out of reach, as far as this kernel's Landlock goes; what was given is not."""
        for name in ("open", "scratch"):
            (tmp_path / name).mkdir()
        for name in ("secret", "open/file", "scratch/file"):
            (tmp_path / name).write_text("x")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"\0{tmp_path}")
        listener.listen()

        def attempts() -> list[list[str]]:
            tmp, judge = str(tmp_path), os.getppid()
            landlock.restrict([f"{tmp}/open"], [f"{tmp}/scratch"], ["/dev/null"], tcp=True)
            version = landlock.abi()
            tcp = socket.socket()
            refused = [
                _attempt(open, f"{tmp}/secret"), _attempt(open, f"{tmp}/open/file", "a"), _attempt(os.listdir, tmp),
                _attempt(os.rename, f"{tmp}/open/file", f"{tmp}/scratch/x"), _attempt(os.mkdir, f"{tmp}/open/x"),
                _attempt(os.link, f"{tmp}/open/file", f"{tmp}/scratch/x"), _attempt(open, f"/proc/{judge}/environ"),
                _attempt(os.truncate, f"{tmp}/open/file", 0) if version >= 3 else "EACCES",
                _attempt(tcp.connect, ("127.0.0.1", 1)) if version >= 4 else "EACCES",
                _attempt(tcp.bind, ("127.0.0.1", 0)) if version >= 4 else "EACCES",
                _attempt(open, "/dev/zero"),
                _attempt(os.kill, judge, 0) if version >= 6 else "EPERM",
                _attempt(socket.socket(socket.AF_UNIX).connect, f"\0{tmp}") if version >= 6 else "EPERM",
            ]  # fmt: skip
            granted = [
                _attempt(open, f"{tmp}/open/file"), _attempt(open, f"{tmp}/scratch/new", "w"),
                _attempt(os.rename, f"{tmp}/scratch/new", f"{tmp}/scratch/n"), _attempt(open, "/dev/null", "r+b", 0),
            ]  # fmt: skip
            return [refused, granted]

        refused, granted = _in_fork(attempts)
        assert set(refused) <= {"EACCES", "EPERM", "EXDEV"}
        assert set(granted) == {"done"}

    @covers("seccomp: old Landlock")
    def test_filter_replaces_what_an_old_landlock_lacks(self, tmp_path: Path) -> None:
        """Below ABI 3 files are not cut short, below ABI 6 other processes are not signalled, oneself still is."""
        (file := tmp_path / "file").write_text("x")
        flags = os.O_RDONLY | os.O_TRUNC

        def attempts() -> list[str]:
            seccomp.load(seccomp.build(alone=False, own_user=False, abi=2))
            judge = os.getppid()
            refused = [_attempt(os.truncate, file, 0), _attempt(os.open, file, flags), _attempt(os.kill, judge, 0)]
            refused += [_attempt(os.kill, -1, 0), _attempt(os.kill, -os.getpgid(judge), 0)]
            return [*refused, _attempt(os.kill, os.getpid(), 0), _attempt(open, file), _attempt(open, file, "w")]

        assert _in_fork(attempts) == ["EPERM"] * 5 + ["done"] * 3

    def test_paths_around_a_hidden_folder(self, tmp_path: Path) -> None:
        """Landlock can only add paths, so what is to be hidden is left out, and a path named inside it is not."""
        for name in ("env/lib", "env/course/data", "env/bin"):
            (tmp_path / name).mkdir(parents=True)
        paths = confine.readable([f"{tmp_path}/env", f"{tmp_path}/env/course/data"], [f"{tmp_path}/env/course"])
        found = [os.path.relpath(path, tmp_path) for path in paths if path.startswith(str(tmp_path))]
        assert found == ["env/bin", "env/course/data", "env/lib"]


@needs_namespaces
class TestNamespaces:
    def test_a_worker_that_is_killed_before_it_has_started_is_told_of(self) -> None:
        """Its process 1 then tells of its end only: the judge hears that there is no worker."""
        line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        status, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with line, status, ours:
            first = os.fork()
            if first == 0:
                theirs.send(json.dumps({"status": 9, "cpu_s": 0.0, "max_rss_bytes": 0}).encode())
                os._exit(0)
            theirs.close()
            zygote._watch({"memory_bytes": 1 << 40, "processes": 10}, first, line, status, signal.SIGKILL)
            assert json.loads(ours.recv(1 << 16))["text"] == "it ended before it was ready"
            assert json.loads(ours.recv(1 << 16))["state"] == "ended"

    @covers("walls: files")
    def test_grader_files_cannot_be_read(self, start: Start, tmp_path: Path) -> None:
        """Hidden checks, solutions, accounts and home folders do not exist in there; the worker's own package does."""
        (tmp_path / "gradebook.db").write_text("canary")
        hidden = [
            ROOT / "tests",
            ROOT / "solutions",
            ROOT / "autograder/sandboxing/sandbox.py",
            ROOT / ".git",
            tmp_path,
            Path(__file__),
        ]
        hidden += [Path("/etc/shadow"), Path("/home"), Path("/root/.bashrc"), Path("/var"), Path("/.old")]
        source = f"import os; reply([p for p in {list(map(str, hidden))} if os.path.exists(p)])"
        assert start(source).answer() == []
        shown = {Path(sys.prefix), tmp_path, ROOT / "autograder"}  # the first two if they lie in the repository
        allowed = {path.relative_to(ROOT).parts[0] for path in shown if path.is_relative_to(ROOT)}
        assert set(start(f"import os; reply(os.listdir({str(ROOT)!r}))").answer()) <= allowed

    @covers("walls: other processes")
    def test_other_processes_are_neither_seen_nor_signalled(self, start: Start) -> None:
        """The worker sees itself and its reaper; a signal to everybody ends nobody else, the reaper included."""
        bystander = start("reply(1); wait(); reply(2)")
        assert bystander.answer() == 1
        source = """
import os, signal
seen = [p for p in os.listdir('/proc') if p.isdigit()]
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for target in (JUDGE, -1):
    try: os.kill(target, 15)
    except ProcessLookupError: seen.append('nobody')
os.kill(0, 15)
try: os.kill(1, 9)
except PermissionError: pass  # Landlock's answer, where it is
try: open('/proc/1/mem', 'rb')
except OSError: seen.append('closed')
reply(seen)"""
        answer = start(source.replace("JUDGE", str(os.getpid()))).answer()
        assert answer == [*(["1", "2"] if PROC else []), "nobody", "nobody", "closed"]
        bystander.worker.sock.sendall(b"\n")
        assert bystander.answer() == 2

    @covers("walls: shared memory")
    def test_shared_memory_of_others_does_not_exist(self, start: Start) -> None:
        """/dev/shm is the worker's own, and usable."""
        with open(f"/dev/shm/canary-{os.getpid()}", "w"):
            source = "import multiprocessing, os; multiprocessing.Lock(); reply(os.listdir('/dev/shm'))"
            answer = start(source).answer()
        os.remove(f"/dev/shm/canary-{os.getpid()}")
        assert answer == []

    @covers("walls: files")
    def test_nothing_but_scratch_can_be_written(self, start: Start) -> None:
        """Every writable folder is one that vanishes with the worker."""
        source = """
import os
written = []
for folder, below, _ in os.walk('/'):
    if folder.count('/') > 3 or folder == '/proc': below.clear()
    try: open(folder + '/canary', 'w').close()
    except OSError: continue
    written.append(folder)
reply(sorted(written))"""
        assert start(source).answer() == ["/dev/shm", "/scratch"]

    @covers("walls: privileges", "seccomp: kernel surface", "seccomp: uncounted memory", "seccomp: socket families")
    def test_the_walls_cannot_be_taken_down(self, start: Start) -> None:
        """Calls that make namespaces or mounts, trace, or hold uncounted memory are refused; no capability is left."""
        source = """
import ctypes, errno, fcntl, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, *args):
    return errno.errorcode[ctypes.get_errno()] if getattr(libc, name)(*args) == -1 else 'done'
def control(number):
    try: fcntl.ioctl(0, number, b'x')
    except OSError as error: return errno.errorcode[error.errno]
def family(number):
    try: socket.socket(number)
    except OSError as error: return errno.errorcode[error.errno]
    return 'done'
libc.capget(ctypes.byref((ctypes.c_uint32 * 2)(0x20080522, 0)), sets := (ctypes.c_uint32 * 6)())
capabilities = [*sets, *(libc.prctl(23, number, 0, 0, 0) for number in range(40))]
reply([attempt('unshare', 0x10000000), attempt('mount', b'x', b'/scratch', b'tmpfs', 0, None),
       attempt('umount2', b'/proc', 2),
       attempt('ptrace', 0, 0, 0, 0), attempt('memfd_create', b'x', 0), attempt('shmget', 0, 4096, 0o600),
       family(40), family(16), control(0x5412), control(0x541C), any(capabilities), libc.prctl(39, 0, 0, 0, 0),
       os.getuid()])
"""
        refused = ["EPERM"] * 4 + ["ENOSYS"] * 2 + ["EAFNOSUPPORT"] * 2 + ["EPERM"] * 2
        assert start(source).answer() == [*refused, False, 1, 1000]

    def test_dead_zygote_is_our_fault(self, standin: dict[str, Any]) -> None:
        """A zygote that is gone, before or while a worker runs, raises and says so."""
        with NamespaceSandbox(**standin) as sandbox:
            student = Student(sandbox, "reply(1); wait()")
            assert student.answer() == 1
            sandbox._launcher.kill()
            sandbox._launcher.wait()
            with pytest.raises(SandboxUnavailable, match="died without a word"):
                student.end()
            with pytest.raises(SandboxUnavailable, match=r"zygote.* is gone|died"):
                sandbox.start(SMALL)

    def test_repository_with_its_own_venv_stays_hidden(self, tmp_path: Path) -> None:
        """A venv inside the repository is seen, the rest of it is not, and a venv below /tmp stays reachable."""
        shutil.copytree(ROOT / "autograder", tmp_path / "autograder")
        (tmp_path / "solutions").mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
        (folder := tmp_path / "standin").mkdir()
        (folder / "standin.py").write_text(STANDIN)
        source = f"import os, sys; reply([sorted(os.listdir({str(tmp_path)!r})), os.path.exists(sys.executable)])"
        program = f"""
import json, sys; sys.path.insert(0, {str(tmp_path)!r})
from autograder.sandboxing.sandbox import Limits, NamespaceSandbox
with NamespaceSandbox(serve="standin:serve", import_paths=[{str(folder)!r}]) as sandbox:
    worker = sandbox.start(Limits())
    worker.sock.sendall(json.dumps({source!r}).encode() + b"\\n")
    print(worker.sock.recv(1000).decode())
    worker.kill()"""
        command = [str(tmp_path / ".venv/bin/python"), "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        assert json.loads(done.stdout) == [[".venv", "autograder", "standin"], True]

    def test_repository_cannot_be_shown_by_mistake(self) -> None:
        """A read-only path that holds the repository is refused."""
        with pytest.raises(SandboxUnavailable, match="would show this repository"):
            NamespaceSandbox(read_only_paths=[ROOT.parent])


class TestChoosing:
    def test_gpu_devices_are_a_list(self, tmp_path: Path) -> None:
        """What CUDA opens is found by name, for every GPU; what else begins with nvidia is not."""
        wanted = ["nvidia-caps/nvidia-cap1", "nvidia-uvm", "nvidia-uvm-tools", "nvidia0", "nvidia11", "nvidiactl"]
        (tmp_path / "nvidia-caps").mkdir()
        for name in (*wanted, "nvidia-modeset", "nvram", "null"):
            (tmp_path / name).touch()
        assert [os.path.relpath(path, tmp_path) for path in gpu_devices(tmp_path)] == wanted

    @covers("sandbox: self-test")
    def test_self_test_notices_missing_walls(self) -> None:
        """Where there are no walls, every attack but the one on a limit of its own gets through."""
        sandbox = ProcessSandbox(serve="autograder.worker.selftest:serve")
        through = selftest.attack(sandbox.start, SMALL, [], quota=True)
        assert sorted(through) == ["connect", "fill", "outlive", "read", "signal_others"]

    def test_a_killed_self_test_leaves_no_process(self, tmp_path: Path) -> None:
        """The process that must survive the attacks ends with whoever had it tried, also by SIGKILL."""
        script = """
import subprocess, time
from autograder.sandboxing import selftest
real = subprocess.Popen
class Told(real):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        print(self.pid, flush=True)
subprocess.Popen = Told
selftest.attack(lambda limits: time.sleep(60), None, [], quota=True)
"""
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as tried:
            assert tried.stdout
            bystander = int(tried.stdout.readline())
            tried.kill()
        ended = time.monotonic() + 10
        status = Path(f"/proc/{bystander}/status")
        while (alive := status.exists() and "\tZ" not in status.read_text()) and time.monotonic() < ended:
            time.sleep(0.05)
        assert not alive

    def test_isolation_names_its_walls(self) -> None:
        """The level found here says what is in force, and why it is no higher one."""
        assert isinstance(HERE, Isolation)
        assert HERE.walls
        assert HERE.level == 3 or "level 3 (namespaces): " in HERE.refused[0]

    @covers("sandbox: no silent fall-back")
    def test_below_the_minimum_is_refused(self) -> None:
        """A level that does not exist here is never replaced by a lower one in silence."""
        for level in range(HERE.level + 1, 5):
            with pytest.raises(SandboxUnavailable, match=r"demanded and cannot be had.*(Try|Start|doctor|only)"):
                best_sandbox((), level)

    def test_level_0_set_up_failure_is_our_fault(self) -> None:
        """A plain process that cannot find the worker loop raises as well."""
        worker = ProcessSandbox(serve="no_such_module:serve").start(SMALL)
        with pytest.raises(SandboxUnavailable, match="no_such_module"):
            worker.end_reason(30)

    def test_inline_runs_in_this_process(self, standin: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        """For a debugger, a worker is a thread of the judge, below every level that gives a grade."""
        monkeypatch.syspath_prepend(standin["import_paths"][0])
        sandbox = InlineSandbox(serve="standin:serve")
        student = Student(sandbox, "import os; reply(os.getpid()); wait()")
        assert student.answer() == os.getpid()
        assert student.worker.end_reason() is None
        student.worker.kill()
        assert sandbox.isolation.level < 0


# What Docker's default profile refuses without CAP_SYS_ADMIN, and the capabilities that it leaves to root.
REFUSED_BY_DOCKER = ("unshare", "setns", "mount", "umount2", "pivot_root", "move_mount", "open_tree", "fsopen")
CAPABILITIES = "chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod"
SETPRIV = f"--bounding-set=-all,+{CAPABILITIES.replace(' ', ',+')},+audit_write,+setfcap"


def _enter_container() -> None:
    """Take this process to where a container's would be: no namespaces to be had, the software open to every user."""
    column = seccomp.ARCHITECTURES[os.uname().machine][0]
    number = {name: seccomp.DENIED[name][column] or 0 for name in REFUSED_BY_DOCKER}
    number["clone3"] = seccomp.ABSENT["clone3"][column] or 0
    code = [(seccomp.LOAD, 0, 0, seccomp.NR)]
    for name, value in number.items():
        error = errno.ENOSYS if name == "clone3" else errno.EPERM
        code += [(seccomp.JUMP_EQ, 0, 1, value), (seccomp.RETURN, 0, 0, seccomp.ERRNO | error)]
    code += [(seccomp.JUMP_EQ, 0, 3, seccomp.CLONE[column]), (seccomp.LOAD, 0, 0, seccomp.ARGUMENTS)]
    code += [(0x45, 0, 1, seccomp.NEW_NAMESPACES), (seccomp.RETURN, 0, 0, seccomp.ERRNO | errno.EPERM)]
    code += [(seccomp.RETURN, 0, 0, seccomp.ALLOW)]
    if os.getuid() == 0:
        walls.call("mounts", "unshare", walls.NEWNS)
        walls._mount("none", "/", None, walls.PRIVATE | walls.REC)
        closed: dict[Path, list[str]] = {}
        for path in map(str, {ROOT, Path(sys.prefix), Path(sys.base_prefix)}):
            if shut := [folder for folder in reversed(Path(path).parents) if not folder.stat().st_mode & 1]:
                closed.setdefault(shut[0], []).append(path)
        for folder, paths in closed.items():  # an empty folder, open to all, that holds just these
            kept = {path: os.open(path, os.O_PATH) for path in paths}
            walls._mount("tmpfs", str(folder), "tmpfs", 0, "mode=0755")
            for path, descriptor in kept.items():
                os.makedirs(path)
                walls._mount(f"/proc/self/fd/{descriptor}", path, None, walls.BIND | walls.REC)
    else:
        walls.call("no new privileges", "prctl", walls.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    seccomp.load(b"".join(struct.pack("=HBBI", *instruction) for instruction in code))


class TestContainer:
    @pytest.mark.skipif(sys.platform != "linux" or not shutil.which("setpriv"), reason="needs Linux and setpriv")
    @pytest.mark.skipif("Landlock" not in str(HERE.walls), reason=f"no Landlock in this kernel: {HERE}")
    @pytest.mark.parametrize(("user", "level"), [("root", 2), ("ordinary", 1)])
    @covers("sandbox: no silent fall-back")
    def test_contract_holds_in_dockers_default_container(self, user: str, level: int) -> None:
        """Without namespaces root gets level 2, an ordinary user level 1, and this file's tests pass there."""
        if user == "root" and os.getuid() != 0:
            pytest.skip("only root can be root in a container")
        become = ["--reuid=12345", "--regid=12345", "--clear-groups"] if user != "root" and os.getuid() == 0 else []
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rs", "-s", __file__]
        command += ["-k", "landlock or TestChoosing or TestHeads"]
        if os.getuid() == 0:
            command = ["setpriv", SETPRIV, *become, *command]
        with tempfile.TemporaryDirectory() as home:
            if become:
                shutil.chown(home, 12345)
            done = subprocess.run(
                [*command, f"--basetemp={home}/pytest"], cwd=ROOT, preexec_fn=_enter_container, capture_output=True,
                text=True, check=False, timeout=300,
                env=os.environ | {"HOME": home, "LOGNAME": "grader", "PYTHONDONTWRITEBYTECODE": "1"},
            )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"level={level}" in done.stdout
        passed = re.search(r"(\d+) passed", done.stdout)
        assert passed
        assert int(passed[1]) > 40


LOOPBACK = """
import errno, socket
def attempt(call):
    try:
        return call() or "done"
    except OSError as error:
        return errno.errorcode[error.errno]
def talk():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname(), 5) as mine:
        theirs, _ = listener.accept()
        mine.sendall(b"hello")
        return theirs.recv(9).decode()
def outside():
    socket.create_connection(("192.0.2.1", 80), 5)
def netlink(protocol):
    socket.socket(16, socket.SOCK_RAW, protocol).close()
reply([attempt(talk), attempt(outside), *[attempt(lambda: netlink(n)) for n in (0, 4, 6, 9, 12, 15, 16)]])
reply(attempt(lambda: socket.create_connection(("127.0.0.1", int(wait())), 5).recv(9).decode()))
reply(attempt(lambda: (socket.create_server(("127.0.0.1", 48123)), wait()) and None))
"""
"""Speaks to itself, to others, and to the kernel about networks; then to a port that it is told, then listens on one."""


@pytest.fixture(scope="module")
def networked(standin: dict[str, Any]) -> Iterator[NamespaceSandbox]:
    with NamespaceSandbox(**standin, loopback=True) as sandbox:
        yield sandbox


@needs_namespaces
class TestLoopback:
    """A network of the worker's own, for assignments that ask for one."""

    @covers("walls: network", "seccomp: socket families")
    def test_a_worker_speaks_to_itself_and_to_nobody_else(self, networked: NamespaceSandbox) -> None:
        """Its own 127.0.0.1 answers; the host's, another worker's and every other address do not; nor netlink but for routes."""
        with socket.create_server(("127.0.0.1", 0)) as host:
            first, second = Student(networked, LOOPBACK), Student(networked, LOOPBACK)
            try:
                for student in (first, second):
                    assert student.answer() == ["hello", "ENETUNREACH", "done", *["EAFNOSUPPORT"] * 6]
                first._file.write(f"{host.getsockname()[1]}\n")
                first._file.flush()
                assert first.answer() == "ECONNREFUSED"  # now it listens itself
                second._file.write("48123\n")
                second._file.flush()
                assert second.answer() == "ECONNREFUSED"
            finally:
                first.worker.kill()
                second.worker.kill()

    @covers("walls: network", "seccomp: socket families")
    def test_others_have_no_loopback(self, namespaces: NamespaceSandbox) -> None:
        """A worker of an assignment that did not ask reaches not even itself, and may not ask the kernel either."""
        student = Student(namespaces, LOOPBACK)
        try:
            assert student.answer() == ["ENETUNREACH", "ENETUNREACH", *["EAFNOSUPPORT"] * 7]
        finally:
            student.worker.kill()

    @needs_landlock
    def test_levels_without_networks_say_so(self) -> None:
        """Where workers have no network of their own, an assignment that needs one is not graded."""
        with pytest.raises(SandboxUnavailable, match="no network of their own"):
            LandlockSandbox(serve=NOTHING, loopback=True)


class TestHeads:
    def test_every_covered_line_has_a_test(self) -> None:
        """What a module's head lists as covered is what tests name, no more and no less."""
        assert sorted(COVERED) == sorted(_head("Covered"))

    def test_every_gap_has_a_reason(self) -> None:
        """Known gaps are listed by name, with more than a name."""
        gaps = _head("Not covered")
        assert {name.partition(":")[0] for name in gaps} == {head.rpartition(".")[2] for head in HEADS}
        assert [name for name, reason in gaps.items() if len(reason) < 20] == []
