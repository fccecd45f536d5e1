"""Everybody in a course with the grade to give out, or the reason why there is none.

Grades are those of nbgrader's gradebook: manual scores, extra credit and late penalties are in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autograder import suite
from autograder.courses import course, gradebook
from autograder.courses.gradebook import Student
from autograder.errors import AutograderError
from autograder.reports import explain

__all__ = ["Grade", "roster"]


@dataclass(frozen=True)
class Grade:
    """One student of the course. Without `points` there is no grade, and `message` says why."""

    student: str
    about: Student
    points: float | None = None
    max_points: float = 0.0
    late_penalty: float = 0.0
    message: str = ""


def roster(name: str, start: Path) -> list[Grade]:
    """Everybody in nbgrader's database or with a submission, by name. Raises `CourseError`, `UnknownAssignment`."""
    most = suite.load_assignment(name).points
    folder = course.find(start)
    book, known = gradebook.recorded(folder, name), gradebook.students(folder)
    judged = explain.explain_class(name, start)
    found = []
    for student in sorted({*known, *book, *judged}):
        recorded = book.get(student)
        found.append(
            Grade(
                student,
                known.get(student, Student()),
                recorded.total if recorded else None,
                recorded.max_total if recorded else most,
                recorded.late_penalty if recorded else 0.0,
                _message(judged.get(student), recorded),
            )
        )
    return found


def _message(judged: explain.Explanation | AutograderError | None, recorded: gradebook.Recorded | None) -> str:
    """What there is to say about a grade, or why there is none."""
    if recorded:
        said = ["nbgrader asks for a review"] if any(task.needs_review for task in recorded.tasks.values()) else []
        if isinstance(judged, explain.Explanation) and judged.newer:
            said.append("handed in anew since; this is the grade of what was handed in before")
        return "; ".join(said)
    if judged is None:
        return "nothing was handed in"
    if isinstance(judged, AutograderError):
        return str(judged)
    if judged.score.withheld:
        return f"withheld: {'; '.join(judged.score.withheld[:5])}"
    return "graded, but not entered into the gradebook: run autograder grade"
