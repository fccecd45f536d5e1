"""The warm process that workers are forked from: behind the outer wall, single-threaded, torch and friends imported.

    judge ─control─▶ launcher ─fork─▶ zygote (outer wall) ─fork─▶ keeper ─fork─▶ process 1 ─fork─▶ worker (inner wall)

The control socket (Unix SEQPACKET) carries the configuration, our "ready", then requests: JSON limits and the
descriptors of the wire, the output pipe and the status socket. The *keeper* (trusted, outside the worker's pid
namespace) takes one and reports on its status socket: `started` with a pidfd of process 1, or `failed` with errno and
step (our fault), then `ended`. It ends the worker when the judge goes away or when the worker's processes together use
too much memory.

Covered: a worker that ends in any way, a judge that is killed, several judges on one control socket.
Not covered: CUDA (a fork cannot use it); modules that start threads while they are imported (their number is reported);
workers of one zygote share its string hash seed.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from autograder.worker import seccomp, walls
from autograder.worker.__main__ import Serve, load, run

__all__ = ["main", "serve_nothing"]

WATCH_MS = 100
"""How often a worker's memory is looked at; a process fills about 0.3 GiB in that time."""


def main(control_fd: int) -> NoReturn:
    """Be the launcher: read the configuration, leave the host's namespaces, fork the zygote and wait for it."""
    control = socket.socket(fileno=control_fd)
    config = json.loads(control.recv(1 << 20))
    try:
        ordinary = walls.NOBODY if walls.outer_namespaces() else None
        pid = os.fork()
        if pid:
            control.close()
            os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
        walls.set_parent_death_signal()
        raised = walls.build_root(config["read_only"], config["hide"])
        walls.drop_privileges(ordinary)
        walls.set_parent_death_signal()
        sys.path[:0] = config["import_paths"]
        failed = _preload(config["preload"])
        serve = load(config["serve"])
        filter_program = seccomp.build()
    except BaseException as error:
        _send(control, _failure(error))
        os._exit(1)
    gc.collect()
    gc.freeze()  # the collector of a fork must not touch, and so copy, what is shared
    _send(control, {"state": "ready", "walls": raised, "failed": failed, "threads": len(os.listdir("/proc/self/task"))})
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    while True:  # one keeper, with its process 1, always waits for the next request: two slow forks less on the way
        reading, taken = os.pipe()
        if os.fork() == 0:
            os.close(reading)
            _keep(control, taken, serve, filter_program)
        os.close(taken)
        if os.read(reading, 1) == b"q":
            os._exit(0)
        os.close(reading)


def serve_nothing(sock: socket.socket) -> None:
    """A worker that only waits for the end of the line; for trying out what is allowed here."""
    sock.recv(1)


def _preload(names: list[str]) -> dict[str, str]:
    """Import `names` with one thread; name → reason of those that failed."""
    failed = {}
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # a pool of threads does not survive the fork: the child would wait for it for ever
    return failed


def _send(sock: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more: its peer is gone, and we notice elsewhere
        socket.send_fds(sock, [json.dumps(message).encode()], descriptors)


def _failure(error: BaseException) -> dict[str, Any]:
    text = str(error) if isinstance(error, walls.WallError) else f"{type(error).__name__}: {error}"
    return {"state": "failed", "errno": getattr(error, "errno", None) or 0, "text": text}


def _keep(control: socket.socket, taken: int, serve: Serve, filter_program: bytes) -> NoReturn:
    """Be the keeper of one worker: prepare it, wait for a request, start it, watch it, report its end."""
    failure: dict[str, Any] = {}
    first = 0
    line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        walls.set_parent_death_signal()
        walls.worker_namespaces()
        first = os.fork()
        if first == 0:
            try:
                _worker(theirs.fileno(), serve, filter_program)
            finally:
                traceback.print_exc()
                os._exit(70)
    except BaseException as error:  # whoever asks next hears of it
        failure = _failure(error)
    theirs.close()
    request, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 3)
    os.write(taken, b"t" if request else b"q")
    if request:
        limits = json.loads(request)
        with socket.socket(fileno=descriptors.pop()) as status:
            try:
                if failure:
                    _send(status, failure)
                else:
                    _send(line, limits, descriptors)
                    walls.close_all_but([line.fileno(), status.fileno(), 2])
                    _watch(limits, first, line, status)
            except BaseException as error:
                _send(status, _failure(error))
    os._exit(0)  # and process 1 with us


def _watch(limits: dict[str, int], first: int, line: socket.socket, status: socket.socket) -> None:
    """Pass on what process 1 says and report the end of its last process; end them all for too much memory."""
    poll = select.poll()
    poll.register(line, select.POLLIN)
    poll.register(status, 0)  # tells of a hang-up only
    shared = _own_memory()
    messages: list[dict[str, Any]] = []
    killed: str | None = None
    while True:
        events = dict(poll.poll(WATCH_MS))
        if status.fileno() in events:  # the judge is gone
            os.kill(first, signal.SIGKILL)
            break
        if line.fileno() in events:
            if not (data := line.recv(1 << 16)):
                break
            messages.append(json.loads(data))
            if len(messages) == 1:
                _send(status, messages[0], [os.pidfd_open(first)])
        elif (
            killed is None and _memory_of_descendants(limits["memory_bytes"] + shared) > limits["memory_bytes"] + shared
        ):
            killed = "memory"
            os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)  # returns when the last process of the namespace is gone
    if not messages:
        _send(status, {"state": "failed", "errno": 0, "text": "it ended before it was ready"})
    end = messages[1] if len(messages) > 1 else {}
    _send(status, {"state": "ended", "killed": killed, "shared_bytes": shared, **end})


def _own_memory() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _memory_of_descendants(enough: int) -> int:
    """Bytes that all processes below this one use. Shared pages are divided up if the quick sum is over `enough`."""
    parents: dict[int, int] = {}
    resident: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{entry}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
                parents[int(entry)], resident[int(entry)] = int(fields[1]), int(fields[21]) * resource.getpagesize()
    me = int(os.readlink("/proc/self"))  # the number that this /proc knows us by
    ours = {me}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    below = [pid for pid in ours if me not in (pid, parents.get(pid))]  # without process 1, which only waits
    total = sum(resident.get(pid, 0) for pid in below)
    return total if total <= enough else sum(_proportional(pid, resident.get(pid, 0)) for pid in below)


def _proportional(pid: int, otherwise: int) -> int:
    """Bytes of one process, each page divided by the number of its users; slow (3 ms for 360 MiB)."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("Pss:")), otherwise)
    except OSError:  # it ended, or made itself unreadable: then all of it counts
        return otherwise


def _worker(line_fd: int, serve: Serve, filter_program: bytes) -> NoReturn:
    """Be process 1, then the worker: descriptors 0 to 3 are nothing, output, output and the wire."""
    walls.set_parent_death_signal()
    walls.close_all_but([2, line_fd])
    line = socket.socket(fileno=line_fd)
    try:
        request, (wire, output), _, _ = socket.recv_fds(line, 1 << 16, 2)
        moved = [os.open("/dev/null", os.O_RDONLY), output, output, wire, line.detach()]
        moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 16) for descriptor in moved]  # out of the way of 0 to 4
        for i, descriptor in enumerate(moved):
            os.dup2(descriptor, i)
        walls.close_all_but(range(5))
        line = socket.socket(fileno=4)

        def reap(worker: int) -> None:
            walls.close_all_but([4])
            while True:
                pid, how, usage = os.wait4(-1, 0)
                if pid == worker:
                    cpu_s, rss = usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10
                    _send(line, {"status": how, "cpu_s": cpu_s, "max_rss_bytes": rss})
                    os._exit(0)

        raised, refused = walls.enter_worker(json.loads(request), filter_program, reap)
        _send(line, {"state": "started", "walls": raised, "refused": refused})
    except BaseException as error:
        _send(line, _failure(error))
        os._exit(1)
    line.close()
    os._exit(run(serve, socket.socket(fileno=3)))
