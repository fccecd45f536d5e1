"""What other tools may read: stored results, what `autograder grade --json` prints, and their JSON Schemas.

    autograder/schemas/result.schema.json     results/NAME/STUDENT/*.json
    autograder/schemas/grades.schema.json     autograder grade NAME --json

The schemas (draft 2020-12) are generated from the models and committed: `python -m autograder.schema` writes them, a test
says when they are out of date. Objects have no other members than those named, apart from `machine`, which may grow.

Not covered: that a result is what was written (`autograder verify`), and that points fit findings (`autograder explain`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from autograder import results
from autograder.results import Result

if TYPE_CHECKING:
    from autograder.courses.gradebook import Recorded
    from autograder.runs.run import CourseRun

__all__ = ["FOLDER", "Grades", "StoredResult", "dump", "grades", "schemas", "write"]

FOLDER = Path(__file__).parent / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


class StoredResult(Result):
    """A file of the store: a result, and the digest and signature that end it."""

    signed_by: str | None = Field(None, pattern="^ssh-ed25519 ", description="The public key, if it was signed.")
    signature: str | None = Field(None, description="Ed25519, over every byte before `signed_by`; base64.")
    digest: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of every byte before it.")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskGrade(_Record):
    """Points of one task, as the checks gave them."""

    task: str
    points: float
    max_points: int


class BookGrade(_Record):
    """What nbgrader's gradebook says: with manual scores, extra credit and late penalty."""

    points: float
    max_points: float
    late_penalty: float
    manual: bool = Field(description="A person has overridden a score.")
    needs_review: bool = Field(description="nbgrader asks for a person to look at it.")


class StudentGrade(_Record):
    """One submission. Without points it was withheld, which is no grade of 0."""

    student: str
    status: Literal["graded", "withheld"]
    fresh: bool = Field(description="Judged in this run; otherwise the result was stored before.")
    points: float | None
    max_points: int
    tasks: tuple[TaskGrade, ...] = Field(description="Empty if withheld.")
    withheld: tuple[str, ...] = Field(description="Why there is no grade. May quote the submission.")
    result: str | None = Field(description="Name of the result's file in results/ASSIGNMENT/STUDENT/.")
    not_entered: str = Field(description="Why the gradebook did not take it; empty if it did, or was not asked.")
    refused: str = Field(description="Why the result that was stored before did not count; empty if it did.")
    gradebook: BookGrade | None = Field(description="Null without a grade there.")


class Grades(_Record):
    """What one run of `autograder grade` came to."""

    schema_version: Literal[1] = 1
    assignment: str
    isolation: str = Field(description="The level in force.")
    seconds: float
    stopped: bool = Field(description="By Ctrl-C; the same command goes on from there.")
    waiting: int = Field(description="Submissions that were left to be graded.")
    unentered: int = Field(description="Grades that were left to be entered.")
    students: tuple[StudentGrade, ...] = Field(description="By name.")


def grades(run: CourseRun) -> Grades:
    """A grading run for other tools."""
    students = []
    for each in run.graded:
        scored = each.score if each.status == "graded" else None
        entered, book = run.entered.get(each.student), run.book.get(each.student)
        reasons = each.score.withheld if each.score else (each.problem,)
        students.append(
            StudentGrade(
                student=each.student.encode(errors="backslashreplace").decode(),
                status="graded" if scored else "withheld",
                fresh=each.fresh,
                points=scored.points if scored else None,
                max_points=run.max_points,
                tasks=tuple(
                    TaskGrade(task=task.task, points=task.points, max_points=task.max_points)
                    for task in (scored.tasks if scored else ())
                ),
                withheld=() if scored else reasons,
                result=f"{results.key_of(each.result)}.json" if each.result else None,
                not_entered=entered.problem if entered else "",
                refused=run.refused.get(each.student, ""),
                gradebook=_book(book) if book else None,
            )
        )
    return Grades(
        assignment=run.name,
        isolation=run.isolation,
        seconds=round(run.seconds, 3),
        stopped=run.stopped,
        waiting=run.waiting,
        unentered=run.unentered,
        students=tuple(students),
    )


def dump(found: Grades) -> str:
    """JSON in ASCII, so that any locale prints it and half a surrogate pair, quoted from a submission, is no error."""
    return json.dumps(found.model_dump(mode="json"), indent=1, allow_nan=False)


def _book(book: Recorded) -> BookGrade:
    return BookGrade(
        points=book.total,
        max_points=book.max_total,
        late_penalty=book.late_penalty,
        manual=book.manual,
        needs_review=any(task.needs_review for task in book.tasks.values()),
    )


class _Generator(GenerateJsonSchema):
    """JSON has no NaN and no infinity; the store keeps them as strings (`results._strict`)."""

    def float_schema(self, schema: core_schema.FloatSchema) -> dict[str, Any]:
        return {"anyOf": [super().float_schema(schema), {"enum": ["nan", "inf", "-inf"]}]}


def schemas() -> dict[str, str]:
    """The schema files: name to text."""
    texts = {}
    for name, model in (("result", StoredResult), ("grades", Grades)):
        made = model.model_json_schema(mode="serialization", schema_generator=_Generator)
        texts[f"{name}.schema.json"] = json.dumps({"$schema": DIALECT} | made, indent=1, sort_keys=True) + "\n"
    return texts


def write(folder: Path = FOLDER) -> None:
    """Write the schema files."""
    for name, text in schemas().items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write()
