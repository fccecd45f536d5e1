"""The walls around student code on Linux: namespaces, a private read-only root, limits. Holds no secret.

Outer wall, once per zygote: `outer_namespaces`, then in a fork `build_root` and `drop_privileges`.
Inner wall, per submission, in a fork with one thread: `worker_namespaces`, then in its fork `enter_worker`, which forks
once more: process 1 of the new namespace reaps, process 2 is the worker.

Covered:
- files: only the given paths, read-only; a second time by Landlock where the kernel has it
- network: none; loopback is down, or where asked for its own, with nobody else on it; abstract Unix sockets of others are
  out of reach
- other processes: neither seen nor signalled
- shared memory: of others is out of reach; the worker's own /dev/shm vanishes with it
- privileges: no capabilities, no set-uid programs, no further namespaces or mounts
- leftovers: processes end with the worker, whatever they did to leave it
- limits: memory and CPU time per process, number of processes and threads, bytes and number of scratch files; one
  processor where asked for, so that a neighbour on another one keeps its speed
- devices: the few harmless ones, and those of a GPU where asked for; with these a worker can write what /proc lets it
  write of its own processes, since CUDA names its threads there and gives up (error 304) if it cannot
Not covered:
- kernel faults: host and worker share one kernel
- cgroups: seldom to be had, so CPU time counts per process, and the memory of all processes together is watched by the
  zygote, not bounded by the kernel
- socket buffers: memory that no limit counts
- GPU memory: is not limited; and as CUDA reserves address space at will, with GPUs the host's memory is watched only
- out of memory: where /proc can be written (see devices), a worker can undo that it is the first to go
- files of root: what only root can read stays unreadable for the worker of a grader that is root
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from autograder.worker import landlock, seccomp

__all__ = ["WallError", "build_root", "call", "close_all_but", "drop_privileges", "enter_worker", "inside"]
__all__ += ["outer_namespaces", "set_limits", "set_parent_death_signal", "worker_namespaces"]

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, NOEXEC, BIND, REC, PRIVATE = 1, 2, 4, 8, 0x1000, 0x4000, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 4, 24, 38, 47
PR_SET_CHILD_SUBREAPER = 36
SIGKILL = 9
STUDENT = 1000
"""User and group id that student code sees; the same on every machine."""
NOBODY = 65534
"""User and group id, outside, of the sandbox of a grader that is root."""
SYSTEM: tuple[str, ...] = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
SYSTEM += ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime")
SYSTEM += ("/sys/devices/system/cpu", "/sys/devices/system/node")  # torch and OpenMP count cores there
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
ETC = {  # written, not bound: the host's accounts and names are nobody's business
    "passwd": f"root:x:0:0::/:/bin/false\nstudent:x:{STUDENT}:{STUDENT}::/scratch:/bin/sh\n",
    "group": f"root:x:0:\nstudent:x:{STUDENT}:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
OLD = "/.old"


class WallError(Exception):
    """A wall could not be raised: `step` in words, `errno` as the kernel gave it. Our fault, never the student's."""

    def __init__(self, step: str, number: int) -> None:
        super().__init__(f"{step}: {os.strerror(number)} (errno {number})")
        self.step = step
        self.errno = number


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_ARM = os.uname().machine == "aarch64" if sys.platform != "win32" else False


def call(step: str, name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Call libc's function `name`. Raises WallError naming `step`."""
    if _libc is None:
        raise WallError(step, 38)
    # Whole registers: a bare int would travel as a C int, and these functions read longs.
    result = int(_libc[name](*(ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments)))
    if result == -1:
        raise WallError(step, ctypes.get_errno())
    return result


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    kind_bytes = kind.encode() if kind else None
    call(f"mount {target}", "mount", os.fsencode(source), os.fsencode(target), kind_bytes, flags, data.encode() or None)


def _restrict_mount(target: str, flags: int, *, recursive: bool) -> None:
    """Add mount flags; the ones already there, which the kernel may have locked, stay. Needs Linux 5.12."""
    attributes = ctypes.create_string_buffer(flags.to_bytes(8, sys.byteorder) + bytes(24), 32)
    step, mount_setattr, from_here = f"make {target} read-only", 442, -100
    call(step, "syscall", mount_setattr, from_here, os.fsencode(target), 0x8000 if recursive else 0, attributes, 32)


def _unshare(step: str, flags: int) -> None:
    call(step, "unshare", flags)


def _new_user_namespace(more: int) -> None:
    """Enter a new user namespace, together with the namespaces `more`, as the one user `STUDENT`."""
    uid, gid = os.getuid(), os.getgid()
    call("keep /proc/self ours", "prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)  # lost at setresuid; needed to write the maps
    _unshare("new user namespace", NEWUSER | more)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{STUDENT} {uid} 1"), ("gid_map", f"{STUDENT} {gid} 1")):
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        except OSError as error:
            raise WallError(f"write {name}", error.errno or 0) from None


def _has_admin() -> bool:
    """Whether this process has CAP_SYS_ADMIN (root in a plain container has not)."""
    with open("/proc/self/status") as file:
        return any(line.startswith("CapEff:") and int(line.split()[1], 16) >> 21 & 1 for line in file)


def outer_namespaces() -> bool:
    """Leave the host's namespaces; the next fork starts in a new pid one. True if `drop_privileges` must change uid.

    An ordinary user needs a user namespace for that. Root does not, and can so still bind what only root reaches.
    """
    kinds = NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS | NEWCGROUP
    if os.geteuid() == 0 and _has_admin():
        _unshare("new namespaces", kinds)
        return True
    _new_user_namespace(kinds)
    return False


def inside(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _bind(source: str, target: str, flags: int) -> None:
    """Show `source` (a path below OLD) at `target`."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "a").close()
    _mount(source, target, None, BIND | REC)
    _restrict_mount(target, flags, recursive=True)


def build_root(read_only: Sequence[str], hide: Sequence[str], devices: Sequence[str] = ()) -> tuple[str, ...]:
    """Replace the root by one that holds `read_only` and the system's own folders; gives the names of the walls.

    Folders in `hide` come out empty but for what `read_only` names inside them. Paths that do not exist are left out.
    """
    wanted = {
        path: os.path.realpath(path) for path in (*SYSTEM, *map(os.path.abspath, read_only)) if os.path.exists(path)
    }
    wanted |= {real: real for path, real in wanted.items() if path not in SYSTEM}
    links = {path: os.readlink(path) for path in SYSTEM if os.path.islink(path) and path.count("/") == 1}
    _mount("none", "/", None, PRIVATE | REC)
    # The new root grows on /tmp and then becomes "/", which uncovers the host's /tmp below OLD: a venv may lie there.
    _mount("tmpfs", "/tmp", "tmpfs", NOSUID | NODEV, "mode=0755,size=16m")
    os.mkdir("/tmp" + OLD)
    call("new root", "syscall", 41 if _ARM else 155, b"/tmp", os.fsencode("/tmp" + OLD))
    os.chdir("/")
    for path, target in links.items():
        os.symlink(target, path)
    bound: list[str] = []

    def bind_all(paths: Iterable[str]) -> None:
        for path in sorted(paths):  # parents first
            if path not in links and not inside(path, bound):
                _bind(OLD + wanted[path], path, RDONLY | NOSUID | NODEV)
                bound.append(path)

    bind_all(path for path in wanted if not inside(path, hide))
    for folder in hide:
        if inside(folder, bound):
            _mount("tmpfs", folder, "tmpfs", NOSUID | NODEV, "mode=0755,size=1m")
            bound = [path for path in bound if not inside(folder, [path])]
    bind_all(path for path in wanted if inside(path, hide))
    for folder in hide:
        if os.path.ismount(folder):
            _restrict_mount(folder, RDONLY, recursive=False)

    for path in (*DEVICES, *devices):
        _bind(OLD + path, path, RDONLY | NOSUID | NOEXEC)
    for name, number in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{number}", f"/dev/{name}")
    os.makedirs("/etc", exist_ok=True)
    for name, text in ETC.items():
        with open(f"/etc/{name}", "w") as file:
            file.write(text)
    for folder in ("/dev/shm", "/proc", "/scratch"):
        os.mkdir(folder)
    _mount("tmpfs", "/scratch", "tmpfs", NOSUID | NODEV, "mode=1777,size=64m")  # for what preloaded modules cache
    if not os.path.exists("/tmp"):
        os.symlink("/scratch", "/tmp")
    try:
        _mount("proc", "/proc", "proc", NOSUID | NODEV | NOEXEC)
    except WallError:  # a container that masks parts of /proc; the inner wall then covers it all
        _mount(OLD + "/proc", "/proc", None, BIND | REC)
    call("leave the old root", "umount2", OLD.encode(), 2)
    os.rmdir(OLD)
    _restrict_mount("/", RDONLY | NOSUID | NODEV, recursive=False)
    return ("private read-only root",)


def drop_privileges(uid: int | None) -> None:
    """Give up every capability for good, and become user and group `uid` where one is given. Raises WallError."""
    call("no new privileges", "prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    with contextlib.suppress(WallError):  # ends with EINVAL after the last capability that this kernel knows
        for capability in range(64):
            call("drop capabilities", "prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)
    call("clear ambient capabilities", "prctl", PR_CAP_AMBIENT, 4, 0, 0, 0)
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    version3 = (0x20080522).to_bytes(4, sys.byteorder) + bytes(4)
    call("drop capabilities", "capset", version3, bytes(24))
    if _effective_capabilities():
        raise WallError("drop capabilities", 1)


def _effective_capabilities() -> int:
    data = ctypes.create_string_buffer(24)
    call("read capabilities", "capget", (0x20080522).to_bytes(4, sys.byteorder) + bytes(4), data)
    return int.from_bytes(data.raw[:12], sys.byteorder)


def set_parent_death_signal(number: int = SIGKILL) -> None:
    """Get signal `number` when the parent dies. The kernel forgets this at setresuid."""
    call("tie to the parent", "prctl", PR_SET_PDEATHSIG, number, 0, 0, 0)


def close_all_but(keep: Iterable[int]) -> None:
    """Close every descriptor except those in `keep`."""
    close_range, first = 436, 0
    for descriptor in (*sorted(set(keep)), 0xFFFFFFFF):
        if descriptor > first:
            call("close descriptors", "syscall", close_range, first, descriptor - 1, 0)
        first = descriptor + 1


def worker_namespaces() -> None:
    """Enter a new user namespace; the next fork is process 1 of a new pid namespace. Needs a single thread."""
    _new_user_namespace(NEWPID)


def enter_worker(
    limits: Mapping[str, Any],
    reap: Callable[[int], None],
    filter_program: bytes,
    devices: Sequence[str] = (),
    loopback: bool = False,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """As process 1 of the new pid namespace: raise all inner walls, fork, and return in the worker only.

    `limits` has the fields of `sandbox.Limits`. Process 1 calls `reap` with the worker's pid. With `loopback` the
    worker's own network has an address, 127.0.0.1, and still no way out. Gives names of the walls in force and what was
    refused. Raises WallError with the step that failed.
    """
    os.setsid()  # kill(0) reaches a process group across pid namespaces
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # when the machine runs out, the worker goes first
    _unshare("new namespaces", NEWNS | NEWNET | NEWIPC | NEWUTS | NEWCGROUP)
    socket.sethostname("worker")
    if loopback:
        _raise_loopback()
    _mount("none", "/", None, PRIVATE | REC)
    size = f"mode=0700,size={limits['scratch_bytes']},nr_inodes={limits['scratch_files']}"
    _mount("tmpfs", "/scratch", "tmpfs", NOSUID | NODEV, size)
    _mount("tmpfs", "/dev/shm", "tmpfs", NOSUID | NODEV, size)
    with open("/proc/self/statm") as file:  # before this /proc is covered
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    proc, refused = "fresh /proc", []
    try:
        _mount("proc", "/proc", "proc", NOSUID | NODEV | NOEXEC | (0 if devices else RDONLY))
    except WallError as error:
        proc, refused = "empty /proc", [f"fresh /proc: {error}"]
        _mount("tmpfs", "/proc", "tmpfs", NOSUID | NODEV | NOEXEC | RDONLY, "size=4k")
    os.chdir("/scratch")
    processes = limits["processes"] + 2  # process 1 and its parent count too
    set_limits({**limits, "processes": processes}, mapped, address_space=not devices)
    drop_privileges(None)
    try:
        seccomp.load(filter_program)
    except OSError as error:
        raise WallError("seccomp filter", error.errno or 0) from None
    call("close to others", "prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)  # process 1 stays so: the worker cannot look into it
    pid = os.fork()
    if pid:
        reap(pid)
        os._exit(0)
    call("open /proc/self", "prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)
    raised = ["own namespaces", proc, "scratch quota", "rlimits", "no capabilities", "seccomp"]
    try:
        own = ["/proc"] if devices else []
        raised.append(landlock.restrict(["/"], ["/scratch", "/dev/shm"], [*DEVICES, *devices], existing=own))
    except OSError as error:
        refused.append(f"{error} (errno {error.errno})")
    return tuple(raised), tuple(refused)


def _raise_loopback() -> None:
    """Let processes of this network namespace reach each other at 127.0.0.1."""
    set_flags, up = 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, set_flags, struct.pack("16sH14x", b"lo", up))
        except OSError as error:
            raise WallError("raise the worker's own loopback", error.errno or 0) from None


def set_limits(limits: Mapping[str, Any], mapped: int, *, address_space: bool) -> None:
    """Limit this process; its memory to `mapped` bytes more than asked for, if at all. Raises WallError."""
    if (core := limits["core"]) is not None:
        try:
            os.sched_setaffinity(0, {core})
        except OSError as error:
            raise WallError(f"run on processor {core} only", error.errno or 0) from None
    memory = mapped + limits["memory_bytes"]
    for what, soft, hard in (
        (resource.RLIMIT_CPU, limits["cpu_s"], limits["cpu_s"] + 1),  # SIGXCPU can be ignored, SIGKILL cannot
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, limits["scratch_bytes"], limits["scratch_bytes"]),
        (resource.RLIMIT_NPROC, limits["processes"], limits["processes"]),
        (resource.RLIMIT_NOFILE, 512, 512),
        (resource.RLIMIT_CORE, 1, 1),  # 0 still starts the host's core dump program, 1 byte does not
    ):
        if what == resource.RLIMIT_AS and not address_space:
            continue
        try:
            _, allowed = resource.getrlimit(what)
            hard = hard if allowed == resource.RLIM_INFINITY else min(hard, allowed)
            resource.setrlimit(what, (min(soft, hard), hard))
        except (OSError, ValueError):
            raise WallError(f"limit {what}", 22) from None
