"""The command `report`: read what is stored about an assignment, and write its pages.

    reports/<assignment>/index.html               the class
    reports/<assignment>/grades.csv               the same figures for a spreadsheet
    reports/<assignment>/students/<student>.html  each student's page, also of those whose grade is withheld

Reads results, the copies of what was judged and the gradebook; judges nothing and enters nothing. What nbgrader releases to
students is made by `autograder.courses.feedback_export`, from the same results.
"""

from __future__ import annotations

import dataclasses
import os
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat

from autograder import language, results, suite
from autograder.courses import course, feedback_export, gradebook
from autograder.pages import html_pages
from autograder.pages.class_page import ClassPage, Submitted, class_page
from autograder.pages.student_page import Book, Cell, student_page
from autograder.reports.sheet import Sheet, harmless
from autograder.results import Refused, Result
from autograder.runs import run
from autograder.runs.grading import Job, discover, result_file
from autograder.runs.progress import Steps
from autograder.suite import Suite

if TYPE_CHECKING:
    from autograder.courses.gradebook import Recorded
    from autograder.signing import PublicKey

__all__ = ["Written", "write"]

REPORTS, STUDENTS, PAGE, CSV = "reports", "students", "index.html", "grades.csv"


@dataclass(frozen=True)
class Written:
    """Where the class page is, and how many submissions it tells of."""

    page: Path
    submissions: int
    graded: int
    open: int


def write(name: str, start: Path, steps: Steps, lang: str | None = None) -> Written:
    """Write all pages of assignment `name` in the course around `start`; students' pages in `lang`, else the course's.

    Raises `CourseError` and what its parts raise.
    """
    loaded = suite.load(name)
    folder = course.find(start)
    jobs = discover(folder / "submitted", name, loaded.manifest)
    if not jobs:
        raise course.CourseError(
            f"{folder / 'submitted'} holds no submission for {name}. Collect first: `nbgrader collect {name}`."
        )
    spoken = language.load(language.chosen(lang or course.language(folder)), suite.folder(name))
    target = folder / REPORTS / name
    _private(target / STUDENTS)
    for old in (target / STUDENTS).glob("*.html"):
        old.unlink()
    signer, tier = course.public_key(folder), run.tier_of(loaded)
    book, released = gradebook.recorded(folder, name), _released(name)
    submissions = []
    with steps.step(f"pages of {name}", len(jobs)) as progress:
        for job in jobs:
            file, result, problem = _result(loaded, folder, job, tier, signer)
            page = ""
            if result is not None:
                with language.use(spoken):
                    html = _student_html(folder, result, released, book.get(job.student))
                _write(target / STUDENTS / f"{job.student}.html", html)
                page = f"{STUDENTS}/{urllib.parse.quote(job.student)}.html"
            recorded = book.get(job.student)
            submissions.append(
                Submitted(job.student, result, problem, recorded.total if recorded else None, file, page)
            )
            progress.advance(job.student)
        made = class_page(loaded.assignment, submissions)
        _write(target / CSV, _csv(made))
        _write(target / PAGE, html_pages.class_html(made, CSV))
    return Written(target / PAGE, len(jobs), len(made.grades), len(made.open))


def _result(
    loaded: Suite, folder: Path, job: Job, tier: str, signer: PublicKey | None
) -> tuple[str, Result | None, str]:
    """Where the result lies in the course, the result, or why there is none."""
    if job.submission is None:
        return "", None, job.problem
    problem = "It has no result under the present checks."
    for each in dict.fromkeys((tier, "gpu", "cpu")):
        file = result_file(loaded, folder / "results", job, each)
        try:
            if result := results.load(file, signer, at_home=True):
                return file.relative_to(folder).as_posix(), result, ""
        except Refused as error:
            problem = str(error)
    return "", None, problem


def _released(name: str) -> tuple[Cell, ...]:
    """The cells of the release."""
    path = suite.repository() / "assignments" / name / f"{name}.ipynb"
    return tuple(feedback_export.cells(nbformat.read(path, as_version=4)))


def _student_html(folder: Path, result: Result, released: Sequence[Cell], recorded: Recorded | None) -> str:
    """A student's page, with what was judged in the cells of the release."""
    try:
        answers = results.kept(folder / "results", result).answers
        cells = [
            dataclasses.replace(cell, source=answers.get(cell.name or "helpers", ""))
            if cell.kind in ("task", "helpers")
            else cell
            for cell in released
        ]
    except Refused:  # the copy is gone; the findings are not
        cells = []
    book = None
    if recorded:
        book = Book(recorded.total, recorded.late_penalty, {name: task.points for name, task in recorded.tasks.items()})
    return html_pages.student_html(student_page(result, cells, book))


def _csv(page: ClassPage) -> str:
    """One line for each submission: points of tasks, outcomes of checks, and which result that is."""
    checks = [check.name for check in page.assignment.checks]
    made = Sheet.new(
        ["student", "state", "points", "max_points", "gradebook"]
        + [task.name for task in page.assignment.tasks]
        + [*checks, "seconds", "isolation", "submission", "checks"]
    )
    for row in page.rows:
        result = row.submitted.result
        outcomes = {finding.check: str(finding.outcome) for finding in result.findings} if result else {}
        cells = [row.submitted.student, row.state, row.total, page.assignment.points, row.submitted.gradebook]
        cells += [*row.points, *(outcomes.get(check) for check in checks), row.seconds, row.isolation]
        cells += [result.submission_hash, result.suite_hash] if result else [None, None]
        made.rows.append(["" if cell is None else harmless(str(cell)) for cell in cells])
    return made.bytes().decode()


def _private(folder: Path) -> None:
    """Make a folder that other users cannot look into."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in (folder, folder.parent, folder.parent.parent):
        each.chmod(0o700)


def _write(file: Path, text: str) -> None:
    """Write a whole file for this user alone, or leave what was there."""
    new = file.with_name(f".{os.getpid()}.new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8", newline="") as stream:
        stream.write(text)
    new.replace(file)
