"""How a grade came about: every check, its points, and the rule that gave them; then what people and nbgrader made of it.

Points are counted from the findings of the stored result, under the spec that is stored with them, by the same `grade.decide`
that graded. For instructors: what hidden checks found is shown.

Not covered: whether the findings are right (`autograder replay` judges again), and what a check does (its source is in the
suite).
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autograder import results, suite
from autograder.courses import course, gradebook
from autograder.courses.gradebook import Recorded
from autograder.errors import AutograderError
from autograder.finding import Finding
from autograder.grade import Decision, Rule, Score, decide, score
from autograder.pages import feedback
from autograder.pages.feedback import points_text
from autograder.results import Result
from autograder.runs import grading
from autograder.spec import Check

__all__ = [
    "ExplainError",
    "Explained",
    "Explanation",
    "explain_class",
    "explain_file",
    "explain_student",
    "print_explanation",
    "why",
]


class ExplainError(AutograderError):
    """There is no grade to explain. The text says why and what next."""


@dataclass(frozen=True)
class Explained:
    """One check: what was found, and what that is worth by which rule."""

    check: Check
    findings: tuple[Finding, ...]
    decision: Decision


@dataclass(frozen=True)
class Explanation:
    """How the grade of one result came about."""

    file: Path
    result: Result
    checks: tuple[Explained, ...]
    score: Score
    present: bool
    """Whether the suite is still the one that judged."""
    book: Recorded | None
    """What the gradebook says of the student; `None` where it says nothing."""
    entered: str | None
    """The name of the result that the gradebook shows."""
    newer: bool = False
    """Something else is handed in now."""

    @property
    def counts(self) -> bool:
        """Whether the gradebook shows this result."""
        return self.book is not None and self.entered == results.key_of(self.result)


def explain_file(file: Path) -> Explanation:
    """Explain the stored result in `file`. Outside a course nothing is said of a gradebook.

    Raises `ExplainError` if there is none, `results.Refused` if it was changed.
    """
    try:
        folder = course.find(file.parent)
    except course.CourseError:
        folder = None
    result = results.load(file, course.public_key(folder) if folder else None)
    if result is None:
        raise ExplainError(
            f"There is no {file}. Give a stored result, results/NAME/STUDENT/....json, or a student and an assignment: "
            "autograder explain STUDENT NAME"
        )
    if folder is None:
        return _explanation(file, result, None, None)
    book = gradebook.recorded(folder, result.assignment).get(result.student)
    return _explanation(file, result, book, gradebook.shown(folder, result.assignment, result.student))


def explain_student(student: str, name: str, start: Path) -> Explanation:
    """Explain the grade of `student` for assignment `name` in the course around `start`.

    That is the result which the gradebook shows; without one, the result of what is handed in under the present suite.
    Raises `ExplainError`, `CourseError`, `UnknownAssignment`, `results.Refused`.
    """
    for found in explain_class(name, start, [student]).values():
        if isinstance(found, Exception):
            raise found
        return found
    folder = course.find(start)
    known = sorted(path.parent.name for path in (folder / "submitted").glob(f"*/{name}"))
    handed_in = f"these did: {', '.join(known[:20])}{' ...' if known[20:] else ''}" if known else "nobody did"
    raise ExplainError(
        f"{student} has handed in nothing for {name} in {folder}; {handed_in}. "
        "The student stands first: autograder explain STUDENT NAME"
    )


def explain_class(name: str, start: Path, students: Sequence[str] = ()) -> dict[str, Explanation | AutograderError]:
    """The same for everybody who has handed in something, or for `students`; by name, with the error in place of what is
    not there. Raises `CourseError`, `UnknownAssignment`.
    """
    loaded = suite.load(name)
    folder = course.find(start)
    signer, book = course.public_key(folder), gradebook.recorded(folder, name)
    found: dict[str, Explanation | AutograderError] = {}
    for job in grading.discover(folder / "submitted", name, loaded.manifest, students):
        entered = gradebook.shown(folder, name, job.student)
        files = [results.path(folder / "results", name, job.student, entered)] if entered else []
        if job.submission is not None:
            files += [grading.result_file(loaded, folder / "results", job, tier) for tier in ("gpu", "cpu")]
        found[job.student] = ExplainError(_ungraded(folder, name, job))
        try:
            for file in files:
                if result := results.load(file, signer, at_home=True):
                    one = _explanation(file, result, book.get(job.student), entered)
                    newer = job.submission is not None and job.submission.hash != result.submission_hash
                    found[job.student] = dataclasses.replace(one, newer=newer)
                    break
        except results.Refused as error:
            found[job.student] = error
    return found


def _ungraded(folder: Path, name: str, job: grading.Job) -> str:
    """Why there is no result of what was handed in."""
    if job.problem:
        return f"{job.student} has no grade for {name}: {job.problem}"
    remedy = f"autograder grade {name} --student {shlex.quote(job.student)}"
    if older := sorted((folder / "results" / name / job.student).glob("*.json")):
        shown = ", ".join(str(path.relative_to(folder)) for path in older[:5])
        return (
            f"What {job.student} handed in for {name} has not been graded under the present suite. There are {len(older)} "
            f"older results ({shown}): give one of them, or grade: {remedy}"
        )
    return f"{job.student} has not been graded for {name}. Grade first: {remedy}"


def explain_checks(result: Result) -> tuple[Explained, ...]:
    """Every check that the result's own spec names, with what is stored about it."""
    by_check: dict[str, list[Finding]] = {}
    for finding in result.findings:
        by_check.setdefault(finding.check, []).append(finding)
    found = ((check, tuple(by_check.get(check.name, ()))) for check in result.spec.checks)
    return tuple(Explained(check, findings, decide(check, findings)) for check, findings in found)


def _explanation(file: Path, result: Result, book: Recorded | None, entered: str | None) -> Explanation:
    try:
        present = suite.load(result.assignment).hash == result.suite_hash
    except (AutograderError, FileNotFoundError):  # the assignment is gone; its results are not
        present = False
    scored = score(result.spec, result.findings, result.withheld)
    return Explanation(file, result, explain_checks(result), scored, present, book, entered)


def why(each: Explained, tier: str) -> Iterator[str]:
    """The rule of a check's points, with the figures that it was applied to."""
    yield f"{each.decision.rule[0].upper()}{each.decision.rule[1:]}."
    threshold = each.check.thresholds.get(tier)
    for finding in each.findings:
        if finding.credit is not None and each.decision.rule is Rule.SHARE:
            yield f"share: {finding.credit:.0%} of {each.check.points} points"
        if threshold and "speedup" in finding.measurements:
            yield (
                f"measured: {finding.measurements['speedup']:.3g} times as fast as the reference; from "
                f"{threshold.ratio:g} on all points, at {threshold.naive:g} none ({threshold.why})"
            )
        for label, text in (
            ("what happened", finding.message),
            ("value", finding.value),
            ("expected", finding.expected),
            ("printed", finding.printed),
        ):
            if text:
                yield f"{label}: {text}"


def print_explanation(found: Explanation, console: Console) -> None:
    """A table for each task, then the sum, what withholds it, and what the gradebook makes of it."""
    result = found.result
    _say(console, f"{result.student}, {result.assignment}: {_sum(found.score)}")
    suite_said = "the present suite" if found.present else "another suite than the present one"
    _say(
        console,
        f"Judged under suite {result.suite_hash[:12]} ({suite_said}), tier {result.tier}, isolation {result.isolation.name} "
        f"(level {result.isolation.level}), seed {result.seed}. Read: {result.source}. Result: {found.file}",
    )
    newer = ["What is handed in now is another version of the submission than was judged."] if found.newer else []
    for remark in (*result.remarks, *newer):
        _say(console, f"Note: {remark}")
    for task in found.score.tasks:
        title = f"{task.task}: {points_text(task.points)} of {task.max_points}"
        table = Table(title=shown(title), title_justify="left", show_lines=True)
        table.add_column("points", justify="right", no_wrap=True)
        table.add_column("check", overflow="fold")
        table.add_column("why", overflow="fold")
        for each in found.checks:
            if each.check.task == task.task:
                table.add_row(*_row(each, result.tier))
        console.print(table)
    for reason in found.score.withheld:
        _say(console, f"Withheld: {reason}")
    for line in _book(found):
        _say(console, line)


def _row(each: Explained, tier: str) -> tuple[Text, Text, Text]:
    finding = each.findings[0] if len(each.findings) == 1 else None
    mark = feedback.MARKS[finding.outcome] if finding else "?"
    kind = "hidden" if each.check.hidden else "public"
    lines = [f"{mark} {each.check.name} ({kind}): {finding.outcome if finding else 'no single finding'}"]
    lines += [finding.sentence] if finding else []
    return (
        Text(f"{points_text(each.decision.points)} / {each.check.points}"),
        shown("\n".join(lines)),
        shown("\n".join(why(each, tier))),
    )


def _sum(scored: Score) -> str:
    total = f"{points_text(scored.points)} of {scored.max_points} points"
    return f"withheld, with {total} so far" if scored.withheld else total


def _book(found: Explanation) -> Iterator[str]:
    """What became of the points in nbgrader's gradebook."""
    if found.book is None:
        yield "The gradebook has no grade of this submission."
        return
    entered = found.entered or "none of ours"
    yield "In the gradebook:" if found.counts else f"The gradebook shows another result than this one ({entered}):"
    for name, task in found.book.tasks.items():
        parts = ["no automatic score" if task.automatic is None else f"{points_text(task.automatic)} automatic"]
        parts += [] if task.manual is None else [f"{points_text(task.manual)} by hand instead"]
        parts += [f"{points_text(task.extra_credit)} extra credit"] if task.extra_credit else []
        parts += ["a person should look at it"] if task.needs_review else []
        yield f"  {name}: {points_text(task.points)} of {points_text(task.max_points)} ({', '.join(parts)})"
    late = found.book.late_penalty
    yield (
        f"  total: {points_text(found.book.total)} of {points_text(found.book.max_total)}"
        + (f", after a late penalty of {points_text(late)}" if late else "")
        + "."
    )


def shown(text: str) -> Text:
    """Text that may be the submission's, for a terminal: no markup, no commands."""
    return Text(feedback.CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))


def _say(console: Console, text: str) -> None:
    console.print(shown(text), highlight=False, soft_wrap=True)
