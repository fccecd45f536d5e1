"""nbgrader's gradebook as a projection of our results. The only module that touches its database."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from nbgrader.api import Gradebook, MissingEntry

from autograder import build, course, results
from autograder.grade import Score
from autograder.grading import Graded

__all__ = ["Entered", "Recorded", "enter", "recorded"]

CELL = "check_"
"""Prefix of the grade cells' ids; the rest is the task."""


@dataclass(frozen=True)
class Recorded:
    """What the gradebook says about one submission. `points` has the automatic points of each task."""

    points: dict[str, float | None]
    total: float
    max_total: float
    late_penalty: float
    manual: bool
    """A person has overridden a score."""


@dataclass(frozen=True)
class Entered:
    """What entering one result came to: entered, unchanged, or the reason why not."""

    student: str
    fresh: bool
    problem: str = ""


def recorded(folder: Path, name: str) -> dict[str, Recorded]:
    """The gradebook's state of assignment `name`, by student."""
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
            found[submission.student.id] = Recorded(
                points={grade.name.removeprefix(CELL): grade.auto_score for grade in grades if grade.name.startswith(CELL)},
                total=submission.score - submission.late_submission_penalty,
                max_total=submission.max_score,
                late_penalty=submission.late_submission_penalty,
                manual=any(grade.manual_score is not None for grade in grades),
            )
        return found


def enter(folder: Path, name: str, graded: Iterable[Graded], done: Callable[[Entered], None], *, force: bool = False) -> None:
    """Run nbgrader's own autograde for every grade that the gradebook does not hold yet. `done` gets each in turn.

    Withheld grades are not entered. An interrupted run leaves whole students only.
    """
    api = course.api(folder)
    state = recorded(folder, name)
    for each in graded:
        if each.score is None or each.result is None or each.score.withheld:
            continue
        stem = results.key(each.result.submission_hash, each.result.suite_hash, each.result.tier)
        if not force and _holds(folder, name, each.student, stem, each.score, state.get(each.student)):
            done(Entered(each.student, fresh=False))
            continue
        with build.quiet_nbgrader() as log:
            outcome = api.autograde(name, each.student, force=True)
        problem = "" if outcome["success"] else _last_words(str(outcome.get("log", "")) + log.getvalue())
        done(Entered(each.student, fresh=True, problem=problem))


def _holds(folder: Path, name: str, student: str, stem: str, scored: Score, state: Recorded | None) -> bool:
    """Whether the gradebook and the autograded copy show this very result, for the submission as it was collected last."""
    if state is None or state.points != {task.task: task.points for task in scored.tasks}:
        return False
    autograded = folder / "autograded" / student / name
    try:
        notebook = json.loads((autograded / f"{name}.ipynb").read_bytes())
        if notebook["metadata"]["autograder"]["result"] != stem:
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return _timestamp(autograded) == _timestamp(folder / "submitted" / student / name)


def _timestamp(folder: Path) -> bytes | None:
    try:
        return (folder / "timestamp.txt").read_bytes()
    except OSError:
        return None


def _db_url(folder: Path) -> str:
    from nbgrader.coursedir import CourseDirectory

    url: str = CourseDirectory(config=course.load_config(folder)).db_url
    return url


def _last_words(log: str) -> str:
    """The line of nbgrader's log that says what went wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "Withheld" in line or "Error" in line]
    return (errors or lines or ["nbgrader gave no reason"])[-1][:500]
