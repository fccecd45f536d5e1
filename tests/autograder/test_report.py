"""`autograder report`: the pages of a real course, and the figures beside them."""

from __future__ import annotations

import csv
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest

if TYPE_CHECKING:
    from conftest import Course, Ran


@dataclass
class Reported:
    """A graded course after the command. `folder` has the pages."""

    course: Course
    ran: Ran
    folder: Path


@pytest.fixture(scope="module")
def reported(tiny: Course, tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """All right, half, nothing, unreadable, a result that was changed, one whose copy is gone; names that are formulas."""
    course = tiny.copy(tmp_path_factory.mktemp("report") / "own")
    course.solve("ada")
    course.solve("=1+1", layers="def layers(n): return 0")
    course.solve("#50% ?", double="x = 1", layers="x = 2")
    for student in ("changed", "gone"):
        course.solve(student, double=f"def double(n): return '{student}'")
    course.hand_in("broken", b"{")
    course.grade()
    for file in course.results("changed"):
        file.write_bytes(file.read_bytes().replace(b"FAILED", b"PASSED"))
    (gone,) = course.results("gone")
    copy = re.search(r'"submission_copy": "(\w+)"', gone.read_text())
    assert copy is not None
    (course.root / "results" / ".submissions" / f"{copy[1]}.json").unlink()
    ran = course.autograder("report", "tiny", "--plain")
    assert ran.code == 0, ran.said
    return Reported(course, ran, course.root / "reports" / "tiny")


def test_it_says_where_the_page_is_and_what_is_open(reported: Reported) -> None:
    """The path stands alone in its line; who has no grade is counted."""
    assert str(reported.folder / "index.html") in reported.ran.said.splitlines()
    assert "6 submissions, 4 graded, 2 open." in reported.ran.said


def test_every_result_has_a_page_and_every_link_leads_to_one(reported: Reported) -> None:
    """Names that mean something in addresses lead to their pages too."""
    index = (reported.folder / "index.html").read_text(encoding="utf-8")
    linked = {unquote(each) for each in re.findall(r'<a href="(students/[^"]*)"', index)}
    assert linked == {f"students/{student}.html" for student in ("ada", "=1+1", "#50% ?", "gone")}
    for link in linked:
        assert "Where you stand" in (reported.folder / link).read_text(encoding="utf-8")


def test_what_has_no_result_is_told_with_the_reason(reported: Reported) -> None:
    """An unreadable file and a changed result stand in the list of what is open."""
    index = (reported.folder / "index.html").read_text(encoding="utf-8")
    opened = index[index.index('id="open"') : index.index('id="tasks"')]
    assert "autograder grade tiny --student broken" in opened
    assert "was changed after it was written" in opened
    assert "autograder grade tiny --student changed" in opened


def test_the_students_code_stands_in_the_handout(reported: Reported) -> None:
    """The page shows what was judged, in the release's cells; where the copy is gone the findings stay."""
    page = (reported.folder / "students" / "ada.html").read_text(encoding="utf-8")
    assert "def double(n): return n + n" in page
    gone = (reported.folder / "students" / "gone.html").read_text(encoding="utf-8")
    assert "Twice 1" in gone
    assert 'id="notebook"' not in gone


def test_the_figures_are_those_of_the_gradebook(reported: Reported) -> None:
    """The CSV has a line for each submission, and no cell that a spreadsheet computes."""
    with open(reported.folder / "grades.csv", newline="", encoding="utf-8") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"ada", "'=1+1", "#50% ?", "changed", "gone", "broken"}
    points = {student: row["points"] for student, row in rows.items()}
    assert points == {"ada": "10.0", "'=1+1": "5.0", "#50% ?": "0.0", "gone": "5.0", "changed": "", "broken": ""}
    assert rows["ada"]["gradebook"] == "10.0"
    assert rows["ada"]["test_double_big"] == "PASSED"
    assert rows["broken"]["state"] == "not graded"


def test_other_users_cannot_read_the_pages(reported: Reported) -> None:
    """Folders are for their owner alone, files too."""
    for path in [reported.folder.parent, *reported.folder.parent.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_course_without_submissions_is_told_so(course: Course) -> None:
    """A sentence that says what to do first, and no empty page."""
    ran = course.autograder("report", "tiny")
    assert ran.code == 1
    assert "nbgrader collect tiny" in ran.said
    assert not (course.root / "reports").exists()
