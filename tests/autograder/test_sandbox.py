"""The sandbox's contract: what every level promises, and what level 3 stops.

Hostile programs run as source text in a worker that serves `standin.serve` instead of the real loop. Linux without user
namespaces skips level 3 and says why.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autograder.sandbox import (
    InlineSandbox,
    Isolation,
    Limits,
    NamespaceSandbox,
    ProcessSandbox,
    Sandbox,
    SandboxUnavailable,
    Worker,
    best_sandbox,
    probe,
)

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
needs_namespaces = pytest.mark.skipif(HERE.level < 3, reason=f"no namespaces here: {'; '.join(HERE.refused)}")


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
def standin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("standin")
    folder.chmod(0o755)
    (folder / "standin.py").write_text(STANDIN)
    return {"serve": "standin:serve", "import_paths": [folder]}


@pytest.fixture(scope="module")
def namespaces(standin: dict[str, Any]) -> Iterator[NamespaceSandbox]:
    os.environ["GRADER_TOKEN"] = "canary-in-the-environment"
    with NamespaceSandbox(**standin) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def process(standin: dict[str, Any]) -> ProcessSandbox:
    os.environ["GRADER_TOKEN"] = "canary-in-the-environment"
    return ProcessSandbox(**standin)


def _starter(sandbox: Sandbox) -> Iterator[Start]:
    started: list[Student] = []

    def start(source: str, limits: Limits = SMALL) -> Student:
        started.append(Student(sandbox, source, limits))
        return started[-1]

    yield start
    for student in started:
        student.worker.kill()


@pytest.fixture
def start(request: pytest.FixtureRequest, namespaces: NamespaceSandbox) -> Iterator[Start]:
    """Start a student's program at level 3."""
    yield from _starter(namespaces)


@pytest.fixture(params=["process", pytest.param("namespaces", marks=needs_namespaces)])
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

    def test_cpu_time_is_limited(self, start_any: Start) -> None:
        """An endless loop ends, and the reason says so."""
        assert (
            start_any("while True: pass", replace(SMALL, cpu_s=1)).end() == "was killed: used more than 1 s of CPU time"
        )

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


@needs_namespaces
class TestNamespaces:
    def test_grader_files_cannot_be_read(self, start: Start, tmp_path: Path) -> None:
        """Hidden checks, solutions, accounts and home folders do not exist in there; the worker's own package does."""
        (tmp_path / "gradebook.db").write_text("canary")
        hidden = [
            ROOT / "tests",
            ROOT / "solutions",
            ROOT / "autograder/sandbox.py",
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

    def test_network_is_out_of_reach(self, start: Start) -> None:
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
            answer = start(source).answer()
        assert answer is None or "reached" not in answer[:3]

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
os.kill(1, 9)
try: open('/proc/1/mem', 'rb')
except OSError: seen.append('closed')
reply(seen)"""
        answer = start(source.replace("JUDGE", str(os.getpid()))).answer()
        assert answer == [*(["1", "2"] if PROC else []), "nobody", "nobody", "closed"]
        bystander.worker.sock.sendall(b"\n")
        assert bystander.answer() == 2

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

    def test_the_walls_cannot_be_taken_down(self, start: Start) -> None:
        """Calls that make namespaces or mounts, trace, or hold uncounted memory are refused; no capability is left."""
        source = """
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, *args):
    return errno.errorcode[ctypes.get_errno()] if getattr(libc, name)(*args) == -1 else 'done'
def family(number):
    try: socket.socket(number)
    except OSError as error: return errno.errorcode[error.errno]
    return 'done'
libc.capget(ctypes.byref((ctypes.c_uint32 * 2)(0x20080522, 0)), sets := (ctypes.c_uint32 * 6)())
capabilities = [*sets, *(libc.prctl(23, number, 0, 0, 0) for number in range(40))]
reply([attempt('unshare', 0x10000000), attempt('mount', b'x', b'/scratch', b'tmpfs', 0, None),
       attempt('umount2', b'/proc', 2),
       attempt('ptrace', 0, 0, 0, 0), attempt('memfd_create', b'x', 0), attempt('shmget', 0, 4096, 0o600),
       family(40), family(16), any(capabilities), libc.prctl(39, 0, 0, 0, 0), os.getuid()])
"""
        refused = ["EPERM"] * 4 + ["ENOSYS"] * 2 + ["EAFNOSUPPORT"] * 2
        assert start(source).answer() == [*refused, False, 1, 1000]

    def test_cpu_limit_cannot_be_ignored(self, start: Start) -> None:
        """A submission that ignores the warning is killed one second later, with the same reason."""
        source = "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
        assert start(source, replace(SMALL, cpu_s=1)).end() == "was killed: used more than 1 s of CPU time"

    def test_scratch_is_limited_in_bytes_and_files(self, start: Start) -> None:
        """Neither many bytes in several files nor many empty files get through."""
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
            written, files = start(f"folder = {folder!r}\n{source}", limits).answer()
            assert 7 << 20 <= written <= 8 << 20
            assert files < 100

    def test_fork_bomb_stops(self, start: Start) -> None:
        """Processes and threads end at the limit, and kill clears them."""
        source = """
import os, time
made = 0
try:
    while True:
        if os.fork() == 0: time.sleep(98762)
        made += 1
except OSError: reply(made)
wait()"""
        student = start(source, replace(SMALL, processes=20))
        assert student.answer() == 19
        student.worker.kill()

    def test_memory_of_many_processes_is_added_up(self, start: Start) -> None:
        """Children that each stay below the limit are stopped together, with the reason."""
        source = """
import os, time
for _ in range(10):
    if os.fork() == 0:
        block = bytearray(b'x') * (150 << 20)
        time.sleep(60)
time.sleep(60)"""
        assert start(source).end() == "was killed: used more than 0.5 GiB of memory"

    def test_memory_error_is_explained(self, start: Start) -> None:
        """A submission that fills its memory piece by piece and ends is told how much it had."""
        reason = start("blocks = []\nwhile True: blocks.append(bytearray(b'x') * (1 << 20))").end()
        assert reason is not None
        assert "of the allowed 0.5 GiB of memory" in reason or "used more than 0.5 GiB" in reason

    def test_daemons_do_not_survive(self, start: Start) -> None:
        """A process that left session and parent is gone when kill returns, and also when the worker just ends."""
        daemon = "import os\nif os.fork() == 0:\n os.setsid()\n"
        daemon += " if os.fork() == 0: os.execvp('sleep', ['sleep', '98763'])\n os._exit(0)"
        student = start(f"{daemon}\nos.wait(); reply(1); wait()")
        assert student.answer() == 1
        assert _comes(lambda: _running("sleep 98763"))
        student.worker.kill()
        assert not _running("sleep 98763")
        assert start(f"{daemon}\nos.wait()").end() == "ended with exit code 0"
        assert not _running("sleep 98763")

    def test_worker_of_a_killed_judge_ends(self, namespaces: NamespaceSandbox) -> None:
        """A judge that is killed leaves no worker behind."""
        judge = os.fork()
        if judge == 0:
            with contextlib.suppress(BaseException):
                student = Student(namespaces, "import os; os.execvp('sleep', ['sleep', '98764'])")
                student.end()
            os._exit(1)
        assert _comes(lambda: _running("sleep 98764"))
        os.kill(judge, signal.SIGKILL)
        os.waitpid(judge, 0)
        assert _comes(lambda: not _running("sleep 98764"))

    def test_forked_judges_share_a_zygote(self, namespaces: NamespaceSandbox) -> None:
        """Judges forked from the process that made the sandbox start workers at the same time, each its own."""

        def judge(number: int) -> bool:
            students = [Student(namespaces, f"reply({number * 100 + i}); wait()") for i in range(5)]
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

    def test_zygote_survives_its_workers(self, namespaces: NamespaceSandbox) -> None:
        """Workers that die in every way, several at once, leave a zygote that starts the next."""
        ways = ["import os; os.abort()", "import os; os.kill(-1, 9)", "1 / 0", "import os; os.close(3); os._exit(1)"]

        def run(way: str) -> None:
            student = Student(namespaces, way)
            student.end()
            student.worker.kill()

        threads = [threading.Thread(target=run, args=(way,)) for way in ways * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        student = Student(namespaces, "reply(1)")
        assert student.answer() == 1
        student.worker.kill()

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

    def test_set_up_failure_is_our_fault(self) -> None:
        """A worker loop that cannot be imported is no fault of a submission, and the message names it."""
        with pytest.raises(SandboxUnavailable, match="no_such_module"):
            NamespaceSandbox(serve="no_such_module:serve")

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
from autograder.sandbox import Limits, NamespaceSandbox
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

    def test_missing_preload_is_told(self, standin: dict[str, Any]) -> None:
        """A module that cannot be imported in advance is named with its reason; the others are there."""
        with NamespaceSandbox(["fractions", "no_such_module"], **standin) as sandbox:
            assert list(sandbox.preload_failed) == ["no_such_module"]
            assert sandbox.threads == 1
            student = Student(sandbox, "import sys; reply('fractions' in sys.modules)")
            assert student.answer() is True
            student.worker.kill()

    def test_torch_works_and_starts_fast(self, standin: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
        """A worker from a zygote with torch computes with several threads and starts in a fraction of the import."""
        pytest.importorskip("torch")
        with NamespaceSandbox(["torch"], **standin) as sandbox:
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
            print(f"\nstart of a worker with torch: median {median:.1f} ms, largest {worst:.1f} ms of {len(times)}")
        assert median < 300


class TestChoosing:
    def test_isolation_names_its_walls(self) -> None:
        """The level found here says what is in force, or what was refused."""
        assert isinstance(HERE, Isolation)
        assert HERE.walls if HERE.level == 3 else HERE.refused

    def test_below_the_minimum_is_refused(self) -> None:
        """A level that does not exist here is never replaced by a lower one in silence."""
        with pytest.raises(SandboxUnavailable, match="demanded"):
            best_sandbox((), 9)

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
