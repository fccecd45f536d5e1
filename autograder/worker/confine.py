"""The walls where the kernel gives no namespaces (levels 1 and 2): Landlock, a system call filter, a user of its own.

The same processes as with namespaces (see `zygote`), but process 1 is here an ordinary one that adopts what the worker
leaves behind, holds no wall, and ends the worker at SIGTERM; whoever adopts its leftovers does the rest.

Covered:
- files: nothing is read or written but what the interpreter needs, the paths given, and the worker's scratch folder
- network: no connection to anybody, neither IP nor a Unix socket, whichever Landlock this kernel has
- other processes: neither signalled, nor traced, nor looked into, nor given other limits; hidden in /proc
- own user: as root, each worker has a user id that nobody else has (level 2)
- privileges: no capabilities, no set-uid programs, no new namespaces or mounts
- leftovers: processes end with the worker, whatever they did to leave it; the scratch folder is removed
- limits: memory and CPU time per process, size of a file, core dumps; processes (level 2: by the kernel)
Not covered:
- scratch quota: Landlock has none; number and sum of files are bounded by the disk alone
- number of processes: a limit of the kernel counts all that its user runs, so at level 1 more than the limit are ended
  by the keeper, within about 0.1 s, and sixteen times the limit is the kernel's
- existence of files: names, sizes and times can be asked for, where the user id may (level 1: all of the grader's)
- shared memory: /dev/shm is closed, as it is everybody's; multiprocessing's locks and queues fail
- sockets: no IP and no datagrams even within a worker, and no connection to its own Unix servers
- sessions: `setsid` and `chmod` (level 1) say that they did what they did not
- old Landlock: at level 1 below ABI 6 a submission cannot signal its own children either
- out of memory: with GPUs a worker can undo that it is the first to go, as it may write to its own /proc/self/task
- few user ids: where less than 2^31 exist (rootless containers), those of two workers may be the same
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn

from autograder.worker import landlock, seccomp, walls

__all__ = ["end_children", "enter_worker", "readable", "start", "supervise"]

PROC = ("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm/overcommit_memory")
SCRATCH_NAMES = ("HOME", "TMPDIR", "TEMP", "TMP")
FIRST_UID = 1 << 30
"""A worker's user id is this plus the process id of its keeper: nobody else's as long as that lives."""
SHARED_FACTOR = 16


def start() -> None:
    """Become the process that adopts what is left below it. Raises WallError."""
    walls.call("adopt orphans", "prctl", walls.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    walls.call("close to others", "prctl", walls.PR_SET_DUMPABLE, 0, 0, 0, 0)


def supervise(zygote: int, scratch: str) -> NoReturn:
    """Be the launcher: wait for the end of `zygote`, or end it at SIGTERM; leave no process and no file behind."""
    _at_sigterm(os.kill, zygote)
    os.waitpid(zygote, 0)
    end_children()
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(0)


def _at_sigterm(kill: Callable[[int, int], None], number: int) -> None:
    def handle(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            kill(number, signal.SIGKILL)

    signal.signal(signal.SIGTERM, handle)


def end_children() -> None:
    """Kill and reap everything below this process. What a worker started is in its process group: one blow for all."""
    own = os.getpgrp()
    while True:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                group = os.getpgid(pid)
                os.kill(pid, signal.SIGKILL) if group == own else os.killpg(group, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return


def _children() -> Iterator[int]:
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
            if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                yield int(entry)


def readable(read_only: Sequence[str], hide: Sequence[str]) -> list[str]:
    """The paths below which a worker may read: as a private root would show them. Raises WallError."""
    wanted = {os.path.realpath(path) for path in (*walls.SYSTEM, *read_only) if os.path.exists(path)}
    return sorted({path for each in wanted for path in _around(each, [h for h in hide if h not in wanted])})


def _around(path: str, hide: Sequence[str]) -> Iterator[str]:
    """`path` or, if something to be hidden lies below it, whatever else does: Landlock can only add."""
    if path not in hide and not any(walls.inside(folder, [path]) for folder in hide):
        yield path
    elif path not in hide:
        for entry in os.scandir(path):
            if not entry.is_symlink():
                yield from _around(entry.path, hide)


def enter_worker(
    limits: Mapping[str, int],
    reap: Callable[[int, Callable[[], None]], None],
    paths: Sequence[str],
    devices: Sequence[str],
    scratch: str,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """As process 1, with one thread: fork, raise all walls, and return in the worker only; process 1 calls `reap`.

    Gives names of the walls in force and what was refused. Raises WallError, in the worker too.
    """
    start()
    folder = tempfile.mkdtemp(prefix="worker-", dir=scratch)
    uid = None
    if os.geteuid() == 0:
        uid = _own_uid()
        os.chown(folder, uid, uid)
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    processes = limits["processes"] if uid else _threads_of_user() + SHARED_FACTOR * limits["processes"]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if pid := os.fork():
        with contextlib.suppress(OSError):  # both do it, so it is done when either goes on
            os.setpgid(pid, pid)
        _at_sigterm(os.killpg, pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        reap(pid, lambda: os.killpg(pid, signal.SIGKILL))  # while the dead worker keeps the group's number ours
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_children()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.chdir(folder)
    walls.call("open /proc/self", "prctl", walls.PR_SET_DUMPABLE, 1, 0, 0, 0)
    os.environ.update(dict.fromkeys(SCRATCH_NAMES, folder))
    tempfile.tempdir = None
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    walls.set_limits({**limits, "processes": processes}, mapped, address_space=not devices)
    walls.drop_privileges(uid)
    walls.set_parent_death_signal()
    walls.call("open /proc/self", "prctl", walls.PR_SET_DUMPABLE, 1, 0, 0, 0)  # lost with the user id
    step = "Landlock"
    try:
        extra = filter(os.path.exists, (*PROC, *(("/proc/driver/nvidia",) if devices else ())))
        threads = ["/proc/self/task"] if devices else []  # CUDA gives them names there
        wall = landlock.restrict([*paths, *extra], [folder], [*walls.DEVICES, *devices], existing=threads, tcp=True)
        step = "seccomp filter"
        seccomp.load(seccomp.build(alone=False, own_user=uid is not None, abi=landlock.abi()))
    except OSError as error:
        raise walls.WallError(f"{step} ({error})", error.errno or 0) from None
    own = ("own user id",) if uid else ()
    return (wall, "seccomp", *own, "rlimits", "no capabilities", "process group"), ()


def _own_uid() -> int:
    """A user id, and group id, that no other process has."""
    with open("/proc/self/uid_map") as file:
        mapped = [tuple(map(int, line.split())) for line in file]
    if any(first <= FIRST_UID and first + count >= 2 * FIRST_UID for first, _, count in mapped):
        return FIRST_UID + os.getpid()
    return 20_000 + os.getpid() % 40_000  # rootless containers have 65,536 ids


def _threads_of_user() -> int:
    threads = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{entry}/status") as file:
            fields = dict(line.split(":", 1) for line in file)
            if int(fields["Uid"].split()[0]) == os.getuid():
                threads += int(fields["Threads"])
    return threads
