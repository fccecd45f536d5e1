"""Files for other tools: `autograder export`.

    junit       findings as JUnit XML (`autograder.junit`)

A file is written to a temporary name, synced and renamed: it is the old one or the whole new one.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from autograder import explain, junit
from autograder.errors import AutograderError

__all__ = ["ExportError", "export_junit", "write"]


class ExportError(AutograderError):
    """Nothing was exported. The text says why and what next; no file was changed."""


def export_junit(name: str, start: Path, output: Path) -> str:
    """Write the findings of an assignment to `output` as JUnit XML; gives what was done, in a sentence.

    Raises `ExportError`, `CourseError`, `UnknownAssignment`.
    """
    graded = explain.explain_class(name, start)
    if not graded:
        raise ExportError(
            f"Nobody has handed in {name}; there is nothing to export. Collect first: nbgrader collect {name}"
        )
    write(output, junit.report(name, graded))
    missing = sum(isinstance(found, AutograderError) for found in graded.values())
    rest = f", {missing} of them without a result" if missing else ""
    return f"{output}: findings of {len(graded)} submissions{rest}."


def write(file: Path, content: bytes) -> None:
    """Write all of `content`, or leave `file` as it was. Raises `ExportError`."""
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
        temporary = None
    except OSError as error:
        raise ExportError(
            f"{file} cannot be written: {error.strerror}. It is as it was. Make room, mend the permissions or name "
            "another file, then run the same command again."
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
