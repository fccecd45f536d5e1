"""Regrading: what a changed suite does to the grades that stand in the gradebook, shown before it is done.

A grade is compared with the result that the gradebook shows for it now, under the points of then; results of every suite are
kept, so that going back to an old suite judges nothing again. A dry run judges and stores, and leaves the gradebook alone:
what is applied afterwards are the very results that were shown.

What people decided stays: manual scores, extra credit, comments, and whether nbgrader asks for a review. Late penalties are
counted anew, as nbgrader does.

Not covered: a changed number of points of a task, before `autograder init` has told the gradebook; grades whose submission
is gone from `submitted/`, which stay; whether a check's new verdict is right.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from autograder import results, suite
from autograder.courses import course, gradebook
from autograder.courses.gradebook import Recorded
from autograder.errors import AutograderError
from autograder.grade import Graded
from autograder.pages.feedback import points_text
from autograder.reports.explain import Explained, explain_checks, shown
from autograder.results import Result
from autograder.runs import run
from autograder.runs.progress import Steps
from autograder.runs.run import CourseRun

__all__ = ["Change", "Flip", "RegradeError", "flips", "plan", "regrade"]

SHOWN = 300
"""Characters of a message that a table shows."""


class RegradeError(AutograderError):
    """The gradebook was left as it is. The text says why and what next."""


@dataclass(frozen=True)
class Flip:
    """One check that earns something else, or has another outcome, than then."""

    check: str
    then: str
    now: str
    then_why: str
    now_why: str


@dataclass(frozen=True)
class Change:
    """What regrading does to one student's grade."""

    student: str
    then: Result | None
    """The result that the gradebook shows now."""
    before: float | None
    """The total there; `None` without a grade."""
    after: float | None
    """The total that will be there. Without a new grade, as before."""
    flips: tuple[Flip, ...]
    notes: tuple[str, ...]

    @property
    def changes(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.before != self.after or self.flips or self.notes)


def regrade(
    name: str,
    start: Path,
    console: Console,
    *,
    dry_run: bool,
    students: Sequence[str] = (),
    isolation: str | None = None,
    workers: int = 0,
    sign: Path | None = None,
    steps: Steps,
) -> CourseRun:
    """Judge under the present suite, show what changes, and, unless it is a dry run, enter it into the gradebook.

    Raises `RegradeError` and what `run.grade_course` raises.
    """
    folder = course.find(start)
    planned: list[Change] = []

    def agree(graded: Sequence[Graded]) -> bool:
        planned[:] = plan(folder, name, graded)
        print_plan(name, planned, console)
        problem = _other_points(folder, name)
        if problem and not dry_run:
            raise RegradeError(problem)
        if problem:
            console.print(shown(problem), highlight=False, soft_wrap=True)
        return not dry_run

    outcome = run.grade_course(
        name, start, students=students, force=False, isolation=isolation, enter=True, workers=workers, steps=steps, sign=sign,
        agree=agree,
    )  # fmt: skip
    if outcome.stopped:
        left = outcome.waiting + outcome.unentered
        said = f"Stopped; {left} submissions are left, and what is in the gradebook is whole. The same command goes on."
    elif dry_run:
        said = f"Dry run: the gradebook is as it was. Apply it with: autograder regrade {name}"
    else:
        said = _applied(planned, outcome)
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    return outcome


def plan(folder: Path, name: str, graded: Sequence[Graded]) -> list[Change]:
    """What entering `graded` would change in the gradebook, by student. Raises `CourseError`."""
    book = gradebook.recorded(folder, name)
    forecast = gradebook.forecast(folder, name, graded)
    changes = [_change(folder, name, each, book.get(each.student), forecast.get(each.student)) for each in graded]
    return sorted(changes, key=lambda change: change.student)


def _change(folder: Path, name: str, each: Graded, book: Recorded | None, after: float | None) -> Change:
    entered = gradebook.shown(folder, name, each.student) if book else None
    then, notes = None, []
    if entered:
        try:
            then = results.load(results.path(folder / "results", name, each.student, entered), at_home=True)
        except results.Refused as error:
            notes.append(str(error))
        if then is None:
            notes.append(f"The result that the gradebook shows ({entered}) is not there: no check can be compared.")
    before = book.total if book else None
    if each.score is None or each.score.withheld:
        reasons = [each.problem] if each.problem else list(each.score.withheld[:5]) if each.score else []
        notes += [f"Withheld: {reason}" for reason in reasons]
        notes += ["The gradebook keeps what it has."] if book else []
        after = before
    if each.result and then and then.submission_hash != each.result.submission_hash:
        notes.append("Handed in anew since: the checks differ by more than the suite.")
    if book and each.score and not each.score.withheld:
        notes += _by_hand(book, {task.task: task.points for task in each.score.tasks})
    return Change(
        each.student,
        then,
        before,
        after,
        tuple(flips(then, each.result)) if then and each.result else (),
        tuple(notes),
    )


def _by_hand(book: Recorded, now: dict[str, float]) -> Iterator[str]:
    """Manual scores under which the automatic points change: they stay, and a person may want to know."""
    for name, task in book.tasks.items():
        if task.manual is not None and task.automatic is not None and name in now and now[name] != task.automatic:
            yield (
                f"{name} keeps its {points_text(task.manual)} by hand; the automatic points under it go from "
                f"{points_text(task.automatic)} to {points_text(now[name])}. Look at it in formgrader."
            )


def flips(then: Result, now: Result) -> Iterator[Flip]:
    """The checks whose outcome or points differ, each under the spec that its result was judged with."""
    before = {each.check.name: each for each in explain_checks(then)}
    after = {each.check.name: each for each in explain_checks(now)}
    for check in [*before, *(check for check in after if check not in before)]:
        one, other = before.get(check), after.get(check)
        if _verdict(one) != _verdict(other):
            yield Flip(check, _verdict(one), _verdict(other), _why(one), _why(other))


def _verdict(each: Explained | None) -> str:
    """Outcome and points: "PASSED 3/3"."""
    if each is None:
        return "no such check"
    outcome = each.findings[0].outcome if len(each.findings) == 1 else f"{len(each.findings)} findings"
    return f"{outcome} {points_text(each.decision.points)}/{each.check.points}"


def _why(each: Explained | None) -> str:
    """What the check said: message, value and expected value."""
    parts = []
    for finding in each.findings if each else ():
        parts += [finding.message] if finding.message else []
        parts += [f"value {finding.value}"] if finding.value is not None else []
        parts += [f"expected {finding.expected}"] if finding.expected is not None else []
    said = "; ".join(parts)
    return said if len(said) <= SHOWN else f"{said[:SHOWN]}..."


def _other_points(folder: Path, name: str) -> str:
    """Why the gradebook cannot take points of the present suite, if it cannot: it knows itself what a task is worth."""
    there, here = gradebook.maxima(folder, name), {task.name: task.points for task in suite.load_assignment(name)}
    different = [
        f"{task} ({points_text(there.get(task, 0))} there, {points_text(here.get(task, 0))} here)"
        for task in {**here, **there}
        if there.get(task) != here.get(task)
    ]
    if not different:
        return ""
    return (
        f"The gradebook has other tasks or points than the suite: {', '.join(different)}. It was left as it is. "
        f"Tell it first: autograder build {name} && autograder init {shlex.quote(str(folder))} {name}; then regrade."
    )


def print_plan(name: str, changes: Sequence[Change], console: Console) -> None:
    """A row for each student whose grade or checks change, with both versions of every check; a sentence on the rest."""
    table = Table(title=f"{name}: what changes", title_justify="left", show_lines=True)
    for column in ("student", "gradebook", "now", "why"):
        table.add_column(column, overflow="fold", justify="right" if column in ("gradebook", "now") else "left")
    told = [change for change in changes if change.changes]
    for change in told:
        lines = list(change.notes)
        for flip in change.flips:
            lines.append(f"{flip.check}: {flip.then} → {flip.now}")
            lines += [f"  {when}: {said}" for when, said in (("then", flip.then_why), ("now", flip.now_why)) if said]
        if change.before is None and change.after is not None:
            lines.insert(0, "Not in the gradebook yet.")
        table.add_row(shown(change.student), _total(change.before), _total(change.after), shown("\n".join(lines)))
    if told:
        console.print(table)
    totals = sum(change.before != change.after for change in told)
    console.print(
        f"{totals} of {len(changes)} totals change; {len(changes) - len(told)} students keep every check as it was.",
        highlight=False,
    )


def _total(points: float | None) -> str:
    return "–" if points is None else points_text(points)


def _applied(planned: Sequence[Change], outcome: CourseRun) -> str:
    """What was entered, and whatever is not as it was shown."""
    fresh = sum(each.fresh and not each.problem for each in outcome.entered.values())
    said = [f"{fresh} grades entered into the gradebook."]
    for change in planned:
        book, entered = outcome.book.get(change.student), outcome.entered.get(change.student)
        if entered and entered.problem:
            said.append(f"{change.student}: not entered. {entered.problem}")
        elif entered and book and change.after is not None and not math.isclose(book.total, change.after, abs_tol=1e-9):
            said.append(
                f"{change.student} has {points_text(book.total)} now, not {points_text(change.after)} as shown above: look "
                "at the late penalty."
            )
    return "\n".join(said)
