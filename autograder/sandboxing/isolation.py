"""What all isolation levels have in common: limits, workers, the protocol, what a worker inherits."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import site
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

from gpu_env.vllm_engine import ENVIRONMENT

__all__ = [
    "GONE_S",
    "LEVELS",
    "ROOT",
    "SERVE",
    "Closing",
    "Isolation",
    "Limits",
    "Sandbox",
    "SandboxUnavailable",
    "Worker",
]
__all__ += ["python_command", "worker_environment", "worker_paths"]

LEVELS = {"sandbox": 3, "landlock": 1, "process": 0}
"""Lowest level that each word of `--isolation` accepts."""
GIB = 1 << 30
SERVE = "autograder.worker.serve:serve"
GONE_S = 10.0
"""Seconds that we wait for the end of a killed worker."""
AGAIN_S = 0.25
"""Seconds after which it is killed again."""
ROOT = Path(__file__).resolve().parents[2]
STRAY = frozenset({"SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"})
"""Signals that come from somebody, not from a mistake of the program that they end."""
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
    """Processes and threads together (level 1: beyond it for at most 0.1 s; level 0: not limited)."""
    scratch_bytes: int = 256 << 20
    """The largest file; at level 3 also all of /scratch, and the same again of /dev/shm."""
    scratch_files: int = 10_000
    """At level 3 only."""
    core: int | None = None
    """The only processor that it runs on (level 0: any)."""
    gpu: str | None = None
    """The UUID of the only GPU that CUDA shows it; `None`: those that the judge sees. No wall: others stay in reach."""
    output_bytes: int = 64 << 10
    """Of stdout and stderr together that are kept: the beginning and the end."""


@dataclass(frozen=True)
class Isolation:
    """What separates the worker from the judge here. `refused` says, with errno and reason, what could not be had."""

    name: str
    level: int
    walls: tuple[str, ...]
    refused: tuple[str, ...] = ()


class SandboxUnavailable(RuntimeError):
    """No worker could be had. Our fault or the machine's, never the submission's: the grade is withheld."""


class Worker:
    """One running worker. `sock` is the wire to it."""

    pid: int | None = None
    """The process, in this process's eyes, that all others of the worker descend from; `None` where that is not known."""
    stray: signal.Signals | None = None
    """The signal that ended it, if neither we nor a limit sent that: somebody else did, the kernel, or the worker itself."""

    def __init__(self, sock: socket.socket, output: IO[bytes], limits: Limits) -> None:
        self.sock = sock
        self.limits = limits
        self._output = _Output(output, limits.output_bytes)
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
            for _ in range(round(GONE_S / AGAIN_S)):
                self._end()  # again and again: a signal just before its receiver falls asleep does not wake it
                if self.end_reason(AGAIN_S) is not None:
                    break
            else:
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

    def output_has_ended(self, wait_s: float) -> bool:
        """Whether nobody holds the worker's output any more; waits up to `wait_s` seconds for that."""
        return self._output.ended(wait_s)

    def end_reason(self, wait_s: float = 0.0) -> str | None:
        """How it ended, to follow "your code ..."; None while it runs. Waits up to `wait_s` seconds for an end.

        Where the worker's end of the line is closed it waits 0.5 s: the news of the end comes a little later than that.
        Raises SandboxUnavailable if it never came to run the submission.
        """
        if self._reason is None:
            try:
                self._reason = self._poll(max(wait_s, 0.5) if self._line_is_closed() else wait_s)
            except SandboxUnavailable:
                self._reason = "was lost by the grader"  # said once: whoever asks again, or kills it, is not told again
                self._end()
                raise
        return self._reason

    def processes(self) -> list[int]:
        """Ids, in this process's eyes, of all that runs in it; not of our own processes around it. Needs /proc."""
        raise NotImplementedError

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

    def _describe(self, code: int, killed: str | None = None, cpu_s: float = 0.0, used_bytes: int = 0) -> str:
        """`code` as in `subprocess.Popen.returncode`; the rest is what is known beyond it."""
        limit = f"{self.limits.memory_bytes / GIB:.1f} GiB of memory"
        if killed:
            return f"was killed: used more than {limit if killed == 'memory' else f'{self.limits.processes} processes'}"
        if code < 0 and (-code == getattr(signal, "SIGXCPU", 0) or cpu_s > self.limits.cpu_s):
            return f"was killed: used more than {self.limits.cpu_s} s of CPU time"
        if self._killed and code in (-9, 1):
            return "was stopped by the grader"
        near = used_bytes > 0.8 * self.limits.memory_bytes
        if code < 0:
            with contextlib.suppress(ValueError):
                number = signal.Signals(-code)
                self.stray = number if number.name in STRAY else None
                if near:
                    return f"was killed by signal {number.name}, having used nearly all of the allowed {limit}"
                return f"was killed by signal {number.name}"
        if near and code:
            return f"ended with exit code {code}, having used nearly all of the allowed {limit}"
        return f"ended with exit code {code}"


class Sandbox(Protocol):
    """A source of workers."""

    @property
    def isolation(self) -> Isolation:
        """What separates its workers from us."""

    @property
    def devices(self) -> Sequence[str]:
        """The device files of GPUs that its workers can use."""

    def start(self, limits: Limits) -> Worker:
        """A new worker, which knows nothing of the ones before it. Raises SandboxUnavailable."""

    def revive(self) -> None:
        """Make it start workers again if it cannot any more. For the process that made it. Raises SandboxUnavailable."""

    def self_test(self) -> None:
        """Try the walls, where there are some, with hostile programs. Raises SandboxUnavailable if one got through."""

    def close(self) -> None:
        """Give back what all workers share. Running workers end."""


class Closing:
    """`with` for all back-ends, and what those without walls have in common."""

    devices: Sequence[str] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def revive(self) -> None:
        """Each worker is started from nothing."""

    def self_test(self) -> None:
        """No walls, nothing to test."""

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

    def ended(self, wait_s: float) -> bool:
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def text(self, *, ended: bool) -> str:
        if ended:
            self.ended(1.0)  # a process that left the session may hold the pipe open at level 0
        with self._lock:
            cut = self._total - len(self._head) - len(self._tail)
            note = f"\n[... {cut} bytes left out ...]\n".encode() if cut else b""
            return CONTROL.sub("", bytes(self._head + note + self._tail).decode(errors="replace"))


def worker_paths(more: Sequence[str | Path]) -> list[str]:
    """Where a worker finds our package and its libraries; `-I` leaves out the user's own packages."""
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [*map(str, more), str(ROOT), *user]


def python_command(call: str) -> list[str]:
    """Python without the user's packages and the current folder, with our package importable.

    Not `-I`, which would ignore the seed of hashes: it goes with `worker_environment`, which holds no other PYTHON variable
    that anybody chose.
    """
    return [sys.executable, "-s", "-P", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {call}"]


def worker_environment(home: str) -> dict[str, str]:
    """All that a worker inherits; nothing of it is secret."""
    kept: tuple[str, ...] = ("LD_LIBRARY_PATH", "SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT")
    kept += ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")  # GPU 0 is the same one here and there
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "PYTORCH_NVML_BASED_CUDA_CHECK")
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return (
        {name: os.environ[name] for name in kept if name in os.environ}
        | {name: "1" for name in offline + threads}
        | {"PATH": "/usr/local/bin:/usr/bin:/bin" if os.name == "posix" else os.environ.get("PATH", "")}
        | {"HOME": home, "TMPDIR": home, "TEMP": home, "TMP": home, "USERPROFILE": home}
        | {"USER": "student", "LOGNAME": "student"}
        | {"TOKENIZERS_PARALLELISM": "false", "LANG": "C.UTF-8", "PYTHONUTF8": "1"}
        | ENVIRONMENT
        | {"PYTHONHASHSEED": "0"}  # sets of strings come in the same order every time: a result can be replayed
    )
