"""The warm process that workers are forked from: behind the outer wall, single-threaded, torch and friends imported.

    judge ─control─▶ launcher ─fork─▶ zygote (outer wall) ─fork─▶ keeper ─fork─▶ process 1 ─fork─▶ worker (inner wall)

With namespaces (`walls`) process 1 is that of a pid namespace; without (`confine`) there is no outer wall, and it is a
process like others that ends the worker at SIGTERM.

The control socket (Unix SEQPACKET) carries the configuration, our "ready", then requests: JSON limits and the
descriptors of the wire, the output pipe and the status socket. The *keeper* (trusted, outside the worker's pid
namespace) takes one and reports on its status socket: `started` with a pidfd of process 1, or `failed` with errno and
step (our fault; the zygote says so itself if it cannot fork a keeper), then `ended`. It ends the worker when the judge
goes away or when the worker's processes together use too much memory.

Covered:
- any end: of a worker, whichever, is reported and leaves the zygote as it was
- dead judge: its workers end
- several judges: forked from the one that made the sandbox, on one control socket
- memory: of all of a worker's processes together, looked at every 0.1 s; where the kernel cannot, their number too
Not covered:
- CUDA: a fork cannot use it once the zygote has
- threads: of modules that start some while they are imported may hang a worker; their number is reported
- hash seed: of strings, is the same in all workers, always
- killed zygote: without namespaces its workers go on until their judge ends them
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
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from autograder.worker import confine, seccomp, selftest, walls
from autograder.worker.__main__ import Serve, load, run, show_gpu

__all__ = ["main", "serve_nothing"]

WATCH_MS = 100
"""How often a worker's memory is looked at; a process fills about 0.3 GiB in that time."""
Enter = Callable[[dict[str, Any], Callable[..., None]], tuple[tuple[str, ...], tuple[str, ...]]]
"""Raises the walls around a worker, with its limits and what process 1 does meanwhile."""


def main(control_fd: int) -> NoReturn:
    """Be the launcher: read the configuration, leave the host's namespaces, fork the zygote and wait for it."""
    control = socket.socket(fileno=control_fd)
    config = json.loads(control.recv(1 << 20))
    confined, devices = bool(config["scratch"]), config["devices"]
    try:
        if confined:
            confine.start()
            ordinary = None
        else:
            ordinary = walls.NOBODY if walls.outer_namespaces() else None
        pid = os.fork()
        if pid:
            control.close()
            if confined:
                confine.supervise(pid, config["scratch"])
            os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
        walls.set_parent_death_signal()
        raised: tuple[str, ...] = ()
        enter: Enter
        if confined:
            paths = confine.readable(config["read_only"], config["hide"])
            enter = partial(confine.enter_worker, paths=paths, devices=devices, scratch=config["scratch"])
        else:
            raised = walls.build_root(config["read_only"], config["hide"], devices)
            walls.drop_privileges(ordinary)
            walls.set_parent_death_signal()
            program = seccomp.build(interfaces=config["loopback"])
            enter = partial(walls.enter_worker, filter_program=program, devices=devices, loopback=config["loopback"])
        sys.path[:0] = config["import_paths"]
        failed = _preload(config["preload"])
        serve = load(config["serve"])
    except BaseException as error:
        _send(control, _failure(error))
        os._exit(1)
    gc.collect()
    gc.freeze()  # the collector of a fork must not touch, and so copy, what is shared
    _send(control, {"state": "ready", "walls": raised, "failed": failed, "threads": len(os.listdir("/proc/self/task"))})
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    while True:  # one keeper, with its process 1, always waits for the next request: two slow forks less on the way
        reading, taken = os.pipe()
        try:
            is_keeper = os.fork() == 0
        except OSError as error:  # too many processes, no memory: whoever asks next hears of it, and may ask again
            os.close(reading)
            os.close(taken)
            _refuse(control, error)
            continue
        if is_keeper:
            os.close(reading)
            _keep(control, taken, serve, enter, confined)
        os.close(taken)
        if os.read(reading, 1) == b"q":
            os._exit(0)
        os.close(reading)


def _refuse(control: socket.socket, error: OSError) -> None:
    """Answer the next request with `error`."""
    request, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 3)
    if not request:
        os._exit(0)
    with socket.socket(fileno=descriptors.pop()) as status:
        _send(status, _failure(error))
    for descriptor in descriptors:
        os.close(descriptor)


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


def _keep(control: socket.socket, taken: int, serve: Serve, enter: Enter, confined: bool) -> NoReturn:
    """Be the keeper of one worker: prepare it, wait for a request, start it, watch it, report its end."""
    failure: dict[str, Any] = {}
    first = 0
    line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if confined:
            confine.start()
            walls.set_parent_death_signal(0)  # it cleans up after its worker, then notices itself
        else:
            walls.set_parent_death_signal()
            walls.worker_namespaces()
        first = os.fork()
        if first == 0:
            try:
                walls.set_parent_death_signal(signal.SIGTERM if confined else signal.SIGKILL)
                _worker(theirs.fileno(), serve, enter)
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
                    _watch(limits, first, line, status, signal.SIGTERM if confined else signal.SIGKILL)
            except BaseException as error:
                _send(status, _failure(error))
    os._exit(0)  # and process 1 with us


def _watch(limits: dict[str, int], first: int, line: socket.socket, status: socket.socket, stop: int) -> None:
    """Pass on what process 1 says and report the end of its last process; end them all for too much memory.

    Process 1 ends the worker, with all that it started, at signal `stop`.
    """
    poll = select.poll()
    poll.register(line, select.POLLIN)
    poll.register(status, 0)  # tells of a hang-up only
    shared = _own_memory()
    messages: list[dict[str, Any]] = []
    killed: str | None = None
    gone = False
    while True:
        events = dict(poll.poll(WATCH_MS))
        if status.fileno() in events:  # the judge is gone
            gone = True
            break
        if line.fileno() in events:
            if not (data := line.recv(1 << 16)):
                break
            message = json.loads(data)
            if not messages and "state" not in message:
                continue  # how a worker ended that was killed before it could say that it has started
            messages.append(message)
            if len(messages) == 1:
                _send(status, message, [os.pidfd_open(first)])
        elif killed is None:
            memory, threads = _used_by_descendants(limits["memory_bytes"] + shared)
            if memory > limits["memory_bytes"] + shared:
                killed = "memory"
            elif threads > limits["processes"]:
                killed = "processes"
        if killed:
            os.kill(first, stop)
    while os.waitpid(first, os.WNOHANG) == (0, 0):  # ends when the last process of the namespace is gone
        time.sleep(0.001)
        if gone:  # again and again: a signal just before its receiver falls asleep does not wake it
            os.kill(first, stop)
    if stop != signal.SIGKILL:
        confine.end_children()
    if not messages:
        _send(status, {"state": "failed", "errno": 0, "text": "it ended before it was ready"})
    end = messages[1] if len(messages) > 1 else {}
    _send(status, {"state": "ended", "killed": killed, "shared_bytes": shared, **end})


def _own_memory() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _used_by_descendants(enough: int) -> tuple[int, int]:
    """Bytes, and threads, of all processes below this one. Shared pages are divided up if the quick sum is `enough`."""
    parents: dict[int, int] = {}
    threads: dict[int, int] = {}
    resident: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{entry}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
                parents[int(entry)], threads[int(entry)] = int(fields[1]), int(fields[17])
                resident[int(entry)] = int(fields[21]) * resource.getpagesize()
    me = int(os.readlink("/proc/self"))  # the number that this /proc knows us by
    ours = {me}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    below = [pid for pid in ours if me not in (pid, parents.get(pid))]  # without process 1, which only waits
    total = sum(resident.get(pid, 0) for pid in below)
    if total > enough:
        total = sum(_proportional(pid, resident.get(pid, 0)) for pid in below)
    return total, sum(threads.get(pid, 0) for pid in below)


def _proportional(pid: int, otherwise: int) -> int:
    """Bytes of one process, each page divided by the number of its users; slow (3 ms for 360 MiB)."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("Pss:")), otherwise)
    except OSError:  # it ended, or made itself unreadable: then all of it counts
        return otherwise


def _worker(line_fd: int, serve: Serve, enter: Enter) -> NoReturn:
    """Be process 1, then the worker: descriptors 0 to 3 are nothing, output, output and the wire."""
    walls.close_all_but([2, line_fd])
    line = socket.socket(fileno=line_fd)
    try:
        request, (wire, output), _, _ = socket.recv_fds(line, 1 << 16, 2)
        limits = json.loads(request)
        moved = [os.open("/dev/null", os.O_RDONLY), output, output, wire, line.detach()]
        moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 16) for descriptor in moved]  # out of the way of 0 to 4
        for i, descriptor in enumerate(moved):
            os.dup2(descriptor, i)
        walls.close_all_but(range(5))
        line = socket.socket(fileno=4)

        def reap(worker: int, ended: Callable[[], None] = lambda: None) -> None:
            walls.close_all_but([4])
            pid = 0
            while pid != worker:
                pid = info.si_pid if (info := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)) else 0
                if pid == worker:
                    ended()
                _, how, usage = os.wait4(pid, 0)
            cpu_s, rss = usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10
            _send(line, {"status": how, "cpu_s": cpu_s, "max_rss_bytes": rss})

        show_gpu(limits)
        raised, refused = enter(limits, reap)
        _send(line, {"state": "started", "walls": raised, "refused": refused})
    except BaseException as error:
        _send(line, _failure(error))
        os._exit(1)
    line.close()
    os._exit(run(selftest.serve if limits.get("self_test") else serve, socket.socket(fileno=3)))
