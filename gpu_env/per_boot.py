"""Small values that hold until the machine is booted again, kept in the user's cache folder.

One JSON file each, readable by its owner only and replaced in one step, so that readers never see half a file and two
writers do no harm. What cannot be read, or could have been written by another user, counts as absent. Where no file can
be kept (a read-only home, a system that does not say which boot this is), values hold as long as the process.

Not covered: removing the files of earlier boots (about 1 KB each).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


_of_this_process: dict[str, Any] = {}


def load(kind: str, key: Mapping[str, object]) -> Any | None:
    """The value last stored under this key since the machine was booted, or None."""
    path = _folder() / _file(kind, key)
    found = _read(path)
    return _of_this_process.get(str(path)) if found is None else found


def load_all(kind: str) -> list[Any]:
    """All values of a kind that were stored in files since the machine was booted."""
    found = map(_read, sorted(_folder().glob(f"{kind}-*.json")))
    return [value for value in found if value is not None]


def store(kind: str, key: Mapping[str, object], value: object) -> None:
    """Keep a value of JSON types until the next boot, or at least as long as this process."""
    path = _folder() / _file(kind, key)
    _of_this_process[str(path)] = value
    if _boot() is None:
        return
    draft = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number, draft = tempfile.mkstemp(dir=path.parent, suffix=".tmp")  # mode 0600
        with open(number, "w", encoding="utf-8") as file:
            json.dump(value, file)
        os.replace(draft, path)
    except OSError:
        if draft is not None:
            with contextlib.suppress(OSError):
                os.unlink(draft)


def _boot() -> str | None:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _folder() -> Path:
    return (
        Path(platformdirs.user_cache_path("inference-autograder", appauthor=False)) / "per-boot" / (_boot() or "none")
    )


def _file(kind: str, key: Mapping[str, object]) -> str:
    return f"{kind}-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.json"


def _read(path: Path) -> Any | None:
    if _boot() is None:
        return None
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o022:
                return None
            return json.load(file)
    except (OSError, ValueError):
        return None
