"""Levels 1 to 3: forks of a warm zygote behind walls, seen from the judge. The walls are in `autograder.worker`."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import select
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from autograder import temporary
from autograder.sandboxing.isolation import (
    GONE_S,
    ROOT,
    SERVE,
    Closing,
    Isolation,
    Limits,
    SandboxUnavailable,
    Worker,
    python_command,
    worker_environment,
    worker_paths,
)
from autograder.sandboxing.pausing import below
from autograder.sandboxing.selftest import attack

__all__ = ["LandlockSandbox", "NamespaceSandbox"]

HOME = "autograder-workers-"
"""How the names of temporary folders of workers without a root of their own begin."""
LAUNCHES = 2
"""How often in a row a zygote that is gone may fail to start again."""
START_S, READY_S = 30.0, 300.0
"""Seconds that we wait for a worker, for a zygote with all its imports."""
REFUSALS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOSPC, errno.EINVAL, errno.EUSERS, errno.EOPNOTSUPP}
"""How a kernel says that it does not allow, have or have room for a namespace, a mount or Landlock."""
EXHAUSTED = {
    errno.EAGAIN: "Too many processes: raise the limit (ulimit -u, pids.max of the container) or grade with fewer --workers.",
    errno.ENOMEM: "The machine is out of memory: free some or grade with fewer --workers.",
    errno.EMFILE: "Too many open files: raise the limit (ulimit -n) or grade with fewer --workers.",
    errno.ENOSPC: "The disk of the temporary folder is full: make room, or set TMPDIR to another one.",
}
"""What to do where something has run out, by the error that says so."""


def _is_root() -> bool:
    return sys.platform != "win32" and os.geteuid() == 0


class _ZygoteSandbox(Closing):
    """Forks of one warm zygote, each behind its own walls. Linux only.

    Make it in a trusted process with the modules to `preload`; that process and its forks may start workers at the same
    time. Student code sees `read_only_paths` beside /usr and Python's folders, but nothing below `hidden_paths` and in
    this repository. `devices` are those of GPUs. With `loopback` each worker's own network has an address (level 3 only).
    `preload_failed` says which modules could not be imported, and why. `serve` and
    `import_paths` are for our own tests. Raises SandboxUnavailable.
    """

    stop: signal.Signals
    """Ends process 1 of a worker and everything that it started."""
    quota = False
    """Whether files in the scratch folder are limited together."""

    @classmethod
    def names(cls) -> tuple[str, int]:
        """Name and level of what it gives here, if it works."""
        raise NotImplementedError

    def __init__(
        self,
        preload: Sequence[str] = (),
        read_only_paths: Sequence[str | Path] = (),
        *,
        hidden_paths: Sequence[str | Path] = (),
        devices: Sequence[str] = (),
        loopback: bool = False,
        serve: str = SERVE,
        import_paths: Sequence[str | Path] = (),
    ) -> None:
        if sys.platform != "linux":
            raise SandboxUnavailable(f"Walls need Linux; this is {sys.platform}. Grade for marks on a Linux machine.")
        package = ROOT / "autograder"
        installed = ROOT.name in ("site-packages", "dist-packages")
        prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
        paths = {os.path.abspath(path) for path in (*read_only_paths, *import_paths, *prefixes)}
        if not installed and (holding := [path for path in paths if ROOT.is_relative_to(os.path.realpath(path))]):
            for path in set(holding) - prefixes:
                raise SandboxUnavailable(
                    f"{path} would show this repository, {ROOT}, to submissions. Name a folder inside it."
                )
        if site.ENABLE_USER_SITE and os.path.isdir(site.getusersitepackages()):
            paths.add(site.getusersitepackages())
        hidden = [*hidden_paths]
        if not installed:
            hidden.append(ROOT)
            paths |= {str(package / "__init__.py"), str(package / "worker")}
        if _is_root():
            self._refuse_closed(paths)
        self._owner = os.getpid()
        self.devices = tuple(devices)
        self._config = {
            "preload": list(preload),
            "read_only": sorted(paths),
            "hide": sorted({os.path.realpath(path) for path in hidden if os.path.isdir(path)}),
            "import_paths": worker_paths(import_paths),
            "serve": serve,
            "devices": list(devices),
            "loopback": loopback,
        }
        self._failures = 0
        self._launch()

    def _launch(self) -> None:
        """Start the zygote and try it. Raises SandboxUnavailable."""
        name, level = self.names()
        self._home = self._make_home()
        config = self._config | {"scratch": self._home}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._launcher = subprocess.Popen(
                python_command(f"from autograder.worker.zygote import main; main({theirs.fileno()})"),
                env=worker_environment(self._home or "/scratch")
                | {"PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin"},
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                cwd="/",
            )
        try:
            self._control.send(json.dumps(config).encode())
            ready = _receive(self._control, READY_S, "the zygote")[0]
            self.preload_failed: dict[str, str] = ready["failed"]
            self.threads: int = ready["threads"]
            """Threads of the zygote; more than one (a preloaded module's) can hang a worker."""
            trial = self.start(Limits())
            self.isolation = Isolation(name, level, (*ready["walls"], *trial.walls), trial.refused)
            trial.kill()
        except (OSError, SandboxUnavailable) as error:
            self._log.seek(0)
            last = self._log.read()[-2000:].decode(errors="replace").strip()
            self.close()
            raise SandboxUnavailable(f"{error}{chr(10) if last else ''}{last}") from None

    def revive(self) -> None:
        """Start another zygote if this one is gone, behind the same walls. Raises SandboxUnavailable."""
        if os.getpid() != self._owner or self._launcher.poll() is None:
            return
        if self._failures >= LAUNCHES:
            raise SandboxUnavailable(f"The zygote is gone, and could not be started again {self._failures} times.")
        before = self.isolation
        self.close()
        try:
            self._launch()
        except (OSError, SandboxUnavailable) as error:
            self._failures += 1
            raise SandboxUnavailable(f"The zygote is gone, and could not be started again: {error}") from None
        if gone := set(before.walls) - set(self.isolation.walls):
            self.close()
            self._failures = LAUNCHES
            raise SandboxUnavailable(f"The zygote had to be started again, now without {', '.join(sorted(gone))}.")
        self.isolation = before

    def start(self, limits: Limits) -> _ZygoteWorker:
        """A new worker, forked. Raises SandboxUnavailable, also when the zygote is gone."""
        return self._start(dataclasses.asdict(limits), limits)

    def self_test(self) -> None:
        """Try the walls with hostile programs. Raises SandboxUnavailable if one got through."""
        limits = Limits(cpu_s=10, scratch_bytes=1 << 20, scratch_files=100)
        through = attack(
            lambda limits: self._start(dataclasses.asdict(limits) | {"self_test": True}, limits),
            limits, [self._launcher.pid], quota=self.quota,
        )  # fmt: skip
        if self._launcher.poll() is not None:
            through.append("signal_others")
        if through:
            raise SandboxUnavailable(
                f"The self-test of level {self.isolation.level} ({self.isolation.name}) got through its walls: "
                f"{', '.join(through)}. Do not grade on this machine; please report this with `autograder doctor`."
            )

    def _start(self, request: dict[str, Any], limits: Limits) -> _ZygoteWorker:
        wire, their_wire = socket.socketpair()
        status, their_status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe()
        theirs = [their_wire.fileno(), writing, their_status.fileno()]
        try:
            try:
                with their_wire, their_status:
                    socket.send_fds(self._control, [json.dumps(request).encode()], theirs)
            finally:
                os.close(writing)
            started, descriptors = _receive(status, START_S, "a worker")
            output = open(reading, "rb", buffering=0)  # noqa: SIM115
            return _ZygoteWorker(wire, output, limits, status, descriptors[0], started, self.stop)
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
            self._launcher.send_signal(self.stop)  # the zygote and all workers go with it
            try:
                self._launcher.wait(GONE_S)
            except subprocess.TimeoutExpired:
                self._launcher.kill()
                self._launcher.wait()
            select.select([self._control], [], [], GONE_S)
        self._control.close()
        self._log.close()
        if self._home and os.getpid() == self._owner:
            shutil.rmtree(self._home, ignore_errors=True)  # the launcher did, unless it was killed

    def _refuse_closed(self, paths: Iterable[str]) -> None:
        """Root's workers run as other users, who must be able to read `paths`. Folders above do not matter here."""
        for path in filter(os.path.isdir, paths):
            if os.stat(path).st_mode & 0o5 != 0o5:
                raise SandboxUnavailable(
                    f"{path} is closed to other users, and so to workers. Try: chmod -R o+rX {path}"
                )

    def _make_home(self) -> str:
        """A folder for the workers' scratch folders, where they have no root of their own."""
        return ""


class NamespaceSandbox(_ZygoteSandbox):
    """Level 3: workers in namespaces with a root of their own, `autograder.worker.walls`."""

    stop = getattr(signal, "SIGKILL", signal.SIGTERM)  # the kernel ends a pid namespace with its process 1
    quota = True

    @classmethod
    def names(cls) -> tuple[str, int]:
        """Always the same."""
        return "namespaces", 3


class LandlockSandbox(_ZygoteSandbox):
    """Levels 2 (as root) and 1, without namespaces: `autograder.worker.confine`."""

    stop = signal.SIGTERM
    _lock = -1

    @classmethod
    def names(cls) -> tuple[str, int]:
        """Root can give each worker a user of its own."""
        return ("separate-uid+landlock+seccomp", 2) if _is_root() else ("landlock+seccomp", 1)

    def _refuse_closed(self, paths: Iterable[str]) -> None:
        super()._refuse_closed(paths)
        for folder in {
            folder for path in (*paths, f"{tempfile.gettempdir()}/x") for folder in Path(path).resolve().parents
        }:
            if not folder.stat().st_mode & 1:
                raise SandboxUnavailable(
                    f"{folder} is closed to other users, and so to workers. Try: chmod o+x {folder}"
                )

    def __init__(self, *args: Any, loopback: bool = False, **kwargs: Any) -> None:
        if loopback:
            raise SandboxUnavailable("Its workers have no network of their own, and the assignment needs one.")
        super().__init__(*args, **kwargs)

    def _start(self, request: dict[str, Any], limits: Limits) -> _ZygoteWorker:
        with contextlib.suppress(OSError):  # the folder is gone with the zygote: that is told below
            free = shutil.disk_usage(self._home).free
            if free < limits.scratch_bytes:
                raise SandboxUnavailable(
                    f"{free >> 20} MiB are free for {self._home}, and a submission may write {limits.scratch_bytes >> 20}. "
                    "Make room, or set TMPDIR to another folder."
                )
        return super()._start(request, limits)

    def _make_home(self) -> str:
        temporary.sweep(HOME)  # of runs whose processes were all killed
        folder = tempfile.mkdtemp(prefix=HOME)
        self._lock = temporary.hold(folder)  # ours, and our forks', until we end
        os.chmod(folder, 0o711)  # noqa: S103 - a worker passes through it to its own
        return folder

    def close(self) -> None:
        """As above; in a fork the folder stays locked as long as another holds it."""
        super().close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class _ZygoteWorker(Worker):
    def __init__(
        self,
        sock: socket.socket,
        output: IO[bytes],
        limits: Limits,
        status: socket.socket,
        pidfd: int,
        started: dict[str, list[str]],
        stop: signal.Signals,
    ) -> None:
        super().__init__(sock, output, limits)
        self.walls, self.refused = tuple(started["walls"]), tuple(started["refused"])
        self._status = status
        self._pidfd = pidfd
        self._stop = stop
        info = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines())
        self.pid = max(0, int(info["Pid"])) or None  # -1: ended already; 0: in no namespace of ours

    def processes(self) -> list[int]:
        """All that descend from its process 1, which adopts what loses its parent."""
        return below(self.pid) if self.pid else []

    def _poll(self, wait_s: float) -> str | None:
        if not select.select([self._status], [], [], wait_s)[0]:
            return None
        end, _ = _receive(self._status, wait_s, "a worker's keeper")
        if end.get("status") is None:
            return self._describe(-signal.SIGKILL, end["killed"])
        used = end["max_rss_bytes"] - end["shared_bytes"]
        code = os.waitstatus_to_exitcode(end["status"])
        return self._describe(code, end["killed"], end["cpu_s"], used)

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, self._stop)

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
        remedy = _remedy(message["text"], message["errno"])
        raise SandboxUnavailable(f"Could not set up {who}: {message['text']}. {remedy}")
    return message, descriptors


def _remedy(text: str, number: int) -> str:
    """What most likely helps against the error `number` that `text` tells of. Settings choose the advice, never the level."""
    if number in EXHAUSTED and text.startswith(("OSError", "BlockingIOError")):
        return EXHAUSTED[number]
    if number not in REFUSALS:
        return "This is a fault of the autograder; please report it."
    if "Landlock" in text:
        return "Landlock needs Linux 5.13 or newer, booted with lsm=landlock,..., and Docker 20.10.10 or newer."

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
