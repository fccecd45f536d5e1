"""nbgrader's gradebook as a projection of our results. The only module that touches its database."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbgrader.api import Gradebook, MissingEntry
from nbgrader.preprocessors import AssignLatePenalties
from nbgrader.utils import parse_utc
from sqlalchemy import make_url
from sqlalchemy import text as sql
from sqlalchemy.exc import SQLAlchemyError

from autograder import results
from autograder.authoring import build
from autograder.courses import course, intake
from autograder.courses.spread import WorkFailed, spread
from autograder.grade import Graded, Score
from autograder.pages import feedback
from autograder.results import Result

if TYPE_CHECKING:
    from autograder.signing import PublicKey

__all__ = [
    "Entered",
    "Recorded",
    "RecordedTask",
    "Student",
    "enter",
    "forecast",
    "maxima",
    "recorded",
    "shown",
    "students",
]

CELL = "check_"
"""Prefix of the grade cells' ids; the rest is the task."""
BUSY = r"locked|lock timeout|deadlock"
"""What a database says that somebody else works with."""
# PostgreSQL waits for ever for what somebody else has locked; SQLite gives up after 5 s.
os.environ.setdefault("PGOPTIONS", "-c lock_timeout=10s")
# nbgrader tells this logger what we tell in a sentence; without any handler Python would print it.
logging.getLogger("tornado.application").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class RecordedTask:
    """What the gradebook says about one task. A manual score counts in place of the automatic one."""

    automatic: float | None
    manual: float | None
    extra_credit: float | None
    max_points: float
    needs_review: bool
    """nbgrader asks for a person to look at it."""

    @property
    def points(self) -> float:
        """Without late penalty. As nbgrader has it: no extra credit where there is no score at all."""
        scored = self.automatic if self.manual is None else self.manual
        return 0.0 if scored is None else scored + (self.extra_credit or 0.0)


UNSCORED = RecordedTask(None, None, None, 0.0, needs_review=False)


@dataclass(frozen=True)
class Recorded:
    """What the gradebook says about one submission."""

    tasks: dict[str, RecordedTask]
    total: float
    """With manual scores, extra credit and late penalty; never below 0, as in nbgrader's own export."""
    max_total: float
    late_penalty: float

    @property
    def points(self) -> dict[str, float | None]:
        """The automatic points of each task."""
        return {name: task.automatic for name, task in self.tasks.items()}

    @property
    def manual(self) -> bool:
        """Whether a person has overridden a score."""
        return any(task.manual is not None for task in self.tasks.values())


@dataclass(frozen=True)
class Student:
    """What nbgrader's database says about a person; empty where it says nothing."""

    last_name: str = ""
    first_name: str = ""
    email: str = ""
    lms: str = ""
    """The id in a learning management system."""


@dataclass(frozen=True)
class Entered:
    """What entering one result came to: entered, unchanged, or the reason why not."""

    student: str
    fresh: bool
    problem: str = ""


def recorded(folder: Path, name: str) -> dict[str, Recorded]:
    """What the gradebook says of assignment `name`, by student; nobody without a score. Raises `CourseError`."""
    with _usable(folder):
        return _recorded(folder, name)


def students(folder: Path) -> dict[str, Student]:
    """Everybody in nbgrader's database. Raises `CourseError`."""
    with _usable(folder), build.quiet_nbgrader(), Gradebook(_db_url(folder)) as book:
        return {
            student.id: Student(
                student.last_name or "", student.first_name or "", student.email or "", student.lms_user_id or ""
            )
            for student in book.students
        }


@contextlib.contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Turn what a database can have into a `CourseError`."""
    try:
        yield
    except SQLAlchemyError as error:
        why = str(error.__cause__ or error).splitlines()[0]
        raise course.CourseError(
            f"nbgrader's gradebook {make_url(_db_url(folder)).render_as_string()} cannot be used: {why}. {_mend(why)}"
        ) from error


def _mend(why: str) -> str:
    """What to do about what a database said."""
    remedy = "close what else works with the gradebook" if re.search(BUSY, why) else "make room or mend the gradebook"
    return f"Results are stored: {remedy}, then run the same command again."


def _try_writing(folder: Path) -> None:
    """Raise `CourseError` if the gradebook takes nothing now: it is locked or read-only, or the disk is full."""
    with _usable(folder), build.quiet_nbgrader(), Gradebook(_db_url(folder)) as book:
        book.db.execute(sql("UPDATE assignment SET id = id"))
        book.db.commit()


def _recorded(folder: Path, name: str) -> dict[str, Recorded]:
    config = course.load_config(folder)
    course_id = config.CourseDirectory.get("course_id", "")
    with build.quiet_nbgrader(), Gradebook(_db_url(folder), course_id) as book:
        try:
            submissions = book.assignment_submissions(name)
        except MissingEntry:
            return {}
        found = {}
        for submission in submissions:
            grades = [grade for notebook in submission.notebooks for grade in notebook.grades]
            if all(grade.auto_score is None and grade.manual_score is None for grade in grades):
                continue  # nbgrader notes a submission before it knows whether there is a score
            found[submission.student.id] = Recorded(
                tasks={
                    grade.name.removeprefix(CELL): RecordedTask(
                        automatic=grade.auto_score,
                        manual=grade.manual_score,
                        extra_credit=grade.extra_credit,
                        max_points=grade.max_score,
                        needs_review=grade.needs_manual_grade,
                    )
                    for grade in grades
                    if grade.name.startswith(CELL)
                },
                total=max(0.0, submission.score - submission.late_submission_penalty),
                max_total=submission.max_score,
                late_penalty=submission.late_submission_penalty,
            )
        return found


def enter(
    folder: Path,
    name: str,
    graded: Iterable[Graded],
    isolation: str,
    done: Callable[[Entered], bool],
    *,
    signer: PublicKey | None = None,
    force: bool = False,
    keep_reviews: bool = False,
    processes: int = 1,
) -> None:
    """Run nbgrader's own autograde for every grade that the gradebook does not hold yet, in so many `processes` at once.

    `done` gets each as it is entered and says whether to go on. Withheld grades, those made below the level `isolation` and
    those not signed by `signer` (or by the course's own key) are not entered. An interrupted run leaves whole students only.
    nbgrader asks for a review of every manual score whenever it grades; with `keep_reviews` it asks as it did before.
    Raises `CourseError` when the gradebook takes nothing.
    """
    state = recorded(folder, name)
    fresh: list[str] = []
    for each in graded:
        if each.score is None or each.result is None or each.score.withheld:
            continue
        if force or not _holds(folder, name, each.result, each.score, state.get(each.student)):
            fresh.append(each.student)
        elif not done(Entered(each.student, fresh=False)):
            return
    api = course.api(folder, isolation, signer)

    def work(number: int) -> str:
        before = state.get(fresh[number]) if keep_reviews else None
        return _enter_one(api, folder, name, fresh[number], before)

    again: list[str] = []
    try:
        with contextlib.closing(spread(len(fresh), work, processes)) as found:
            for number, problem in found:
                if problem and processes > 1 and re.search(BUSY, problem):
                    again.append(fresh[number])  # some other process of ours may have been the reason
                elif not done(Entered(fresh[number], fresh=True, problem=problem)):
                    return
    except WorkFailed as error:
        raise course.CourseError(str(error)) from None
    for student in again:
        if not done(Entered(student, fresh=True, problem=work(fresh.index(student)))):
            return


def _enter_one(api: Any, folder: Path, name: str, student: str, before: Recorded | None) -> str:
    """Enter one grade, with the marks for review as `before` if that is given; gives what kept it from being entered.

    Raises `CourseError` when the gradebook takes nothing.
    """
    if problem := _obstacle(folder / "submitted" / student / name, name):
        return problem
    with build.quiet_nbgrader() as log:
        outcome = api.autograde(name, student, force=True)
    if not outcome["success"]:
        _try_writing(folder)  # else every other student would wait for the same
        return _reason(f"{outcome.get('log', '')}{log.getvalue()}{outcome.get('error', '')}")
    if before:
        _keep_reviews(folder, name, before, student)
    return ""


def _keep_reviews(folder: Path, name: str, before: Recorded, student: str) -> None:
    """Give manual scores the mark for review that they had."""
    with _usable(folder), build.quiet_nbgrader(), Gradebook(_db_url(folder)) as book:
        for task, was in before.tasks.items():
            if was.manual is not None:
                with contextlib.suppress(MissingEntry):
                    book.find_grade(f"{CELL}{task}", name, name, student).needs_manual_grade = was.needs_review
        book.db.commit()


def maxima(folder: Path, name: str) -> dict[str, float]:
    """What each task is worth in the gradebook; nothing if it does not know the assignment. Raises `CourseError`."""
    with _usable(folder), build.quiet_nbgrader(), Gradebook(_db_url(folder)) as book:
        try:
            cells = [cell for notebook in book.find_assignment(name).notebooks for cell in notebook.grade_cells]
        except MissingEntry:
            return {}
        return {cell.name.removeprefix(CELL): cell.max_score for cell in cells if cell.name.startswith(CELL)}


def forecast(folder: Path, name: str, graded: Iterable[Graded]) -> dict[str, float]:
    """The totals that the gradebook would have if `graded` were entered, by student; withheld grades are left out.

    Manual scores and extra credit count as they stand there; the course's own plug-in is asked for late penalties.
    Raises `CourseError`.
    """
    state = recorded(folder, name)
    late = AssignLatePenalties(config=course.load_config(folder))
    late.init_plugin()
    found = {}
    with _usable(folder), build.quiet_nbgrader(), Gradebook(_db_url(folder)) as book:
        for each in graded:
            if each.score is None or each.score.withheld:
                continue
            before = state.get(each.student)
            tasks = before.tasks if before else {}
            points = math.fsum(
                dataclasses.replace(tasks.get(task.task, UNSCORED), automatic=task.points).points
                for task in each.score.tasks
            )
            seconds = _seconds_late(book, folder / "submitted" / each.student / name, name, each.student)
            penalty = late.plugin_inst.late_submission_penalty(each.student, points, seconds) if seconds > 0 else None
            found[each.student] = max(0.0, points - min(max(penalty or 0.0, 0.0), points))
    return found


def _seconds_late(book: Gradebook, submitted: Path, name: str, student: str) -> float:
    """How late nbgrader takes what lies in `submitted` to be."""
    try:
        submission = book.find_submission(name, student)
        due, at = submission.duedate if submission.assignment.duedate else None, submission.timestamp
    except MissingEntry:
        try:
            due, at = book.find_assignment(name).duedate, None
        except MissingEntry:
            return 0.0
    if said := (_timestamp(submitted) or b"").strip():
        with contextlib.suppress(ValueError, OverflowError):  # `_obstacle` tells of it
            at = parse_utc(said.decode())
    return max(0.0, (at - due).total_seconds()) if at and due else 0.0


def _obstacle(submitted: Path, name: str) -> str:
    """Why nbgrader could not enter this submission, if it could not."""
    student = submitted.parent.name
    if student != student.strip() or set("[]*?") & set(student):
        why = "nbgrader takes the name for a pattern or cuts its spaces, and finds nobody."
        return f"{why} Rename the folder, then grade again."
    if intake.UNSAFE.search(student):
        return f"Not entered, for {intake.MARKUP}. Rename the folder, then grade again."
    if not (submitted / f"{name}.ipynb").is_file():
        return (
            f"Only {name}.py was handed in, and nbgrader enters notebooks. Make one from it, then grade again: "
            f"autograder sync {shlex.quote(f'{submitted / name}.py')}"
        )
    if said := _timestamp(submitted):
        try:
            parse_utc(said.decode().strip() or "2000-01-01")
        except (ValueError, OverflowError):
            return "timestamp.txt holds no time. Put the time at which it was handed in there, then grade again."
    return ""


def _holds(folder: Path, name: str, result: Result, scored: Score, state: Recorded | None) -> bool:
    """Whether the gradebook and the autograded copy show this very result, for the submission as it was collected last."""
    if state is None or state.points != {task.task: task.points for task in scored.tasks}:
        return False
    known, shown = _autograded(folder, name, result.student)
    if known != results.key_of(result):
        return False
    if shown != {feedback.task_html(result, task) for task in scored.tasks}:
        return False  # of another run of the same submission: what came after that was interrupted
    times = [_timestamp(folder / place / result.student / name) for place in ("autograded", "submitted")]
    return times[0] == times[1]


def shown(folder: Path, name: str, student: str) -> str | None:
    """The name (`results.key`) of the result that the autograded copy of a submission shows; `None` if there is none."""
    return _autograded(folder, name, student)[0]


def _autograded(folder: Path, name: str, student: str) -> tuple[str | None, set[str]]:
    """The result that an autograded copy names, and the findings that it shows."""
    try:
        notebook = json.loads((folder / "autograded" / student / name / f"{name}.ipynb").read_bytes())
        known = notebook["metadata"]["autograder"]["result"]
        outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
        return str(known), {"".join(output["data"]["text/html"]) for output in outputs}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, set()


def _timestamp(folder: Path) -> bytes | None:
    try:
        return (folder / "timestamp.txt").read_bytes()
    except OSError:
        return None


def _db_url(folder: Path) -> str:
    from nbgrader.coursedir import CourseDirectory

    url: str = CourseDirectory(config=course.load_config(folder)).db_url
    return url


def _reason(log: str) -> str:
    """What went wrong, from nbgrader's log with its tracebacks: the last exception that is not nbgrader's summary."""
    kinds = r"\w*(?:Error|Exception|Withheld|Interrupt|Missing\w+)"
    raised = re.findall(rf"^(?:\w+\.)*({kinds}): ?(.*)$", log, re.MULTILINE)
    said = [(kind, text) for kind, text in raised if not text.startswith("Please see the")]
    if not said:
        return "nbgrader gave no reason; its log is shown by `nbgrader autograde`."
    kind, text = map(str, said[-1])
    if kind == "Withheld":
        return text[:500]
    remedy = "`nbgrader autograde` shows its whole log."
    if text.startswith("No assignment with ID"):
        remedy = "Put it into the course: `autograder init`."
    elif kind == "OperationalError":
        remedy = _mend(text)
    return f"nbgrader failed with {kind}{': ' if text else ''}{text[:500]}. {remedy}"
