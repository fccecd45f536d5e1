"""Temporary folders that a killed run leaves behind until the next one, and no longer.

Whoever makes such a folder holds a lock on it; the kernel lets go of the lock when the last process that has it open ends,
however it ends. `sweep` removes what nobody holds.

Not covered: Windows and file systems without `flock`, where nothing is swept and a killed run's folder stays.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["STALE_S", "folder", "hold", "sweep"]

STALE_S = 60.0
"""Age in seconds below which a folder is left alone: it may have been made just now, its lock not yet taken."""


@contextlib.contextmanager
def folder(prefix: str, parent: str | None = None) -> Iterator[Path]:
    """A new folder below `parent` (by default where temporary files go), held and, in the end, removed.

    What killed runs left of the same `prefix`, which must be ours alone, goes now.
    """
    sweep(prefix, parent)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as made:
        descriptor = hold(made)
        try:
            yield Path(made)
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def hold(folder: str) -> int:
    """Lock `folder` until the descriptor that this returns, and every fork's copy of it, is closed. -1: no locks here."""
    if fcntl is None:
        return -1
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # where we cannot lock it nobody can, and nobody sweeps it
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def sweep(prefix: str, parent: str | None = None) -> None:
    """Remove this user's temporary folders whose names begin with `prefix`, which must be ours alone, if nobody holds them.

    They are looked for in `parent`, by default where temporary files go.
    """
    if fcntl is None:
        return
    for path in Path(parent or tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError), _opened(path) as folder:
            status = os.fstat(folder)
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > STALE_S:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The folder itself, not what a link of its name leads to."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
