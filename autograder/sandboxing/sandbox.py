"""Where student code runs: the judge's side of every isolation level.

    with best_sandbox(["torch"], minimum_level=3) as sandbox:
        worker = sandbox.start(Limits(cpu_s=20))
        ...                      # talk over worker.sock
        worker.kill()

| level | name                           | what                                                              |
|-------|--------------------------------|-------------------------------------------------------------------|
| -1    | inline                         | no process of its own, for a debugger; gives no grade             |
| 0     | process only                   | a plain process, `worker.__main__`; for self-checks               |
| 1     | landlock+seccomp               | a fork of a warm zygote, behind the walls of `worker.confine`     |
| 2     | separate-uid+landlock+seccomp  | the same for a grader that is root: each worker has its own user  |
| 3     | namespaces                     | a fork of a warm zygote behind the two walls of `worker.walls`    |

Covered:
- one protocol: all levels behind it
- no silent fall-back: a level is found by trying it; what was refused is told, and a grade below the minimum is none
- self-test: hostile programs try a level's walls before the first submission
Not covered:
- deadlines: the judge's, see `autograder.judging.remote`
- daemons: on level 0, processes that leave their session stay
- CUDA: only the paths of GPU devices are known here; a worker that uses one is a matter of the measuring code
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from autograder import temporary
from autograder.sandboxing.isolation import (
    SERVE,
    Closing,
    Isolation,
    Limits,
    Sandbox,
    SandboxUnavailable,
    Worker,
    python_command,
    worker_environment,
    worker_paths,
)
from autograder.sandboxing.pausing import below
from autograder.sandboxing.walled import LandlockSandbox, NamespaceSandbox
from autograder.worker.__main__ import CANNOT_START, load

__all__ = [
    "InlineSandbox",
    "Isolation",
    "LandlockSandbox",
    "Limits",
    "NamespaceSandbox",
    "ProcessSandbox",
    "Sandbox",
    "SandboxUnavailable",
]
__all__ += ["Worker", "best_sandbox", "gpu_devices", "probe"]

SCRATCH = "autograder-worker-"
"""How the names of level 0's temporary folders begin."""
GPU_DEVICES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia[0-9]*", "nvidia-caps/nvidia-cap*")
"""What a worker with GPUs needs of /dev, as patterns."""


# Level 0


class ProcessSandbox(Closing):
    """Level 0: a plain process for each worker, on every system. Stops accidents, not intentions."""

    def __init__(
        self, *, serve: str = SERVE, import_paths: Sequence[str | Path] = (), refused: tuple[str, ...] = ()
    ) -> None:
        self.isolation = Isolation("process only", 0, ("own process", "kept output bounded"), refused)
        self.devices = gpu_devices()
        self._serve = serve
        self._import_paths = import_paths
        temporary.sweep(SCRATCH)  # of runs that were killed

    def start(self, limits: Limits) -> Worker:
        """A new worker, started. Raises SandboxUnavailable."""
        try:
            ours, theirs = socket.socketpair()
            scratch = tempfile.TemporaryDirectory(prefix=SCRATCH, ignore_cleanup_errors=True)
        except OSError as error:
            raise SandboxUnavailable(f"No socket or folder could be made for a worker: {error}.") from None
        config = {"descriptor": theirs.fileno(), "limits": dataclasses.asdict(limits), "serve": self._serve}
        config["import_paths"] = worker_paths(self._import_paths)
        windows = sys.platform == "win32"
        with theirs:
            try:
                process = subprocess.Popen(
                    python_command(f"from autograder.worker.__main__ import main; main({json.dumps(config)!r})"),
                    env=worker_environment(scratch.name),
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
        self.pid = process.pid
        self._process = process
        self._scratch = scratch
        self._lock = temporary.hold(scratch.name)

    def processes(self) -> list[int]:
        """The process and what descends from it; one whose parent ended is not found."""
        return [self._process.pid, *below(self._process.pid)]

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
        if self._lock >= 0:
            os.close(self._lock)


# No process at all


class InlineSandbox(Closing):
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


def gpu_devices(folder: Path = Path("/dev")) -> tuple[str, ...]:
    """The device files in `folder` that a worker needs to use this machine's NVIDIA GPUs."""
    return tuple(sorted(str(path) for pattern in GPU_DEVICES for path in folder.glob(pattern)))


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
    devices: Sequence[str] = (),
    loopback: bool = False,
    serve: str = SERVE,
) -> NamespaceSandbox | LandlockSandbox | ProcessSandbox:
    """The strongest sandbox to be had. Raises SandboxUnavailable, with a remedy, if it is below `minimum_level`."""
    refused: list[str] = []
    for kind in (NamespaceSandbox, LandlockSandbox):
        name, level = kind.names()
        if level < minimum_level:
            needs_root = " Level 2 needs a grader that is root." if (level, minimum_level) == (1, 2) else ""
            refused.append(f"{name} gives level {level} only.{needs_root}")
            continue
        try:
            sandbox = kind(
                preload, read_only_paths, hidden_paths=hidden_paths, devices=devices, loopback=loopback, serve=serve
            )
        except SandboxUnavailable as error:
            refused.append(f"level {level} ({name}): {error}")
            continue
        sandbox.isolation = dataclasses.replace(sandbox.isolation, refused=(*refused, *sandbox.isolation.refused))
        return sandbox
    if minimum_level > 0:
        raise SandboxUnavailable(f"Level {minimum_level} is demanded and cannot be had. {' '.join(refused)}")
    return ProcessSandbox(serve=serve, refused=tuple(refused))
