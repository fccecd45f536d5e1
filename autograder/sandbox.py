"""Where student code runs: the judge's side of every isolation level.

    with best_sandbox(["torch"], minimum_level=3) as sandbox:
        worker = sandbox.start(Limits(cpu_s=20))
        ...                      # talk over worker.sock
        worker.kill()

| level | name         | what                                                           |
|-------|--------------|----------------------------------------------------------------|
| -1    | inline       | no process of its own, for a debugger; gives no grade          |
| 0     | process only | a plain process, `autograder.worker.__main__`; for self-checks |
| 1, 2  |              | free for Landlock and seccomp without namespaces               |
| 3     | namespaces   | a fork of a warm zygote behind two walls, `autograder.worker`  |

Covered: all levels behind one protocol; a level is found by trying it, and nothing falls back in silence.
Not covered: deadlines (the judge's, see `autograder.remote`); GPUs in a sandbox; on level 0, daemons that leave their
session. What level 3 stops stands in `autograder.worker.walls`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import select
import signal
import site
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

from autograder.worker.__main__ import CANNOT_START, load

__all__ = [
    "InlineSandbox",
    "Isolation",
    "Limits",
    "NamespaceSandbox",
    "ProcessSandbox",
    "Sandbox",
    "SandboxUnavailable",
]
__all__ += ["Worker", "best_sandbox", "probe"]

GIB = 1 << 30
SERVE = "autograder.worker.serve:serve"
START_S, READY_S, GONE_S = 30.0, 300.0, 10.0
"""Seconds that we wait for a worker, for a zygote with all its imports, for the end of a killed worker."""
REFUSALS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOSPC, errno.EINVAL, errno.EUSERS}
"""How a kernel says that it does not allow, have or have room for a namespace or mount."""
ROOT = Path(__file__).resolve().parent.parent
CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Terminal commands and characters that would change how the text around them is shown."""


@dataclass(frozen=True)
class Limits:
    """What one worker may use."""

    cpu_s: int = 60
    """Seconds of CPU time, each process for itself."""
    memory_bytes: int = 2 * GIB
    """Beyond what the zygote itself holds; per process at once, over all processes within about 0.1 s."""
    processes: int = 64
    """Processes and threads together (level 3)."""
    scratch_bytes: int = 256 << 20
    """Of /scratch, and the same again of /dev/shm (level 3); also the largest file."""
    scratch_files: int = 10_000
    output_bytes: int = 64 << 10
    """Of stdout and stderr together that are kept: the beginning and the end."""


@dataclass(frozen=True)
class Isolation:
    """What separates the worker from the judge here. `refused` says, with errno and reason, what could not be had."""

    name: str
    level: int
    walls: tuple[str, ...]
    refused: tuple[str, ...] = ()


class SandboxUnavailable(RuntimeError):  # noqa: N818
    """No worker could be had. Our fault or the machine's, never the submission's: the grade is withheld."""


class Worker:
    """One running worker. `sock` is the wire to it."""

    def __init__(self, sock: socket.socket, output: IO[bytes], limits: Limits) -> None:
        self.sock = sock
        self._output = _Output(output, limits.output_bytes)
        self._limits = limits
        self._killed = False
        self._reason: str | None = None

    def kill(self) -> None:
        """End the worker; returns when all its processes are gone. One that just ended by itself keeps its reason.

        Raises SandboxUnavailable if it cannot be ended.
        """
        if self._killed:
            return
        if self.end_reason() is None:
            self._killed = True
            self._end()
            if self.end_reason(GONE_S) is None:
                raise SandboxUnavailable(
                    f"A killed worker was still there after {GONE_S:g} s. Look for its processes by hand."
                )
        self._killed = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # wakes a thread that reads it
        self.sock.close()
        self._clean_up()

    def output(self) -> str:
        """What it printed so far, made safe to show (not to put into HTML)."""
        return self._output.text(ended=self._reason is not None)

    def end_reason(self, wait_s: float = 0.0) -> str | None:
        """How it ended, to follow "your code ..."; None while it runs. Waits up to `wait_s` seconds for an end.

        Where the worker's end of the line is closed it waits 0.5 s: the news of the end comes a little later than that.
        Raises SandboxUnavailable if it never came to run the submission.
        """
        if self._reason is None:
            self._reason = self._poll(max(wait_s, 0.5) if self._line_is_closed() else wait_s)
        return self._reason

    def _line_is_closed(self) -> bool:
        try:
            readable, _, _ = select.select([self.sock], [], [], 0)
            return bool(readable) and self.sock.recv(1, socket.MSG_PEEK) == b""
        except (OSError, ValueError):
            return True

    def _poll(self, wait_s: float) -> str | None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError

    def _clean_up(self) -> None:
        raise NotImplementedError

    def _describe(self, code: int, memory: bool = False, cpu_s: float = 0.0, used_bytes: int = 0) -> str:
        """`code` as in `subprocess.Popen.returncode`; the rest is what is known beyond it."""
        limit = f"{self._limits.memory_bytes / GIB:.1f} GiB of memory"
        if memory:
            return f"was killed: used more than {limit}"
        if code < 0 and (-code == getattr(signal, "SIGXCPU", 0) or cpu_s > self._limits.cpu_s):
            return f"was killed: used more than {self._limits.cpu_s} s of CPU time"
        if self._killed and code in (-9, 1):
            return "was stopped by the grader"
        near = (
            f", having used {used_bytes / GIB:.1f} of the allowed {limit}"
            if used_bytes > 0.8 * self._limits.memory_bytes
            else ""
        )
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"was killed by signal {signal.Signals(-code).name}{near}"
        return f"ended with exit code {code}{near if code else ''}"


class Sandbox(Protocol):
    """A source of workers."""

    @property
    def isolation(self) -> Isolation:
        """What separates its workers from us."""

    def start(self, limits: Limits) -> Worker:
        """A new worker, which knows nothing of the ones before it. Raises SandboxUnavailable."""

    def close(self) -> None:
        """Give back what all workers share. Running workers end."""


class _Closing:
    """`with` for both back-ends."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing to give back."""


class _Output:
    """Reads a pipe to its end in a thread; keeps the first and the last half of `limit` bytes."""

    def __init__(self, pipe: IO[bytes], limit: int) -> None:
        self._pipe = pipe
        self._half = max(1, limit // 2)
        self._head, self._tail, self._total = bytearray(), bytearray(), 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._drain, name="worker output", daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        with self._pipe, contextlib.suppress(OSError):
            while data := os.read(self._pipe.fileno(), 1 << 16):
                with self._lock:
                    self._total += len(data)
                    room = self._half - len(self._head)
                    self._head += data[:room]
                    self._tail = (self._tail + data[max(room, 0) :])[-self._half :]

    def text(self, *, ended: bool) -> str:
        if ended:
            self._thread.join(1.0)  # a process that left the session may hold the pipe open at level 0
        with self._lock:
            cut = self._total - len(self._head) - len(self._tail)
            note = f"\n[... {cut} bytes left out ...]\n".encode() if cut else b""
            return CONTROL.sub("", bytes(self._head + note + self._tail).decode(errors="replace"))


def _import_paths(more: Sequence[str | Path]) -> list[str]:
    """Where a worker finds our package and its libraries; `-I` leaves out the user's own packages."""
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [*map(str, more), str(ROOT), *user]


def _command(call: str) -> list[str]:
    """Python in isolated mode (no PYTHON variables, no current folder), with our package importable."""
    return [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {call}"]


def _environment(home: str) -> dict[str, str]:
    """All that a worker inherits; nothing of it is secret."""
    kept = ("LD_LIBRARY_PATH", "SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT")
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "PYTORCH_NVML_BASED_CUDA_CHECK")
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return (
        {name: os.environ[name] for name in kept if name in os.environ}
        | {name: "1" for name in offline + threads}
        | {"PATH": "/usr/local/bin:/usr/bin:/bin" if os.name == "posix" else os.environ.get("PATH", "")}
        | {"HOME": home, "TMPDIR": home, "TEMP": home, "TMP": home, "USERPROFILE": home}
        | {"USER": "student", "LOGNAME": "student"}
        | {"TOKENIZERS_PARALLELISM": "false", "LANG": "C.UTF-8", "PYTHONUTF8": "1"}
    )


# Level 3


class NamespaceSandbox(_Closing):
    """Level 3: forks of one warm zygote, each behind its own walls. Linux only.

    Make it in a trusted process with the modules to `preload`; that process and its forks may start workers at the same
    time. Student code sees `read_only_paths` beside /usr and Python's folders, but nothing below `hidden_paths` and in
    this repository. `preload_failed` says which modules could not be imported, and why. `serve` and `import_paths` are
    for our own tests. Raises SandboxUnavailable.
    """

    def __init__(
        self,
        preload: Sequence[str] = (),
        read_only_paths: Sequence[str | Path] = (),
        *,
        hidden_paths: Sequence[str | Path] = (),
        serve: str = SERVE,
        import_paths: Sequence[str | Path] = (),
    ) -> None:
        if sys.platform != "linux":
            raise SandboxUnavailable(
                f"Namespaces need Linux; this is {sys.platform}. Grade for marks on a Linux machine."
            )
        package = ROOT / "autograder"
        installed = ROOT.name in ("site-packages", "dist-packages")
        prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
        paths = {os.path.abspath(path) for path in (*read_only_paths, *import_paths, *prefixes)}
        if not installed and (holding := [path for path in paths if ROOT.is_relative_to(os.path.realpath(path))]):
            for path in set(holding) - prefixes:
                raise SandboxUnavailable(
                    f"{path} would show this repository, {ROOT}, to submissions. Name a folder inside it."
                )
        for path in (path for path in paths if os.geteuid() == 0 and os.path.isdir(path)):
            if os.stat(path).st_mode & 0o5 != 0o5:  # root's sandboxes run as nobody
                raise SandboxUnavailable(
                    f"{path} is closed to other users, and so to workers. Try: chmod -R o+rX {path}"
                )
        if site.ENABLE_USER_SITE:
            paths.add(site.getusersitepackages())
        hidden = [*hidden_paths]
        if not installed:
            hidden.append(ROOT)
            paths |= {str(package / "__init__.py"), str(package / "worker")}
        config = {
            "preload": list(preload),
            "read_only": sorted(paths),
            "hide": sorted({os.path.realpath(path) for path in hidden if os.path.isdir(path)}),
            "import_paths": _import_paths(import_paths),
            "serve": serve,
        }
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._launcher = subprocess.Popen(
                _command(f"from autograder.worker.zygote import main; main({theirs.fileno()})"),
                env=_environment("/scratch") | {"PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin"},
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                cwd="/",
            )
        self._owner = os.getpid()
        try:
            self._control.send(json.dumps(config).encode())
            ready = _receive(self._control, READY_S, "the zygote")[0]
            self.preload_failed: dict[str, str] = ready["failed"]
            self.threads: int = ready["threads"]
            """Threads of the zygote; more than one (a preloaded module's) can hang a worker."""
            self.isolation = Isolation("namespaces", 3, tuple(ready["walls"]))
            trial = self.start(Limits())
            self.isolation = Isolation("namespaces", 3, (*ready["walls"], *trial.walls), trial.refused)
            trial.kill()
        except (OSError, SandboxUnavailable) as error:
            self._log.seek(0)
            last = self._log.read()[-2000:].decode(errors="replace").strip()
            self.close()
            raise SandboxUnavailable(f"{error}{chr(10) if last else ''}{last}") from None

    def start(self, limits: Limits) -> _NamespaceWorker:
        """A new worker, forked. Raises SandboxUnavailable, also when the zygote is gone."""
        wire, their_wire = socket.socketpair()
        status, their_status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe()
        theirs = [their_wire.fileno(), writing, their_status.fileno()]
        try:
            try:
                with their_wire, their_status:
                    socket.send_fds(self._control, [json.dumps(dataclasses.asdict(limits)).encode()], theirs)
            finally:
                os.close(writing)
            started, descriptors = _receive(status, START_S, "a worker")
            return _NamespaceWorker(wire, open(reading, "rb", buffering=0), limits, status, descriptors[0], started)
        except BaseException as error:
            wire.close()
            status.close()
            os.close(reading)
            if isinstance(error, OSError):
                text = f"The zygote, the process that workers are forked from, is gone ({error}). Start grading again."
                raise SandboxUnavailable(text) from None
            raise

    def close(self) -> None:
        """End the zygote and every worker. In a fork of the process that made it: let go of it only."""
        if os.getpid() == self._owner and self._launcher.poll() is None:
            self._launcher.kill()  # the zygote and all its namespaces go with it
            self._launcher.wait()
            select.select([self._control], [], [], GONE_S)
        self._control.close()
        self._log.close()


class _NamespaceWorker(Worker):
    def __init__(
        self,
        sock: socket.socket,
        output: IO[bytes],
        limits: Limits,
        status: socket.socket,
        pidfd: int,
        started: dict[str, list[str]],
    ) -> None:
        super().__init__(sock, output, limits)
        self.walls, self.refused = tuple(started["walls"]), tuple(started["refused"])
        self._status = status
        self._pidfd = pidfd

    def _poll(self, wait_s: float) -> str | None:
        if not select.select([self._status], [], [], wait_s)[0]:
            return None
        end, _ = _receive(self._status, wait_s, "a worker's keeper")
        if end.get("status") is None:
            return self._describe(-signal.SIGKILL, memory=end["killed"] == "memory")
        used = end["max_rss_bytes"] - end["shared_bytes"]
        code = os.waitstatus_to_exitcode(end["status"])
        return self._describe(code, end["killed"] == "memory", end["cpu_s"], used)

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)  # process 1; the kernel ends the rest with it

    def _clean_up(self) -> None:
        os.close(self._pidfd)
        self._status.close()


def _receive(sock: socket.socket, wait_s: float, who: str) -> tuple[dict[str, Any], list[int]]:
    """One of our own messages and its descriptors. Raises SandboxUnavailable if it is late or tells of a failure."""
    if not select.select([sock], [], [], wait_s)[0]:
        raise SandboxUnavailable(f"No word from {who} within {wait_s:g} s.")
    data, descriptors, _, _ = socket.recv_fds(sock, 1 << 16, 1)
    if not data:
        raise SandboxUnavailable(f"The zygote or {who} died without a word. Start grading again.")
    message: dict[str, Any] = json.loads(data)
    if message["state"] == "failed":
        for descriptor in descriptors:
            os.close(descriptor)
        remedy = _remedy() if message["errno"] in REFUSALS else "This is a fault of the autograder; please report it."
        raise SandboxUnavailable(f"Could not set up {who}: {message['text']}. {remedy}")
    return message, descriptors


def _remedy() -> str:
    """The command that most likely allows namespaces here. Settings only choose the advice, never the level."""

    def setting(name: str) -> str:
        with contextlib.suppress(OSError):
            return Path("/proc/sys", name).read_text().strip()
        return ""

    if setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return "Try: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    if setting("kernel/unprivileged_userns_clone") == "0":
        return "Try: sudo sysctl kernel.unprivileged_userns_clone=1"
    if setting("user/max_user_namespaces") == "0":
        return "Try: sudo sysctl user.max_user_namespaces=10000"
    if os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"):
        return "Start the container with: --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
    return "`autograder doctor` tells more; Linux 5.12 or newer with user namespaces is needed."


# Level 0


class ProcessSandbox(_Closing):
    """Level 0: a plain process for each worker, on every system. Stops accidents, not intentions."""

    def __init__(
        self, *, serve: str = SERVE, import_paths: Sequence[str | Path] = (), refused: tuple[str, ...] = ()
    ) -> None:
        self.isolation = Isolation("process only", 0, ("own process", "kept output bounded"), refused)
        self._serve = serve
        self._import_paths = import_paths

    def start(self, limits: Limits) -> Worker:
        """A new worker, started. Raises SandboxUnavailable."""
        ours, theirs = socket.socketpair()
        scratch = tempfile.TemporaryDirectory(prefix="worker-", ignore_cleanup_errors=True)
        config = {"descriptor": theirs.fileno(), "limits": dataclasses.asdict(limits), "serve": self._serve}
        config["import_paths"] = _import_paths(self._import_paths)
        windows = sys.platform == "win32"
        with theirs:
            try:
                process = subprocess.Popen(
                    _command(f"from autograder.worker.__main__ import main; main({json.dumps(config)!r})"),
                    env=_environment(scratch.name),
                    stdin=subprocess.PIPE if windows else subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=() if windows else (theirs.fileno(),),
                    start_new_session=True,
                    cwd=scratch.name,
                )
            except OSError as error:
                ours.close()
                raise SandboxUnavailable(f"Could not start Python for a worker: {error}.") from None
            if sys.platform == "win32":
                assert process.stdin
                with process.stdin as stdin:
                    stdin.write(theirs.share(process.pid))
        return _ProcessWorker(ours, process, limits, scratch)


class _ProcessWorker(Worker):
    def __init__(
        self,
        sock: socket.socket,
        process: subprocess.Popen[bytes],
        limits: Limits,
        scratch: tempfile.TemporaryDirectory[str],
    ) -> None:
        assert process.stdout
        super().__init__(sock, process.stdout, limits)
        self._process = process
        self._scratch = scratch

    def _poll(self, wait_s: float) -> str | None:
        try:
            code = self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            return None
        self._end()  # what it left in its session
        if code == CANNOT_START:
            raise SandboxUnavailable(f"A worker could not start:\n{self._output.text(ended=True)}")
        return self._describe(code)

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if sys.platform == "win32":
                self._process.kill()
            else:
                os.killpg(self._process.pid, signal.SIGKILL)

    def _clean_up(self) -> None:
        self._scratch.cleanup()


# No process at all


class InlineSandbox(_Closing):
    """The submission in this very process, for a debugger. No isolation and no limits; must never produce a grade."""

    isolation = Isolation("inline", -1, ())

    def __init__(self, *, serve: str = SERVE) -> None:
        self._serve = serve

    def start(self, limits: Limits) -> Worker:
        """A new worker: a thread of this process. What it prints goes where this process prints."""
        return _InlineWorker(*socket.socketpair(), self._serve, limits)


class _InlineWorker(Worker):
    def __init__(self, sock: socket.socket, theirs: socket.socket, serve: str, limits: Limits) -> None:
        super().__init__(sock, open(os.devnull, "rb"), limits)  # noqa: SIM115

        def run() -> None:
            with theirs:
                load(serve)(theirs)

        self._thread = threading.Thread(target=run, name="inline worker", daemon=True)
        self._thread.start()

    def _poll(self, wait_s: float) -> str | None:
        self._thread.join(wait_s)
        return None if self._thread.is_alive() else self._describe(0)

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # ends the thread, unless it is in student code just now
        self._thread.join(1.0)
        self._reason = "was stopped by the grader"

    def _clean_up(self) -> None:
        """Nothing is left but perhaps the thread."""


# Choosing


def probe() -> Isolation:
    """The strongest isolation of this machine, found by raising every wall around a worker that does nothing."""
    with best_sandbox((), 0, serve="autograder.worker.zygote:serve_nothing") as sandbox:
        return sandbox.isolation


def best_sandbox(
    preload: Sequence[str],
    minimum_level: int,
    read_only_paths: Sequence[str | Path] = (),
    *,
    hidden_paths: Sequence[str | Path] = (),
    serve: str = SERVE,
) -> NamespaceSandbox | ProcessSandbox:
    """The strongest sandbox to be had. Raises SandboxUnavailable, with a remedy, if it is below `minimum_level`."""
    try:
        if minimum_level > 3:
            raise SandboxUnavailable("No back-end of this version gives more than level 3.")
        return NamespaceSandbox(preload, read_only_paths, hidden_paths=hidden_paths, serve=serve)
    except SandboxUnavailable as error:
        if minimum_level > 0:
            raise SandboxUnavailable(f"Level {minimum_level} is demanded and cannot be had. {error}") from None
        return ProcessSandbox(serve=serve, refused=(str(error),))
