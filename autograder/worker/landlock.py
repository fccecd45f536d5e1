"""Landlock, the kernel's own list of what a process may still reach. Our own binding: three system calls.

Covered (in brackets the oldest ABI that has it):
- files: reading, writing, making, removing and executing but below the paths given (1), moving between them (2)
- cutting files short: of files that may not be written (3)
- devices: `ioctl` on devices but the ones given (5)
- signals: to processes outside, and looking into them (6; looking into: 1)
- abstract sockets: connections to those made outside (6)
- TCP: binding and connecting (4), where asked for
Not covered:
- names: whether a path exists, its size, times and mode can be asked for any path that the user reaches
- attributes: modes, owners and times can be changed where the user may; `seccomp` answers for that
- Unix sockets in the file system, UDP: not in these ABIs; `seccomp` answers for that
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterable

__all__ = ["abi", "restrict"]

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REFER, TRUNCATE, IOCTL_DEV = (1 << bit for bit in (0, 1, 2, 3, 13, 14, 15))
MAKE_DEVICES = 1 << 6 | 1 << 11
RIGHTS = {1: 0x1FFF, 2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}
"""What each ABI added for files."""
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""Those that a rule for something else than a folder may name."""
READ = EXECUTE | READ_FILE | READ_DIR
TCP, SCOPES = 3, 3
"""Bind and connect; abstract sockets and signals."""

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _call(what: str, number: int, *arguments: int | bytes | None) -> int:
    if _libc is None:
        raise OSError(errno.ENOSYS, "Landlock needs Linux")
    result = int(_libc.syscall(number, *(ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments)))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock, {what}: {os.strerror(number)}")
    return result


def abi() -> int:
    """What this kernel's Landlock knows, 1 or more. Raises OSError: ENOSYS or EOPNOTSUPP where there is none."""
    return _call("version", CREATE_RULESET, None, 0, 1)


def restrict(
    read: Iterable[str],
    write: Iterable[str] = (),
    devices: Iterable[str] = (),
    *,
    existing: Iterable[str] = (),
    tcp: bool = False,
) -> str:
    """Leave this thread, and whatever it starts, the paths given; gives a name for the wall. Raises OSError.

    `write` are folders with every right but making devices; files below those in `existing` may be written, none made;
    `tcp` also forbids TCP. Needs no_new_privs.
    """
    version = abi()
    handled = sum(right for since, right in RIGHTS.items() if since <= version)
    rules = struct.pack("QQQ", handled, TCP if tcp and version >= 4 else 0, SCOPES if version >= 6 else 0)
    ruleset = _call("create", CREATE_RULESET, rules, len(rules), 0)
    try:
        for paths, rights in (
            (read, READ),
            (write, ~MAKE_DEVICES),
            (devices, READ_FILE | WRITE_FILE | IOCTL_DEV),
            (existing, WRITE_FILE | TRUNCATE),
        ):
            for path in paths:
                _allow(ruleset, path, rights & handled)
        _call("restrict", RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return f"Landlock ABI {version}"


def _allow(ruleset: int, path: str, rights: int) -> None:
    beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            rights &= FILE_RIGHTS
        _call(f"allow {path}", ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, beneath), 0)
    finally:
        os.close(beneath)
