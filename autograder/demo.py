"""The whole way, on real components: a course, nbgrader's exchange, a class of eight, grades, gradebook, feedback pages."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from rich.console import Console
from traitlets.config import Config

from autograder import suite
from autograder.authoring import build, corpus
from autograder.courses import course
from autograder.errors import AutograderError
from autograder.runs import run
from autograder.runs.progress import Steps

__all__ = ["run_demo"]

NAME = "kv_cache"
COURSE = "inference"
WRONG, HOSTILE = 3, 1
NAMES = ("ada", "barbara", "claude", "donald", "edsger", "frances", "grace", "mallory")


class DemoError(AutograderError):
    """A station of the demo failed."""


def run_demo(folder: Path | None, isolation: str, steps: Steps, console: Console) -> int:
    """Show everything, and compare every grade with what it must be. Gives the exit status."""
    began = time.monotonic()
    root = Path(folder or tempfile.mkdtemp(prefix="autograder-demo-")).resolve()
    assignment = suite.load_assignment(NAME)
    entries = dict(zip(NAMES, _class(), strict=True))
    exchange = root / "exchange"
    exchange.mkdir(parents=True, exist_ok=True)
    exchange.chmod(0o777)
    teaching = root / "course"
    with steps.step("building and making the course", 2) as progress:
        if different := build.differences(NAME):
            raise DemoError(f"assignments/{NAME} is not up to date ({', '.join(different)}); run `autograder build`.")
        progress.advance("assignments/ is up to date")
        course.init(teaching, [NAME], course_id=COURSE, exchange=exchange, isolation=isolation)
        progress.advance("course made, release generated")
    api = course.api(teaching)
    with steps.step("releasing, submitting, collecting", len(entries) + 2) as progress:
        _nbgrader(api.release_assignment(NAME))
        progress.advance("released to the exchange")
        for student, entry in entries.items():
            _submit(root / "home" / student, exchange, student, entry)
            progress.advance(f"{student} fetched, worked and submitted ({entry.kind}/{entry.name})")
        _nbgrader(api.collect(NAME))
        progress.advance("collected")
    outcome = run.grade_course(
        NAME, teaching, students=[], force=False, isolation=isolation, enter=True, workers=0, steps=steps
    )
    with steps.step("feedback", 3) as progress:
        _nbgrader(api.generate_feedback(NAME))
        progress.advance("generated")
        _nbgrader(api.release_feedback(NAME))
        progress.advance("released")
        pages = {student: _fetch_feedback(root / "home" / student, exchange, student) for student in entries}
        progress.advance("fetched by every student")
    run.print_grades(outcome, console)
    complaints = []
    by_student = {graded.student: graded for graded in outcome.graded}
    for student, entry in entries.items():
        console.print(f"{student} ({entry.kind}/{entry.name}): {pages[student]}", highlight=False, soft_wrap=True)
        complaints += (
            corpus.complaints(entry, by_student[student]) if student in by_student else [f"{student} was not graded"]
        )
        book = outcome.book.get(student)
        expected = corpus.expected_points(entry, assignment)
        if book is None or book.total != expected:
            complaints.append(f"{student}: the gradebook says {book and book.total}, it should be {expected}")
    for complaint in complaints:
        console.print(f"[red]✗[/red] {complaint}", highlight=False, markup=False)
    good = not complaints and outcome.code == 0
    console.print(
        f"{'Every grade is as it should be' if good else 'Something is wrong, see above'}. "
        f"Grading took {outcome.seconds:.1f} s, everything {time.monotonic() - began:.1f} s. The course: {teaching}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    return 0 if good else 1


def _class() -> list[corpus.Entry]:
    """Reference, two right ones, the stub, three wrong ones, a hostile one."""
    entries = corpus.load(NAME)
    right = [entry for entry in entries if entry.kind == "right" and entry.name != "reference"][:2]
    wrong = [entry for entry in entries if entry.kind == "wrong" and entry.name != "stub"]
    step = max(1, len(wrong) // WRONG)
    hostile = [entry for entry in entries if entry.kind == "hostile"][:HOSTILE]
    return [corpus.reference(NAME), *right, corpus.stub(NAME), *wrong[::step][:WRONG], *hostile]


def _student(home: Path, exchange: Path, student: str, action: str) -> None:
    """What the student's Assignments tab does: FetchAssignment, Submit or FetchFeedback of nbgrader's exchange."""
    from nbgrader.apps import NbGraderAPI
    from nbgrader.utils import capture_log

    config = Config()
    config.CourseDirectory.root = str(home)
    config.CourseDirectory.course_id = COURSE
    config.CourseDirectory.student_id = student
    config.Exchange.root = str(exchange)
    config.Exchange.assignment_dir = str(home)
    config.Exchange.cache = str(home / ".cache")
    config.CourseDirectory.assignment_id = NAME
    with build.quiet_nbgrader():
        api = NbGraderAPI(config=config)
        app = getattr(api.exchange, action)(coursedir=api.coursedir, authenticator=api.authenticator, parent=api)
        _nbgrader(capture_log(app))


def _submit(home: Path, exchange: Path, student: str, entry: corpus.Entry) -> None:
    """Fetch through the exchange, put the answers into the notebook, submit through the exchange."""
    home.mkdir(parents=True, exist_ok=True)
    _student(home, exchange, student, "FetchAssignment")
    path = home / NAME / f"{NAME}.ipynb"
    fetched = nbformat.read(path, as_version=4)
    for cell in fetched.cells:
        if named := cell.metadata.get("task") or cell.metadata.get("helpers"):
            cell.source = entry.answers[named]
    path.chmod(0o644)
    nbformat.write(fetched, path)
    _student(home, exchange, student, "Submit")


def _fetch_feedback(home: Path, exchange: Path, student: str) -> Path | None:
    """The page that the student gets with nbgrader's fetch_feedback."""
    _student(home, exchange, student, "FetchFeedback")
    return next(iter(sorted((home / NAME / "feedback").rglob("*.html"))), None)


def _nbgrader(outcome: dict[str, Any]) -> None:
    if not outcome["success"]:
        raise DemoError(f"nbgrader: {outcome.get('error', '')}{outcome.get('log', '')}")
