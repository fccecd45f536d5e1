"""A system call filter: a deny list, assembled here into classic BPF, for x86-64 and aarch64.

Covered:
- kernel surface: calls for mounts, namespaces, tracing, modules and what else a submission has no use for
- uncounted memory: memfd, System V and POSIX queues, which no limit counts and which would outlive the worker
- socket families: Unix and IP only; with `interfaces` also what getifaddrs asks the kernel for the worker's own network with
- processors: which ones a worker runs on is not its own choice
Covered, for a worker without namespaces of its own (levels 1 and 2):
- no connections: only connected Unix pairs and Unix servers; so neither IP nor anybody's Unix socket is reached
- process group: leaving it is answered by success and not done, so one signal ends all of a worker's processes
- same user: modes, owners, times, limits and priorities of what the user owns; owner of file signals
- old Landlock: below ABI 3 cutting files short, below ABI 6 (level 1) signals to any process but the caller's own
Not covered:
- pointers: what lies behind one is not seen; `clone3` and `openat2` answer ENOSYS instead (callers fall back)
- foreign architectures: the call is fatal, not refused
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Iterable

__all__ = ["build", "load"]

# name: number on x86-64, on aarch64 (None: has no such call)
DENIED: dict[str, tuple[int, int | None]] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "kcmp": (312, 272), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "move_mount": (429, 429), "open_tree": (428, 428),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "swapon": (167, 224), "swapoff": (168, 225),
    "reboot": (169, 142), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "mknod": (133, None), "mknodat": (259, 33), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "acct": (163, 89), "syslog": (103, 116),
    "personality": (135, 92), "iopl": (172, None), "ioperm": (173, None), "lookup_dcookie": (212, 18),
    "fanotify_init": (300, 262), "move_pages": (279, 239), "migrate_pages": (256, 238), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "vhangup": (153, 58),
}  # fmt: skip
ABSENT: dict[str, tuple[int, int | None]] = {  # callers have a fall-back for ENOSYS, not always for EPERM
    "clone3": (435, 435), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "shmctl": (31, 195), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192), "mq_open": (240, 180),
    "mq_unlink": (241, 181),
}  # fmt: skip
# The rest is for workers without namespaces of their own.
REACHING = {"connect": (42, 203), "inotify_add_watch": (254, 27)}
LEAVING = {"setsid": (112, 157), "setpgid": (109, 154)}
CHANGING = {  # what a file's owner may; answered by success, since much software does so in passing
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
}  # fmt: skip
OWNING = {
    "chown": (92, None), "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "setxattrat": (463, 463), "removexattrat": (466, 466), "file_setattr": (469, 469),
    "setpriority": (141, 140), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274), "ioprio_set": (251, 30),
}  # fmt: skip
SIGNALLING = {"tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240)}
TRUNCATING = {"truncate": (76, 45)}
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column in the tables, AUDIT_ARCH."""
Call = tuple[int, int | None]
CLONE, IOCTL, FCNTL = (56, 220), (16, 29), (72, 25)
PRLIMIT, SETAFFINITY, KILL_, TGKILL = (302, 261), (203, 122), (62, 129), (234, 131)
SOCKETS: tuple[Call, ...] = ((41, 198), (53, 199))  # socket, socketpair
OPEN, OPENAT, OPENAT2 = (2, None), (257, 56), (437, 437)
NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW flag that clone() takes
TERMINAL = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: type into, or read, the terminal of whoever started us
NETLINK, ROUTE = 16, 0  # AF_NETLINK; NETLINK_ROUTE, the only one of netlink's protocols that getifaddrs speaks
SIGNAL_OWNER = (0x8901, 0x8902)  # FIOSETOWN, SIOCSPGRP; the kernel then signals whoever was named
FILE_SIGNALS = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX
LOAD, AND, JUMP, JUMP_EQ, JUMP_GE, RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
NR, ARCH, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; arguments have 8 bytes, low half first
WHOLE = 0xFFFFFFFF
Code = list[tuple[int, int, int, int]]


def build(*, alone: bool = True, own_user: bool = True, abi: int = 0, interfaces: bool = False) -> bytes:
    """The filter's program for this machine. Raises OSError(ENOSYS) on an architecture that is not in the tables.

    `alone`: the worker has its own namespaces. If not: whether its user is nobody else's, and Landlock's ABI; to be
    called in the worker then, whose own process id it needs. `interfaces`: it may list those of its own network.
    """
    if platform.machine() not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system call table for {platform.machine()}")
    column, arch = ARCHITECTURES[platform.machine()]
    code: Code = [(LOAD, 0, 0, ARCH), (JUMP_EQ, 1, 0, arch), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NR)]
    if column == 0:  # the x32 variant of every call
        code += [(JUMP_GE, 0, 1, 0x40000000), (RETURN, 0, 0, ERRNO | errno.ENOSYS)]

    def refuse(calls: Iterable[Call], error: int) -> None:
        for numbers in calls:
            if (number := numbers[column]) is not None:
                code.extend([(JUMP_EQ, 0, 1, number), (RETURN, 0, 0, ERRNO | error)])

    def check(call: Call, argument: int, values: Iterable[int], error: int, *, only: bool, mask: int = WHOLE) -> None:
        """Refuse `call` where its argument is one of `values`; with `only` where it is none of them."""
        if (number := call[column]) is None:
            return
        values = [value & WHOLE for value in values]
        body: Code = [(LOAD, 0, 0, ARGUMENTS + 8 * argument), (AND, 0, 0, mask)]
        body += [(JUMP_EQ, len(values) - i, 0, value) for i, value in enumerate(values)]
        body += [] if only else [(JUMP, 0, 0, 1)]
        body += [(RETURN, 0, 0, ERRNO | error), (LOAD, 0, 0, NR)]
        code.extend([(JUMP_EQ, 0, len(body), number), *body])

    refuse(DENIED.values(), errno.EPERM)
    refuse(ABSENT.values(), errno.ENOSYS)
    check(SETAFFINITY, 0, [0], errno.EPERM, only=True)
    refuse([SETAFFINITY], 0)  # libraries bind threads in passing; but the grader says which processor it is
    check(CLONE, 0, [0], errno.EPERM, only=True, mask=NEW_NAMESPACES)
    check(IOCTL, 1, TERMINAL + SIGNAL_OWNER, errno.EPERM, only=False)
    check(FCNTL, 1, FILE_SIGNALS, errno.EPERM, only=False)
    if interfaces:
        listing: Code = [(LOAD, 0, 0, ARGUMENTS), (JUMP_EQ, 0, 3, NETLINK), (LOAD, 0, 0, ARGUMENTS + 16)]
        listing += [(JUMP_EQ, 0, 1, ROUTE), (RETURN, 0, 0, ALLOW), (LOAD, 0, 0, NR)]
        code += [(JUMP_EQ, 0, len(listing), SOCKETS[0][column] or 0), *listing]
    families = [int(socket.AF_UNIX), *([int(socket.AF_INET), int(socket.AF_INET6)] if alone else [])]
    for call in SOCKETS:
        check(call, 0, families, errno.EAFNOSUPPORT, only=True)
    if not alone:
        for call in SOCKETS:  # a datagram names its receiver behind a pointer
            check(call, 1, [socket.SOCK_STREAM, socket.SOCK_SEQPACKET], errno.EPROTONOSUPPORT, only=True, mask=0xF)
        refuse(REACHING.values(), errno.EACCES)
        refuse(LEAVING.values(), 0)
        if abi < 3:
            refuse(TRUNCATING.values(), errno.EPERM)
            refuse([OPENAT2], errno.ENOSYS)
            cutting = [os.O_TRUNC, os.O_TRUNC | os.O_ACCMODE]  # without opening for writing
            check(OPEN, 1, cutting, errno.EPERM, only=False, mask=cutting[1])
            check(OPENAT, 2, cutting, errno.EPERM, only=False, mask=cutting[1])
    if not alone and not own_user:
        refuse(CHANGING.values(), 0)
        refuse(OWNING.values(), errno.EPERM)
        check(PRLIMIT, 0, [0], errno.EPERM, only=True)
        if abi < 6:
            own = os.getpid()
            refuse(SIGNALLING.values(), errno.EPERM)
            check(KILL_, 0, [0, own, -own], errno.EPERM, only=True)
            check(TGKILL, 0, [own], errno.EPERM, only=True)
    code.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def load(program: bytes) -> None:
    """Put the calling thread, and whatever it starts, under `program` for good. Needs no_new_privs. Raises OSError."""
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    argument = Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    set_seccomp, mode_filter = 22, 2
    if libc.prctl(set_seccomp, ctypes.c_ulong(mode_filter), ctypes.byref(argument), 0, 0) == -1:
        number = ctypes.get_errno()
        raise OSError(number, "seccomp filter refused")
