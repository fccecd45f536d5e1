"""Files for other tools: `autograder export` gives grades out (`gradesheet`) and findings (`junit`).

What differs from the sheet that is there already is shown before it is written; a second time nothing does. A file is
written to a temporary name, synced and renamed: it is the old one or the whole new one.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from autograder import suite
from autograder.courses.roster import roster
from autograder.errors import AutograderError
from autograder.reports import explain, gradesheet, junit
from autograder.reports.gradesheet import ExportError

__all__ = ["export", "write"]


def export(
    name: str, start: Path, format_: str, output: Path | None, console: Console, *, sheet: Path | None = None,
    dry_run: bool = False, column: str | None = None, identifier: str | None = None,
) -> int:  # fmt: skip
    """The command: show what is different, write it unless it is a dry run; gives the exit status.

    Raises `ExportError`, `SheetError`, `CourseError`, `UnknownAssignment`.
    """
    if output is None and not dry_run:
        raise ExportError("Where to? Give the file with --output, or look first with --dry-run.")
    if format_ == "junit":
        if output is None or dry_run:
            raise ExportError("Findings are no sheet of grades: give --output, and no --dry-run.")
        console.print(_findings(name, start, output), markup=False, highlight=False, soft_wrap=True)
        return 0
    title = suite.load_assignment(name).title
    done = gradesheet.fill(roster(name, start), name, title, format_, sheet, column=column, identifier=identifier)
    table = Table(title=f"{name}: grades that {sheet or 'a new sheet'} does not have", title_justify="left")
    for heading in ("student", "there", "here"):
        table.add_column(heading, overflow="fold", justify="left" if heading == "student" else "right")
    for change in done.changes:
        table.add_row(*map(explain.shown, (change.student, change.there or "–", change.here)))
    if done.changes:
        console.print(table)
    for message in done.messages:
        console.print(explain.shown(message), highlight=False, soft_wrap=True)
    said = f"{len(done.changes)} grades to fill in, {done.same} are there already"
    said += f", {done.lost} have no row (see above)" if done.lost else ""
    if dry_run:
        said += ". Dry run: nothing was written."
    elif output is not None:
        write(output, done.content)
        said += f". {output} is written."
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    return int(done.lost > 0)


def _findings(name: str, start: Path, output: Path) -> str:
    """Write the findings of an assignment as JUnit XML; gives what was done, in a sentence."""
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
