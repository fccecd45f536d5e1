"""Grades in sheets: the columns that Canvas, Moodle and nobody in particular ask for, and which row is whose.

    csv       everything there is to know about every grade
    canvas    the columns of Canvas' own gradebook export, which it takes back
              https://community.canvaslms.com/t5/Instructor-Guide/How-do-I-import-grades-in-the-Gradebook/ta-p/807
    moodle    an identifier and a grade, for the gradebook's CSV import and for the offline grading worksheet
              https://docs.moodle.org/en/Grade_import

Who has no grade keeps the cell as it is. A row that could be two students', two rows of one student and two columns for the
grade stop everything; a row of a stranger and a student without a row are told.

Not covered: letter grades, and Moodle in other languages than English without `column` and `identifier`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autograder.courses.roster import Grade
from autograder.errors import AutograderError
from autograder.reports.sheet import Sheet, empty, harmless, number_text, same

__all__ = ["FORMATS", "Change", "ExportError", "Filled", "fill"]


class ExportError(AutograderError):
    """Nothing was exported. The text says why and what next; no file was changed."""


@dataclass(frozen=True)
class Format:
    """How a sheet names students and grades. `identifiers` maps columns to the names of a student that they may hold."""

    identifiers: dict[str, tuple[str, ...]]
    titles: tuple[str, ...]
    """Patterns of the grade column's title; NAME stands for the assignment's name or title."""
    new: tuple[str, ...]
    """The columns of a new sheet; NAME as above."""


TITLE = r"NAME(?: \(\d+\))?"
"""Canvas puts its number of the assignment behind the name."""
FORMATS = {
    "csv": Format(
        {"student": ("student",)},
        ("points",),
        (
            "student",
            "last_name",
            "first_name",
            "email",
            "assignment",
            "points",
            "max_points",
            "late_penalty",
            "message",
        ),
    ),
    "canvas": Format(
        {"ID": ("lms",), "SIS User ID": ("student", "lms"), "SIS Login ID": ("student", "email")},
        (TITLE,),
        ("Student", "ID", "SIS User ID", "SIS Login ID", "Section", "NAME"),
    ),
    "moodle": Format(
        {"Username": ("student",), "ID number": ("student", "lms"), "Email address": ("email", "student")},
        ("NAME", r"[^:]+: ?NAME \([^)]+\)", "Grade"),
        ("Username", "First name", "Last name", "Email address", "NAME"),
    ),
}
POSSIBLE = "Points Possible"


@dataclass(frozen=True)
class Change:
    """One cell of the grade column that gets another content."""

    student: str
    there: str
    here: str


@dataclass
class Filled:
    """What was, or would be, written."""

    changes: list[Change] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    same: int = 0
    """Grades that the sheet has already."""
    lost: int = 0
    """Grades without a row in the sheet."""
    content: bytes = b""


def fill(
    known: Sequence[Grade],
    name: str,
    title: str,
    format_: str,
    sheet: Path | None = None,
    *,
    column: str | None = None,
    identifier: str | None = None,
) -> Filled:
    """Put the grades `known` into the grade column of the sheet in the file `sheet`, or of a new one. Writes nothing.

    `name` and `title` are the assignment's; `column` and `identifier` are titles of columns where those of the format do
    not fit. Raises `ExportError`, `SheetError`.
    """
    if format_ not in FORMATS:
        raise ExportError(f"Unknown format {format_!r}. Use one of: {', '.join(FORMATS)}, junit.")
    chosen = FORMATS[format_]
    if identifier:
        chosen = Format({identifier: ("student", "lms", "email")}, chosen.titles, chosen.new)
    if column:
        chosen = Format(chosen.identifiers, (TITLE,), chosen.new)
    if not known:
        raise ExportError(f"Nobody is in nbgrader's database, and nobody has handed in {name}. Collect first.")
    done = Filled()
    if sheet is None:
        filled = _new(chosen, format_, column or name, name, known, done)
    else:
        names = {column} if column else {name, title}
        filled = Sheet.read(sheet, [*chosen.identifiers, "Student", "Section", "Grade", "points", *names])
        _fill(filled, chosen, _grade_column(filled, chosen, names), known, done)
    for text in filled.defuse():
        done.messages.append(
            f"{text[:80]!r} could be taken for a formula; it is written as {harmless(text)[:80]!r}. If that names a student "
            "to Canvas or Moodle, give that grade by hand."
        )
    done.messages += [f"{grade.student}: {grade.message}" for grade in known if grade.message]
    done.content = filled.bytes()
    return done


def _new(chosen: Format, format_: str, title: str, name: str, known: Sequence[Grade], done: Filled) -> Sheet:
    """A sheet with a row for everybody."""
    sheet = Sheet.new([title if column == "NAME" else column for column in chosen.new])
    if format_ == "canvas":
        sheet.add([f"    {POSSIBLE}", "", "", "", "", number_text(max(grade.max_points for grade in known))])
    for grade in known:
        sheet.add([_cell(grade, column, name) for column in chosen.new])
        if grade.points is not None:
            done.changes.append(Change(grade.student, "", number_text(grade.points)))
    return sheet


def _cell(grade: Grade, title: str, name: str) -> str:
    """The content of a column of a new sheet."""
    about, points = grade.about, "" if grade.points is None else number_text(grade.points)
    return {
        "student": grade.student, "last_name": about.last_name, "first_name": about.first_name, "email": about.email,
        "assignment": name, "points": points, "max_points": number_text(grade.max_points),
        "late_penalty": number_text(grade.late_penalty), "message": grade.message,
        "Student": ", ".join(filter(None, (about.last_name, about.first_name))) or grade.student,
        "ID": about.lms, "SIS Login ID": grade.student,
        "Username": grade.student, "First name": about.first_name, "Last name": about.last_name,
        "Email address": about.email, "NAME": points,
    }.get(title, "")  # fmt: skip


def _grade_column(sheet: Sheet, chosen: Format, names: set[str]) -> int:
    """The column for the grades. Raises `ExportError` if there is none, or more than one."""
    either = "|".join(map(re.escape, sorted(names)))
    for pattern in chosen.titles:
        matching = re.compile(pattern.replace("NAME", f"(?:{either})"))
        titles = {title.strip() for title in sheet.header if matching.fullmatch(title.strip())}
        if len(titles) > 1:
            raise ExportError(
                f"{sheet.file} has several columns for this grade: {_list(sorted(titles))}. Choose one with --column."
            )
        if titles and (there := sheet.column(titles.pop())) is not None:
            return there
    raise ExportError(
        f"{sheet.file} has no column for {_list(sorted(names))}. It has: {_list(sheet.header)}. Choose one with --column; if the "
        "assignment is missing there, make it there first and export the sheet again."
    )


def _fill(sheet: Sheet, chosen: Format, column: int, known: Sequence[Grade], done: Filled) -> None:
    """Put the grades into their rows."""
    _same_scale(sheet, column, known, done)
    rows: dict[str, int] = {}
    for number, grade, who in _matched(sheet, chosen, known):
        where = f"{sheet.file}, line {sheet.lines[number]}"
        if grade is None:
            done.messages.append(f"{where}: {who} is not in this course. The row is left as it is.")
            continue
        if grade.student in rows:
            raise ExportError(
                f"{sheet.file} has two rows for {grade.student}, lines {sheet.lines[rows[grade.student]]} and "
                f"{sheet.lines[number]}. Remove one, then run this again."
            )
        rows[grade.student] = number
        cells = sheet.rows[number]
        there = cells[column]
        if grade.points is None:
            if not empty(there):
                done.messages.append(f"{where}: {grade.student} has no grade here; the sheet's {there!r} is left.")
        elif same(there, grade.points):
            done.same += 1
        elif there.strip().upper() == "EX":
            done.messages.append(f"{where}: {grade.student} is excused (EX), and stays so.")
        else:
            cells[column] = number_text(grade.points)
            sheet.changed = True
            done.changes.append(Change(grade.student, there, cells[column]))
    for grade in known:
        if grade.points is not None and grade.student not in rows:
            done.lost += 1
            done.messages.append(
                f"{grade.student} has {number_text(grade.points)} points and no row in {sheet.file}: "
                f"looked for by {' and '.join(repr(title) for title in chosen.identifiers)}."
            )


def _same_scale(sheet: Sheet, column: int, known: Sequence[Grade], done: Filled) -> None:
    """Tell where the sheet counts points otherwise than the gradebook. Raises `ExportError` where it takes none."""
    most = max(grade.max_points for grade in known)
    possible = []
    if sheet.column("Student") == 0:
        possible += [cells[column] for cells in sheet.rows if cells and cells[0].strip() == POSSIBLE]
    if any("read only" in text for text in possible):
        raise ExportError(f"{sheet.file}: Canvas takes no grades for {sheet.header[column]!r}, which is read only.")
    for title in ("Maximum grade", "Maximum Grade"):
        if (there := sheet.column(title)) is not None:
            possible += [cells[there] for cells in sheet.rows if cells]
    if different := {text.strip() for text in possible if not empty(text) and not same(text, most)}:
        done.messages.append(
            f"{sheet.file} has {_list(sorted(different))} points possible, the gradebook {number_text(most)}: grades are "
            "written as points, not as percent. Change that in Canvas or Moodle."
        )


def _matched(sheet: Sheet, chosen: Format, known: Sequence[Grade]) -> Iterator[tuple[int, Grade | None, str]]:
    """Each row that is a student's: its number, whose it is, if it can be told, and what it says about that."""
    columns = {title: sheet.column(title) for title in chosen.identifiers}
    there = {title: column for title, column in columns.items() if column is not None}
    if not there:
        raise ExportError(
            f"{sheet.file} has no column that names students: none of {_list(chosen.identifiers)} among {_list(sheet.header)}. "
            "Choose one with --identifier."
        )
    by_name: dict[tuple[str, str], set[str]] = {}
    for grade in known:
        for kind, text in (
            ("student", grade.student),
            ("lms", grade.about.lms),
            ("email", grade.about.email.casefold()),
        ):
            for form in {text, harmless(text)} - {""}:  # an earlier export may have written the second
                by_name.setdefault((kind, form), set()).add(grade.student)
    students = {grade.student: grade for grade in known}
    for number, cells in enumerate(sheet.rows):
        said = {title: cells[column].strip() for title, column in there.items() if cells and cells[column].strip()}
        if not said:
            continue  # blank, or about the assignment
        found: set[str] = set()
        for title, text in said.items():
            for kind in chosen.identifiers[title]:
                found |= by_name.get((kind, text.casefold() if kind == "email" else text), set())
        if len(found) > 1:
            raise ExportError(
                f"{sheet.file}, line {sheet.lines[number]}: {_list(said.values())} could be {' or '.join(sorted(found))}. Mend "
                "the line, or those students' e-mail addresses and ids in nbgrader's database."
            )
        yield number, students[found.pop()] if found else None, _list(said.values())


def _list(texts: Iterable[str]) -> str:
    return ", ".join(repr(text[:80]) for text in list(texts)[:20])
