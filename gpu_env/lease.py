"""One at a time: a lock for each device, so that two measurements on one machine do not time each other.

    with lease("cpu", waiting=tell) as waited_s:
        ...

The lock is `flock` on a file of this user in /dev/shm (not below TMPDIR, which differs between commands). The kernel lets go
of it when the process that holds it ends, however it ends.

Not covered: other users and other containers, whose files are not ours; programs that do not ask; systems without
`flock` and /dev/shm (Windows, macOS), where every lease is granted.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["LeaseUnavailable", "lease"]

FOLDER = Path("/dev/shm")  # noqa: S108 - the file is opened without following links, and its owner is looked at
AGAIN_S = 0.05
"""How often a taken lock is tried again."""
WAIT_S = 3600.0


class LeaseUnavailable(RuntimeError):
    """The device cannot be had for oneself: somebody has held it all the time, or the lock's file is not ours."""


@contextlib.contextmanager
def lease(
    device: str, *, waiting: Callable[[], None] = lambda: None, wait_s: float = WAIT_S, folder: Path = FOLDER
) -> Iterator[float]:
    """Hold `device` (a name such as "cpu" or "cuda:0") until the block ends; gives the seconds that it was waited for.

    `waiting` is called about every second while somebody else holds it. Raises `LeaseUnavailable` after `wait_s` seconds.
    """
    if os.name != "posix" or not folder.is_dir():
        yield 0.0
        return
    import fcntl

    path = folder / f"autograder-lease-{os.getuid()}-{re.sub(r'[^0-9A-Za-z]', '-', device)}"
    began = told = time.monotonic()
    descriptor = _open(path)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                now = time.monotonic()
                if now - began > wait_s:
                    raise LeaseUnavailable(
                        f"{device} was measured on by another process for {wait_s:.0f} s ({path}). "
                        "Look for a grading run that hangs, or grade again later."
                    ) from None
                if now - told > 1.0:
                    waiting()
                    told = now
                time.sleep(AGAIN_S)
        yield time.monotonic() - began
    finally:
        os.close(descriptor)  # and with it the lock; the file stays, for removing it would give two locks of one name


def _open(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        status = os.fstat(descriptor)
    except OSError as error:
        raise LeaseUnavailable(f"{path} cannot be opened: {error.strerror}. Remove it if it is not yours.") from None
    if status.st_uid != os.getuid() or not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise LeaseUnavailable(f"{path} is not a plain file of this user. Remove it.")
    return descriptor
