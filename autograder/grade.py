"""From findings to points: one pure, total function. Imports neither torch nor nbgrader nor anything that does I/O.

Nothing means nothing: points need exactly one positive finding of a check that the assignment names. Whatever is missing,
doubled, unknown or our own fault earns nothing and withholds the grade, so it costs nothing either.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from autograder.finding import Finding, Outcome
from autograder.spec import Assignment, Check

if TYPE_CHECKING:
    from autograder.results import Result

__all__ = ["Decision", "Graded", "Rule", "Score", "TaskScore", "decide", "earned", "score"]

WITHHOLDING = frozenset({Outcome.SKIPPED, Outcome.INCONCLUSIVE, Outcome.REVIEW, Outcome.BROKEN})


class Rule(StrEnum):
    """The closed list of rules that give a check its points; `decide` applies one of them."""

    PASSED = "a check that passed earns all its points"
    SHARE = "a performance check that missed its threshold earns the share that its finding states"
    FAILED = "a check that failed earns nothing"
    BLOCKED = "a check that could not run, because something it needs had failed, earns nothing"
    WAITS = "this outcome establishes nothing: it earns nothing, and withholds the grade so that it costs nothing"
    MISSING = "points need exactly one finding; without, or with several, the grade is withheld"
    IMPOSSIBLE = "a finding that contradicts itself or the suite earns nothing and withholds the grade"


@dataclass(frozen=True)
class Decision:
    """What one check earns, by which rule, and why the grade must wait, if it must."""

    points: float
    rule: Rule
    withheld: str | None = None


@dataclass(frozen=True)
class TaskScore:
    """Points of one task. `withheld` says why they must not be shown as a grade; empty when they may."""

    task: str
    points: float
    max_points: int
    withheld: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """Points of one submission, and why they are withheld, if they are."""

    tasks: tuple[TaskScore, ...]
    withheld: tuple[str, ...]

    @property
    def points(self) -> float:
        return math.fsum(task.points for task in self.tasks)

    @property
    def max_points(self) -> int:
        return sum(task.max_points for task in self.tasks)


def score(assignment: Assignment, findings: Iterable[Finding], withheld: Iterable[str] = ()) -> Score:
    """The points that `findings` earn. Total: gives a `Score` for every stream of findings, and never raises.

    `withheld` are reasons that concern the whole submission (an older release, say).
    """
    by_check: dict[str, list[Finding]] = {}
    for finding in findings:
        by_check.setdefault(finding.check, []).append(finding)
    known = {check.name for check in assignment.checks}
    whole = [*withheld, *(f"a finding of an unknown check, {name!r}" for name in by_check if name not in known)]
    tasks = []
    for task in assignment.tasks:
        all_points, reasons = [], []
        for check in task.checks:
            points, reason = earned(check, by_check.get(check.name, []))
            all_points.append(points)
            if reason:
                reasons.append(reason)
        tasks.append(TaskScore(task.name, math.fsum(all_points), task.points, tuple(reasons)))
    return Score(tuple(tasks), (*whole, *(reason for task_score in tasks for reason in task_score.withheld)))


def earned(check: Check, findings: Sequence[Finding]) -> tuple[float, str | None]:
    """The points of one check under all findings of it, and why the grade must wait, if it must."""
    decision = decide(check, findings)
    return decision.points, decision.withheld


def decide(check: Check, findings: Sequence[Finding]) -> Decision:
    """What one check earns under all findings of it. Total, like `score`, which adds these up."""
    if len(findings) != 1:
        count = f"{len(findings) or 'no'} finding{'s' if findings else ''}"
        return Decision(0.0, Rule.MISSING, f"{check.name}: {count} instead of one")
    (finding,) = findings
    if finding.task != check.task:
        why = f"{check.name}: a finding for task {finding.task!r} instead of {check.task!r}"
        return Decision(0.0, Rule.IMPOSSIBLE, why)
    if finding.outcome in WITHHOLDING:
        why = f"{check.name}: {finding.outcome}" + (f" ({finding.message})" if finding.message else "")
        return Decision(0.0, Rule.WAITS, why)
    if finding.outcome is Outcome.PASSED and finding.credit is None:
        return Decision(float(check.points), Rule.PASSED)
    if finding.credit is None:
        return Decision(0.0, Rule.BLOCKED if finding.outcome is Outcome.BLOCKED else Rule.FAILED)
    partial = 0.0 <= finding.credit < 1.0  # not so for NaN; and what passed has all, what did not has less
    if not check.performance or finding.outcome is not Outcome.FAILED or not partial:
        why = f"{check.name}: {finding.outcome} with a credit of {finding.credit!r}, which cannot be"
        return Decision(0.0, Rule.IMPOSSIBLE, why)
    return Decision(check.points * finding.credit, Rule.SHARE)


def outcome_counts(findings: Iterable[Finding]) -> Counter[Outcome]:
    """How many findings there are of each outcome."""
    return Counter(finding.outcome for finding in findings)


@dataclass(frozen=True)
class Graded:
    """What became of a job. `result` is `None` where nothing could be judged; `problem` then says why."""

    student: str
    result: Result | None
    score: Score | None
    problem: str = ""
    fresh: bool = True

    @property
    def status(self) -> str:
        if self.score is None:
            return "withheld"
        return "withheld" if self.score.withheld else "graded"
