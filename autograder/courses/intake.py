"""What nbgrader gets to see of a folder that was handed in: plain files of a bearable size.

nbgrader copies every file beside the notebook when it collects and when it grades, and follows links. A link to a file of
the instructor's would end up among the feedback, one to /dev/zero would fill the disk, a pipe or a large file would stop
everybody's collecting. `PlainCollect` takes over plain files only; `set_aside`, before nbgrader grades, moves everything
else that lies in `submitted/` to a folder beside it, where a person can look at it. Both refuse a student's name that
formgrader would show as a part of its pages.

Not covered: a student who swaps a folder for a link in the very moment in which it is collected.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from nbgrader.exchange import ExchangeError
from nbgrader.exchange.default import ExchangeCollect
from traitlets.log import get_logger

__all__ = ["UNSAFE", "PlainCollect", "set_aside"]

MAX_BYTES = 100_000_000
"""Of one file that is no notebook; what nbgrader's `CourseDirectory.max_file_size` is by default."""
SLACK = timedelta(minutes=10)
"""How much later than its name says a folder may have come into the exchange before the instructor is told."""
TIME = "%Y-%m-%d %H:%M:%S.%f"
UNSAFE = re.compile(r"[<>&\"`\\\x00-\x1f\x7f]")
"""Not in the name of a student, which is the first part of a folder's name: formgrader shows it as it is, as HTML.

An apostrophe may be: formgrader's templates put a name between double quotes or tags only."""
MARKUP = "formgrader would show the name as a part of its pages"
ASIDE = ".set-aside"
"""End of the name of the folder that holds what was not taken."""


def _unfit(folder: Path) -> Iterator[tuple[Path, str]]:
    """What nbgrader must not see below `folder`, and why. Follows no link."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                if status.st_size > MAX_BYTES and path.suffix != ".ipynb":
                    yield path, f"it has more than {MAX_BYTES:,} bytes"
            elif not stat.S_ISDIR(status.st_mode):
                yield path, "it is a link" if path.is_symlink() else "it is a pipe, a socket or a device"


def set_aside(*, notebooks: list[str], **_: Any) -> None:
    """nbgrader's `pre_convert_hook`: move what is unfit from the folders of `notebooks` to one beside each.

    Ends the program if that fails, or at an unfit name: nbgrader would take any other exception for nothing, and go on.
    """
    for folder in {Path(notebook).parent for notebook in notebooks}:
        if UNSAFE.search(folder.parent.name):
            raise SystemExit(f"{folder.parent} must not enter the gradebook: {MARKUP}. Rename the folder.")
        for path, why in list(_unfit(folder)):
            try:
                aside = folder.with_name(folder.name + ASIDE)
                aside.mkdir(exist_ok=True)
                target = Path(tempfile.mkdtemp(prefix="", dir=aside), path.name)
                os.rename(path, target)
            except OSError as error:
                raise SystemExit(
                    f"{path} must not be copied ({why}), and cannot be moved: {error}. Delete it."
                ) from None
            get_logger().warning("%s was moved to %s: %s.", path, target, why)


class PlainCollect(ExchangeCollect):  # type: ignore[misc]
    """nbgrader's collect, for plain files. A folder that cannot be taken over stops no other."""

    src_records: list[dict[str, Any]]

    def init_src(self) -> None:
        super().init_src()
        self.src_records = [record for record in self.src_records if not record["username"].startswith(".")]

    def _path_to_record(self, path: str) -> dict[str, Any]:
        """What the folder's name says. One that is no student's name and time is told of and passed over."""
        try:
            record: dict[str, Any] = super()._path_to_record(path)
            if not record["username"].startswith(".") and not UNSAFE.search(record["username"]):
                return record
        except (ValueError, OverflowError, ExchangeError):
            pass
        self.log.error("%s is not collected: its name is not that of a submission.", path)
        return {"username": ".", "filename": os.path.basename(path), "timestamp": datetime.min}

    def do_copy(self, src: str, dest: str, log: Any = None) -> None:
        """Copy `src` to `dest` by way of a folder of our own, which nobody changes meanwhile."""
        with tempfile.TemporaryDirectory(dir=Path(dest).parent, prefix=".collecting-") as ours:
            clean = Path(ours, "submission")
            try:
                unfit = {str(path): why for path, why in _unfit(Path(src))}
                for path, why in unfit.items():
                    self.log.warning("%s is not collected: %s.", path, why)
                shutil.copytree(
                    src,
                    clean,
                    ignore=lambda folder, names: [name for name in names if os.path.join(folder, name) in unfit],
                    copy_function=_copy,
                )
                self._label(Path(src), clean)
                super().do_copy(str(clean), dest, log)
            except (OSError, RuntimeError, shutil.Error) as error:
                shutil.rmtree(dest, ignore_errors=True)
                self.log.error("%s cannot be collected: %s", src, error)

    def _label(self, src: Path, clean: Path) -> None:
        """Without these two files nbgrader releases nobody's feedback. The time is the one that the folder's name says."""
        claimed = self._path_to_record(str(src))["timestamp"]
        (clean / "timestamp.txt").write_text(claimed.strftime(f"{TIME} UTC"), encoding="utf-8")
        if not (clean / "submission_secret.txt").is_file():
            (clean / "submission_secret.txt").write_text(secrets.token_hex(64), encoding="utf-8")
        arrived = datetime.fromtimestamp(src.stat().st_ctime, UTC).replace(tzinfo=None)
        if arrived - claimed > SLACK:
            self.log.warning("%s claims to be of %s, but was made or changed at %s.", src, claimed, arrived)


def _copy(source: str, target: str) -> str:
    """Copy a file that still is a plain one."""
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as reading:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{source} is no plain file any more")
        with open(target, "wb") as writing:
            shutil.copyfileobj(reading, writing)
    shutil.copystat(source, target, follow_symlinks=False)
    return target
