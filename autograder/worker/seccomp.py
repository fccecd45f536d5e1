"""A system call filter: a deny list, assembled here into classic BPF, for x86-64 and aarch64.

Covered: calls that reach the kernel's rarely used surface, other processes, mounts and namespaces; the ways to hold
memory that no limit counts (memfd, System V); sockets of any family but Unix and IP; a foreign architecture is fatal.
Not covered: arguments behind pointers; `clone3` answers ENOSYS as its flags lie behind one (glibc then uses `clone`).
"""

from __future__ import annotations

import ctypes
import errno
import platform
import socket
import struct

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
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190),
}  # fmt: skip
MACHINES = {"x86_64": (0, 0xC000003E, 56, 41, 53, 16), "aarch64": (1, 0xC00000B7, 220, 198, 199, 29)}
"""Column in the tables, AUDIT_ARCH, and the numbers of clone, socket, socketpair, ioctl."""
NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW flag that clone() takes
TIOCSTI, TIOCLINUX = 0x5412, 0x541C  # type into, or read, the terminal of whoever started us
LOAD, JUMP_EQ, JUMP_GE, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
NR, ARCH, ARG0, ARG1 = 0, 4, 16, 24  # offsets in struct seccomp_data; the arguments' low halves (little endian)


def build() -> bytes:
    """The filter's program for this machine. Raises OSError(ENOSYS) on an architecture that is not in the tables."""
    if platform.machine() not in MACHINES:
        raise OSError(errno.ENOSYS, f"no system call table for {platform.machine()}")
    column, arch, clone, socket_, socketpair, ioctl = MACHINES[platform.machine()]
    code = [(LOAD, 0, 0, ARCH), (JUMP_EQ, 1, 0, arch), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NR)]
    if column == 0:  # the x32 variant of every call
        code += [(JUMP_GE, 0, 1, 0x40000000), (RETURN, 0, 0, ERRNO | errno.ENOSYS)]
    for table, error in ((DENIED, errno.EPERM), (ABSENT, errno.ENOSYS)):
        for numbers in table.values():
            if (number := numbers[column]) is not None:
                code += [(JUMP_EQ, 0, 1, number), (RETURN, 0, 0, ERRNO | error)]
    code += [
        (JUMP_EQ, 0, 3, clone),
        (LOAD, 0, 0, ARG0),
        (JUMP_SET, 0, 1, NEW_NAMESPACES),
        (RETURN, 0, 0, ERRNO | errno.EPERM),
    ]
    code += [(LOAD, 0, 0, NR), (JUMP_EQ, 0, 4, ioctl), (LOAD, 0, 0, ARG1)]
    code += [(JUMP_EQ, 1, 0, TIOCSTI), (JUMP_EQ, 0, 1, TIOCLINUX), (RETURN, 0, 0, ERRNO | errno.EPERM)]
    code += [(LOAD, 0, 0, NR), (JUMP_EQ, 1, 0, socket_), (JUMP_EQ, 0, 5, socketpair), (LOAD, 0, 0, ARG0)]
    families = [int(socket.AF_UNIX), int(socket.AF_INET), int(socket.AF_INET6)]
    code += [(JUMP_EQ, 3 - i, 0, family) for i, family in enumerate(families)]
    code += [(RETURN, 0, 0, ERRNO | errno.EAFNOSUPPORT), (RETURN, 0, 0, ALLOW)]
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
