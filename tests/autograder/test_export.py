"""Grades given out: into sheets of Canvas and Moodle, safely, completely, and a second time not at all."""

from __future__ import annotations

import csv
import io
import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbgrader.api import Gradebook

from autograder.authoring import build
from autograder.courses.gradebook import Student
from autograder.courses.roster import Grade
from autograder.errors import AutograderError
from autograder.reports import export, gradesheet, sheet
from autograder.reports.gradesheet import Filled, fill
from autograder.reports.sheet import Sheet, harmless

if TYPE_CHECKING:
    from conftest import Course

CANVAS = """\
Student,ID,SIS User ID,SIS Login ID,Section,tiny (17),other (18),Final Score
    Points Possible,,,,,10,5,(read only)
"Lovelace, Ada",101,,ada,L1,,3,30
"Moss, Kim",102,,kim@example.org,L1,7,,70
"Test, Student",999,,1f2e,L1,,,
"""
MOODLE = """\
Identifier,Full name,ID number,Email address,Status,Grade,Maximum grade,Last modified (grade)
Participant 3,Ada Lovelace,ada,ada@example.org,Submitted,,10.00,-
Participant 4,Kim Moss,,kim@example.org,Submitted,-,10.00,-
"""
ROSTER = (
    Grade("ada", Student("Lovelace", "Ada", "ada@example.org", "101"), 8.5, 10),
    Grade("kim", Student("Moss", "Kim", "kim@example.org", "102"), None, 10, message="withheld: someone looks at it"),
)


def grades(points: dict[str, float | None]) -> list[Grade]:
    """A class of people about whom nothing else is known."""
    return [Grade(student, Student(), value, 10) for student, value in points.items()]


def cells(content: bytes, delimiter: str = ",") -> list[list[str]]:
    """The rows of a file, as Python's own reader has them."""
    return list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True))


def filled(
    text: str | bytes,
    tmp_path: Path,
    known: list[Grade] | tuple[Grade, ...] = ROSTER,
    format_: str = "canvas",
    **more: str,
) -> Filled:
    """What comes of a sheet."""
    file = tmp_path / "sheet.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return fill(known, "tiny", "Tiny", format_, file, **more)


# ------------------------------------------------------------------------------------------------ formulas

FORMULAS = [
    "=1+1", "=cmd|' /C calc'!A0", "@SUM(A1)", "+cmd", "-cmd", "\t=1", "\rcmd", "\n=1", " =1", "a,=1", "a;=1", 'x"\n=1', "a\t@b",
    "\uff1d1+1", "-2+3+cmd|' /C calc'!A0", "=", "'x;=1",
]  # fmt: skip
wild = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8) | st.text(
    "=+-@,;|\t\r\n' \"a1\uff1d", max_size=6
)


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_become_text(text: str) -> None:
    """OWASP's examples, behind a separator too, get an apostrophe, and nothing else changes."""
    safe = harmless(text)
    assert safe != text
    assert safe.replace("'", "") == text.replace("'", "")


@pytest.mark.parametrize(
    "text", ["", "-", "-1.5", "+3", "12,5", "O'Hara, Pat", 'the "best"', "a-b", "x@example.org", "1=1"]
)
def test_what_is_no_formula_stays(text: str) -> None:
    """Names, numbers, addresses and the hyphen that stands for no grade are as they were."""
    assert harmless(text) == text


@settings(deadline=None)
@given(wild)
def test_no_cell_begins_a_formula_wherever_it_is_cut(text: str) -> None:
    """Whatever a program takes for the end of a cell, nothing behind it begins a formula; doing it twice changes nothing."""
    safe = harmless(text)
    assert harmless(safe) == safe
    if not re.fullmatch(r"\s*([+-]?\d+([.,]\d+)?|-)?\s*", safe, re.ASCII):
        assert not safe.startswith(("\t", "\r", "\n"))
        parts = re.split(r"[,;|\t\r\n]", safe)
        assert not [part for part in parts if part.lstrip().startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20"))]


# ------------------------------------------------------------------------------------------------ new sheets


def test_a_new_canvas_sheet_has_canvas_own_columns() -> None:
    """Canvas wants its five columns, the assignment and the points possible; who has no grade has an empty cell."""
    done = fill(ROSTER, "tiny", "Tiny", "canvas")
    assert cells(done.content) == [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "tiny"],
        ["    Points Possible", "", "", "", "", "10"],
        ["Lovelace, Ada", "101", "", "ada", "", "8.5"],
        ["Moss, Kim", "102", "", "kim", "", ""],
    ]
    assert done.messages == ["kim: withheld: someone looks at it"]


def test_a_new_moodle_sheet_has_an_identifier_and_a_grade() -> None:
    """What Moodle's import maps: user name, address and the grade."""
    assert cells(fill(ROSTER, "tiny", "Tiny", "moodle", column="Exercise 1").content) == [
        ["Username", "First name", "Last name", "Email address", "Exercise 1"],
        ["ada", "Ada", "Lovelace", "ada@example.org", "8.5"],
        ["kim", "Kim", "Moss", "kim@example.org", ""],
    ]


def test_names_are_quoted_and_formulas_told() -> None:
    """Commas, quotes and line breaks survive; a formula is made text, with a message."""
    known = [*grades({'the "best", I': 1, "=cmd|' /C calc'!A0": 2}), Grade("x", Student("=1", "a\nb"), 3.0, 10)]
    done = fill(known, "tiny", "Tiny", "csv")
    rows = cells(done.content)
    assert [row[0] for row in rows[1:]] == ['the "best", I', "'=cmd|' /C calc'!A0", "x"]
    assert rows[3][1:3] == ["'=1", "a\nb"]
    assert sum("could be taken for a formula" in message for message in done.messages) == 2
    assert done.content.startswith(b'"student","last_name",')


@pytest.mark.parametrize(
    ("points", "text"),
    [(0.0, "0"), (8.5, "8.5"), (10.0, "10"), (1 / 3, "0.33"), (1234567.891, "1234567.89"), (0.001, "0")],
)
def test_points_have_two_decimals_at_most(points: float, text: str) -> None:
    """As Canvas and Moodle keep them; no exponent, and 0 is a grade."""
    assert sheet.number_text(points) == text
    assert sheet.same(text, points)


# ------------------------------------------------------------------------------------------------ sheets that exist


def test_a_canvas_export_is_filled_in(tmp_path: Path) -> None:
    """Only cells of the assignment's column change; what has no grade here, and who is a stranger, stays and is told."""
    done = filled(CANVAS, tmp_path)
    before, after = cells(CANVAS.encode()), cells(done.content)
    assert after[2] == [*before[2][:5], "8.5", *before[2][6:]]
    assert [row for number, row in enumerate(after) if number != 2] == [
        row for number, row in enumerate(before) if number != 2
    ]
    assert [(each.student, each.there, each.here) for each in done.changes] == [("ada", "", "8.5")]
    said = "\n".join(done.messages)
    assert "line 4: kim has no grade here; the sheet's '7' is left." in said
    assert "line 5: '999', '1f2e' is not in this course. The row is left as it is." in said
    assert done.lost == 0


def test_a_moodle_worksheet_is_filled_in(tmp_path: Path) -> None:
    """The offline grading worksheet keeps the columns that Moodle wants back; found by ID number or e-mail address."""
    both = [ROSTER[0], Grade("kim", Student(email="KIM@example.org"), 0.0, 10)]
    done = filled(MOODLE, tmp_path, both, "moodle")
    assert [row[5] for row in cells(done.content)] == ["Grade", "8.5", "0"]
    assert [(each.student, each.there) for each in done.changes] == [("ada", ""), ("kim", "-")]


@pytest.mark.parametrize("title", ["tiny", "Tiny", "Assignment: Tiny (Real)", "Assignment:tiny (Real)"])
def test_moodles_gradebook_columns_are_known(tmp_path: Path, title: str) -> None:
    """The gradebook's own export names a column by kind, item and form of the grade."""
    done = filled(f"Username,Email address,{title}\nada,a@b,-\n", tmp_path, ROSTER[:1], "moodle")
    assert cells(done.content)[1][2] == "8.5"


def test_a_student_without_a_row_is_told_and_counts(tmp_path: Path) -> None:
    """A grade that finds no row is lost to the sheet: the command ends with 1."""
    known = [*ROSTER, *grades({"bob": 3.0, "eve": None})]
    done = filled(CANVAS, tmp_path, known)
    assert done.lost == 1
    assert any(message.startswith("bob has 3 points and no row in ") for message in done.messages)
    assert not any(message.startswith("eve has") for message in done.messages)


def test_another_scale_and_an_excuse_are_told(tmp_path: Path) -> None:
    """Points possible that differ are no silent percentages; who is excused in Canvas stays so."""
    text = CANVAS.replace(",,,10,5", ",,,100,5").replace("ada,L1,,3", "ada,L1,EX,3")
    text = text.replace("Points Possible,,,,,10,", "Points Possible,,,,,100,")
    done = filled(text, tmp_path)
    assert not done.changes
    assert any("has '100' points possible, the gradebook 10" in message for message in done.messages)
    assert any("ada is excused (EX), and stays so." in message for message in done.messages)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "is empty"),
        (b"\xff\xfe\x00", "is not in UTF-8"),
        (b"PK\x03\x04", "is a workbook. Save it as CSV"),
        (b"a\0b", "holds a zero byte"),
        (CANVAS.replace("(17)", '(17"').encode(), "has no column for 'Tiny', 'tiny'. It has: 'Student', 'ID'"),
        (CANVAS.replace('"Moss, Kim",', '"Moss" Kim,').encode(), "line 4: ',' expected after '\"'. Mend the line"),
        (CANVAS.replace("3,30", "3,30,1").encode(), "line 3: 9 cells under 8 columns"),
        (CANVAS.replace("102,,kim@example.org", "101,,").encode(), "has two rows for ada, lines 3 and 4"),
        (CANVAS.replace("102,,kim", "101,,kim").encode(), "line 4: '101', 'kim@example.org' could be ada or kim"),
        (CANVAS.replace("other (18)", "tiny (17)").encode(), "has 2 columns 'tiny (17)'"),
        (
            CANVAS.replace("other (18)", "tiny (18)").encode(),
            "several columns for this grade: 'tiny (17)', 'tiny (18)'",
        ),
        (
            CANVAS.replace(",,,10,5", ",,,(read only),5")
            .replace("Possible,,,,,10", "Possible,,,,,(read only)")
            .encode(),
            "read only",
        ),
        (b"Name,tiny\nada,1\n", "has no column that names students: none of 'ID', 'SIS User ID', 'SIS Login ID'"),
    ],
)
def test_a_sheet_that_cannot_be_used_says_why(tmp_path: Path, text: bytes, says: str) -> None:
    """Files that are no sheets, lines that are torn, rows and columns that stand twice: one clear sentence."""
    with pytest.raises(AutograderError) as error:
        filled(text, tmp_path)
    assert says in str(error.value)
    assert (tmp_path / "sheet.csv").read_bytes() == text


def test_two_students_of_one_address_are_told(tmp_path: Path) -> None:
    """An address that two students have in nbgrader's database decides nothing."""
    twins = [Grade(student, Student(email="same@example.org"), 1.0, 10) for student in ("ada", "kim")]
    with pytest.raises(AutograderError, match="could be ada or kim"):
        filled("Email address,Grade\nsame@example.org,\n", tmp_path, twins, "moodle")


def test_half_a_hundredth_is_the_grade_that_it_was_rounded_to(tmp_path: Path) -> None:
    """0.125 points are written as 0.12, and a second time nothing differs."""
    once = filled("Username,Grade\nada,\n", tmp_path, grades({"ada": 0.125}), "moodle")
    again = filled(once.content, tmp_path, grades({"ada": 0.125}), "moodle")
    assert (again.changes, again.content) == ([], once.content)


def test_other_titles_can_be_named(tmp_path: Path) -> None:
    """A sheet in another language is filled in by the titles of its two columns."""
    done = filled("Matrikel;Note\nada;\n", tmp_path, ROSTER, "moodle", identifier="Matrikel", column="Note")
    assert cells(done.content, ";") == [["Matrikel", "Note"], ["ada", "8.5"]]
    with pytest.raises(AutograderError, match=r"has no column for 'Grad'"):
        filled("Matrikel;Note\nada;\n", tmp_path, ROSTER, "moodle", identifier="Matrikel", column="Grad")


# ------------------------------------------------------------------------------------------------ a second time

students = st.lists(wild.map(str.strip).filter(bool), min_size=1, max_size=5, unique_by=harmless)
points = st.none() | st.floats(0, 1000)


@settings(deadline=None)
@given(students, st.data(), st.sampled_from(sorted(gradesheet.FORMATS)))
def test_a_new_sheet_filled_again_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject, format_: str
) -> None:
    """Whatever students are called, every row is found again, nothing differs, and the bytes are the same."""
    known = grades({name: data.draw(points) for name in names})
    folder = tmp_path_factory.mktemp("sheet")
    once = fill(known, "tiny", "Tiny", format_)
    again = filled(once.content, folder, known, format_)
    assert (again.changes, again.lost, again.content) == ([], 0, once.content)
    assert again.same == sum(grade.points is not None for grade in known)


@settings(deadline=None)
@given(
    students, st.data(), st.sampled_from(sheet.DELIMITERS), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans()
)  # fmt: skip
def test_a_foreign_sheet_keeps_all_but_the_grades(
    tmp_path_factory: pytest.TempPathFactory,
    names: list[str],
    data: st.DataObject,
    delimiter: str,
    end: str,
    bom: bool,
    loose: bool,
) -> None:
    """Whoever wrote it: order, delimiter, line ends, mark and all other cells stay, and filling it again changes no byte."""
    known = grades({name: data.draw(points) for name in names})
    header = ["note", "Username", "Grade", "more"]
    rows = [
        [data.draw(wild), name, data.draw(st.sampled_from(["", "-", "3", "7,5", "x"])), data.draw(wild)]
        for name in names
    ]
    loose = loose and not any("\r" in cell for row in rows for cell in row)  # Python 3.11 forgets to quote those
    text = io.StringIO(newline="")
    quoting: Literal[0, 1] = csv.QUOTE_MINIMAL if loose else csv.QUOTE_ALL
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows([header, *rows])
    content = (b"\xef\xbb\xbf" if bom else b"") + text.getvalue().encode()
    folder = tmp_path_factory.mktemp("sheet")
    once = filled(content, folder, known, "moodle")
    after = cells(once.content, delimiter)
    assert once.content.startswith(b"\xef\xbb\xbf") == bom
    assert after[0] == header
    for row, there, grade in zip(rows, after[1:], known, strict=True):
        assert there[:2] + there[3:] == [harmless(cell) for cell in row[:2] + row[3:]]
        assert there[2] == row[2] if grade.points is None else sheet.same(there[2], grade.points)
    again = filled(once.content, folder, known, "moodle")
    assert (again.changes, again.content) == ([], once.content)


@settings(deadline=None)
@given(st.lists(st.lists(wild, min_size=2, max_size=2), max_size=4))
def test_what_needs_no_change_comes_back_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    """A sheet that was read and not touched is written as it was."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["Username", "Grade"], *rows])
    file = tmp_path_factory.mktemp("sheet") / "x.csv"
    file.write_bytes(text.getvalue().encode())
    read = Sheet.read(file, ["Username", "Grade"])
    assert read.bytes() == file.read_bytes()
    assert read.rows == rows


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """What cannot be written whole is not written: the old file is as it was, and nothing else is left."""
    target = tmp_path / "grades.csv"
    target.write_text("old")
    with pytest.raises(AutograderError, match=r"cannot be written: .*It is as it was"):
        export.write(tmp_path / "none" / "grades.csv", b"new")
    export.write(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["grades.csv"]
    assert target.read_bytes() == b"new"


# ------------------------------------------------------------------------------------------------ the command


def test_grades_go_out_as_the_gradebook_has_them(course: Course) -> None:
    """Late penalty, manual grade and extra credit are in; who is withheld, absent or a formula is told; twice is once."""
    config = course.root / "nbgrader_config.py"
    config.write_text(config.read_text() + "\nc.LateSubmissionPlugin.penalty_method = 'zero'\n")
    for student in ("ada", "late", "O'Hara, Pat", "=cmd|' calc'!A0"):
        course.solve(student, double="def double(n): return 0")
        hour = 13 if student == "late" else 11
        (course.folder(student) / "timestamp.txt").write_text(f"2026-05-01 {hour}:00:00 UTC")
    course.hand_in("broken", b"{")
    with build.quiet_nbgrader(), Gradebook(f"sqlite:///{course.root}/gradebook.db") as book:
        book.update_or_create_assignment("tiny", duedate="2026-05-01 12:00:00")
        book.update_or_create_student("absent", last_name="Gone", first_name="Long", lms_user_id="77")
    course.grade()
    with build.quiet_nbgrader(), Gradebook(f"sqlite:///{course.root}/gradebook.db") as book:
        grade = book.find_grade("check_double", "tiny", "tiny", "ada")
        grade.manual_score, grade.extra_credit, grade.needs_manual_grade = 3.0, 0.5, True
        book.db.commit()
    ran = course.autograder("export", "tiny", "--format", "csv", "--output", "grades.csv")
    assert ran.code == 0, ran.said
    rows = {row["student"]: row for row in csv.DictReader((course.root / "grades.csv").open(newline=""))}
    assert {student: row["points"] for student, row in rows.items()} == {
        "'=cmd|' calc'!A0": "5", "O'Hara, Pat": "5", "absent": "", "ada": "8.5", "broken": "", "late": "0"
    }  # fmt: skip
    assert rows["late"]["late_penalty"] == "5"
    assert rows["absent"]["message"] == "nothing was handed in"
    assert "ada: nbgrader asks for a review" in ran.said
    assert "broken: broken has no grade for tiny:" in ran.said
    assert (course.root / "grades.csv").stat().st_mode & 0o077 == 0
    (course.root / "canvas.csv").write_text(
        "Student,ID,SIS User ID,SIS Login ID,Section,tiny (9)\n    Points Possible,,,,,10\n"
        'Ada,1,,ada,L,\nLate,2,,late,L,0.00\nGone,77,,,L,\nPat,3,,"O\'Hara, Pat",L,4\n'
    )
    before = (course.root / "canvas.csv").read_bytes()
    command = ["export", "tiny", "--format", "canvas", "--sheet", "canvas.csv"]
    dry = course.autograder(*command, "--dry-run")
    assert dry.code == 1, "one grade has no row"
    assert (
        "2 grades to fill in, 1 are there already, 1 have no row (see above). Dry run: nothing was written." in dry.said
    )
    assert re.search(r"ada +│ +– │ +8\.5", dry.said)
    assert re.search(r"O'Hara, Pat +│ +4 │ +5", dry.said)
    assert (course.root / "canvas.csv").read_bytes() == before
    wet = course.autograder(*command, "--output", "canvas.csv")
    assert wet.said.replace("canvas.csv is written", "Dry run: nothing was written") == dry.said
    after = (course.root / "canvas.csv").read_bytes()
    again = course.autograder(*command, "--output", "canvas.csv")
    assert "0 grades to fill in, 3 are there already, 1 have no row" in again.said
    assert (course.root / "canvas.csv").read_bytes() == after
    with sqlite3.connect(course.root / "gradebook.db") as database:
        assert database.execute("SELECT count(*) FROM grade").fetchone()[0] == 8, "giving out changes nothing"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tiny", "--format", "csv"], "Where to? Give the file with --output"),
        (["tiny", "--format", "xls", "-o", "x"], "Unknown format 'xls'. Use one of: csv, canvas, moodle, junit."),
        (["tiny", "--format", "csv", "-o", "x"], "Nobody is in nbgrader's database, and nobody has handed in tiny"),
        (["tiny", "--format", "junit", "-o", "x"], "Nobody has handed in tiny; there is nothing to export"),
        (["none", "--format", "csv", "-o", "x"], "There is no assignment 'none'"),
    ],
)
def test_what_cannot_be_exported_says_why(course: Course, arguments: list[str], says: str) -> None:
    """Missing files, unknown words and an empty class are sentences; nothing is written."""
    ran = course.autograder("export", *arguments)
    assert ran.code == 1
    assert ran.said.startswith("autograder: ")
    assert says in " ".join(ran.said.split())
    assert not (course.root / "x").exists()
