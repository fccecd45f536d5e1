"""What stands on the instructor's page about one assignment, from all its submissions.

A pure function without any markup (`html_pages` has that), like `student_page`. Unlike there, what hidden
checks met is shown: the page is not for students.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles

from autograder.finding import Finding, Outcome
from autograder.grade import WITHHOLDING, Score, earned, score
from autograder.pages.student_page import machine
from autograder.results import Result
from autograder.spec import Assignment, Check

__all__ = ["CheckFigures", "ClassPage", "Open", "SpeedFigures", "StudentRow", "Submitted", "TaskFigures", "class_page"]

COMMONEST = 3


@dataclass(frozen=True)
class Submitted:
    """One submission as it was found: its result, or why there is none. `file` is the result's, `page` the student's page."""

    student: str
    result: Result | None
    problem: str = ""
    gradebook: float | None = None
    file: str = ""
    page: str = ""


@dataclass(frozen=True)
class CheckFigures:
    """How one check went. `texts` are the commonest reasons for failing, with how often each came."""

    check: Check
    sentence: str
    counts: Counter[Outcome]
    partial: int
    """Of those that failed, how many have a share of the points."""
    texts: tuple[tuple[str, int], ...]

    @property
    def judged(self) -> int:
        """Findings that are a verdict."""
        return sum(count for outcome, count in self.counts.items() if outcome not in WITHHOLDING)

    @property
    def passed(self) -> float | None:
        """The share that passed, 0 to 1; `None` without a verdict."""
        return self.counts[Outcome.PASSED] / self.judged if self.judged else None

    @property
    def open(self) -> int:
        return self.counts.total() - self.judged


@dataclass(frozen=True)
class TaskFigures:
    """How one task went: the mean of its points over graded submissions (`None` without any), and its checks."""

    title: str
    mean: float | None
    max_points: int
    checks: tuple[CheckFigures, ...]


@dataclass(frozen=True)
class SpeedFigures:
    """How a class's speeds spread: ratios t_reference / t_submission, sorted."""

    sentence: str
    asked: float
    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.ratios)


@dataclass(frozen=True)
class Open:
    """A submission without a grade: its state in a word, why, and the command with which to go on."""

    student: str
    state: str
    why: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class StudentRow:
    """One line of the table. `points` has those of each task, `None` where they are withheld."""

    submitted: Submitted
    points: tuple[float | None, ...]
    total: float | None
    state: str

    @property
    def seconds(self) -> float | None:
        return self.submitted.result.seconds if self.submitted.result else None

    @property
    def isolation(self) -> str:
        found = self.submitted.result
        return f"{found.isolation.name} ({found.isolation.level})" if found else ""


@dataclass(frozen=True)
class ClassPage:
    """All that is on the page. `grades` are those of graded submissions, sorted; `seconds` what judging each result took."""

    assignment: Assignment
    rows: tuple[StudentRow, ...]
    grades: tuple[float, ...]
    tasks: tuple[TaskFigures, ...]
    speeds: tuple[SpeedFigures, ...]
    open: tuple[Open, ...]
    seconds: tuple[float, ...]
    isolations: tuple[tuple[str, int], ...]
    machines: tuple[tuple[str, int], ...]

    @property
    def summary(self) -> tuple[float, ...]:
        """Lowest grade, lower quartile, median, mean, upper quartile, highest; empty without a grade."""
        if not self.grades:
            return ()
        low, middle, high = quantiles(self.grades, n=4, method="inclusive") if len(self.grades) > 1 else self.grades * 3
        return (self.grades[0], low, middle, fmean(self.grades), high, self.grades[-1])


def class_page(assignment: Assignment, submissions: Sequence[Submitted]) -> ClassPage:
    """The page of all `submissions`, by student."""
    submissions = sorted(submissions, key=lambda each: each.student)
    scored = [
        (each, score(assignment, each.result.findings, each.result.withheld) if each.result else None)
        for each in submissions
    ]
    results = [each.result for each in submissions if each.result]
    graded = [found for _, found in scored if found and not found.withheld]
    findings: dict[str, list[Finding]] = defaultdict(list)
    for result in results:
        for finding in result.findings:
            findings[finding.check].append(finding)
    return ClassPage(
        assignment=assignment,
        rows=tuple(_row(assignment, each, found) for each, found in scored),
        grades=tuple(sorted(found.points for found in graded)),
        tasks=tuple(
            TaskFigures(
                title=task.title,
                mean=fmean(found.tasks[number].points for found in graded) if graded else None,
                max_points=task.points,
                checks=tuple(_check(check, findings[check.name]) for check in task.checks),
            )
            for number, task in enumerate(assignment.tasks)
        ),
        speeds=tuple(_speeds(assignment, findings)),
        open=tuple(
            opened for each, found in scored if (opened := _open(assignment, each, found)) is not None
        ),
        seconds=tuple(sorted(result.seconds for result in results)),
        isolations=_counted(f"{result.isolation.name} (level {result.isolation.level})" for result in results),
        machines=_counted("; ".join(machine(result.machine)) or "not recorded" for result in results),
    )  # fmt: skip


def _row(assignment: Assignment, each: Submitted, found: Score | None) -> StudentRow:
    if found is None:
        return StudentRow(each, (None,) * len(assignment.tasks), None, "not graded")
    if found.withheld:
        return StudentRow(each, (None,) * len(assignment.tasks), None, _state(each))
    return StudentRow(each, tuple(task.points for task in found.tasks), found.points, "graded")


def _state(each: Submitted) -> str:
    """What keeps the grade back, in a word: what needs a person before what a machine does again."""
    outcomes = {finding.outcome for finding in each.result.findings} if each.result else set()
    if each.result and each.result.withheld:
        return "withheld"
    order = (Outcome.REVIEW, Outcome.BROKEN, Outcome.INCONCLUSIVE, Outcome.SKIPPED)
    return next((str(outcome) for outcome in order if outcome in outcomes), "withheld")


def _open(assignment: Assignment, each: Submitted, found: Score | None) -> Open | None:
    again = f"autograder grade {assignment.name} --student {shlex.quote(each.student)}"
    if found is None:
        return Open(each.student, "not graded", (each.problem,), again)
    if not found.withheld:
        return None
    state = _state(each)
    command = f"autograder replay {shlex.quote(each.file)}" if state == Outcome.REVIEW else again
    return Open(each.student, state, found.withheld, command)


def _check(check: Check, findings: Sequence[Finding]) -> CheckFigures:
    failed = [finding for finding in findings if finding.outcome is Outcome.FAILED]
    texts = Counter(finding.message for finding in failed if finding.message)
    return CheckFigures(
        check=check,
        sentence=findings[0].sentence if findings else check.name,
        counts=Counter(finding.outcome for finding in findings),
        partial=sum(earned(check, [finding])[0] > 0 for finding in failed),
        texts=tuple(texts.most_common(COMMONEST)),
    )


def _speeds(assignment: Assignment, findings: dict[str, list[Finding]]) -> Iterable[SpeedFigures]:
    for check in assignment.checks:
        by_asked: dict[float, list[float]] = defaultdict(list)
        for finding in findings[check.name]:
            measured = finding.measurements
            ratio = measured.get("speedup", math.nan)
            if "speedup_asked" in measured and math.isfinite(ratio) and ratio > 0:
                by_asked[measured["speedup_asked"]].append(ratio)
        for asked, ratios in sorted(by_asked.items()):
            yield SpeedFigures(findings[check.name][0].sentence, asked, tuple(sorted(ratios)))


def _counted(texts: Iterable[str]) -> tuple[tuple[str, int], ...]:
    return tuple(Counter(texts).most_common())
