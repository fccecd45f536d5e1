"""One at a time: a lock for each device, so that two measurements on one machine do not time each other.

    with lease("GPU-5b1c...", "GPU-90af...", waiting=tell) as held:
        ...                                             # on the device held.device: the first one that was free

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Held", "LeaseUnavailable", "lease"]

FOLDER = Path("/dev/shm")  # noqa: S108 - the file is opened without following links, and its owner is looked at
AGAIN_S = 0.05
"""How often taken locks are tried again."""
WAIT_S = 3600.0


class LeaseUnavailable(RuntimeError):
    """No device can be had for oneself: others have held them all the time, or the lock's file is not ours."""


@dataclass(frozen=True)
class Held:
    """The device that is ours now, and for how long it was waited for, in seconds."""

    device: str
    waited_s: float


@contextlib.contextmanager
def lease(
    *devices: str, waiting: Callable[[], None] = lambda: None, wait_s: float = WAIT_S, folder: Path = FOLDER
) -> Iterator[Held]:
    """Hold one of `devices`, the first that is free, until the block ends. Names are "cpu" and UUIDs of GPUs.

    `waiting` is called about every second while others hold all of them. Raises `LeaseUnavailable` after `wait_s` seconds.
    """
    if os.name != "posix" or not folder.is_dir():
        yield Held(devices[0], 0.0)
        return
    began = told = time.monotonic()
    while (found := _first_free(devices, folder)) is None:
        now = time.monotonic()
        if now - began > wait_s:
            raise LeaseUnavailable(
                f"Measured on by another process for {wait_s:.0f} s: {', '.join(devices)}. Look for a grading run that hangs, "
                f"or grade again later. The locks: {', '.join(str(_path(each, folder)) for each in devices)}."
            )
        if now - told > 1.0:
            waiting()
            told = now
        time.sleep(AGAIN_S)
    device, descriptor = found
    try:
        yield Held(device, time.monotonic() - began)
    finally:
        os.close(descriptor)  # and with it the lock; the file stays, for removing it would give two locks of one name


def _first_free(devices: Sequence[str], folder: Path) -> tuple[str, int] | None:
    """The first device that nobody holds, locked, with the descriptor that holds it."""
    import fcntl

    for device in devices:
        descriptor = _open(_path(device, folder))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            return device, descriptor
    return None


def _path(device: str, folder: Path) -> Path:
    return folder / f"autograder-lease-{os.getuid()}-{re.sub(r'[^0-9A-Za-z]', '-', device)}"


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
