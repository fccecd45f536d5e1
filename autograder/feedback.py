"""Findings as people read them: an HTML fragment for notebooks and feedback pages, and a table for terminals.

All text that came from a submission is escaped; of hidden checks only what their author wrote is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jinja2
from rich.markup import escape
from rich.table import Table

from autograder.finding import Finding, Outcome
from autograder.grade import TaskScore
from autograder.results import Result
from autograder.spec import Assignment

__all__ = ["Row", "findings_html", "points_text", "rows", "table", "task_html"]

MARKS = {outcome: "?" for outcome in Outcome} | {Outcome.PASSED: "✓", Outcome.FAILED: "✗", Outcome.BLOCKED: "–"}
HTML_COLOURS = {outcome: "#7a4b00" for outcome in Outcome} | {Outcome.PASSED: "#14662b", Outcome.FAILED: "#a4161a"}
RICH_COLOURS = {outcome: "yellow" for outcome in Outcome} | {Outcome.PASSED: "green", Outcome.FAILED: "red"}

_environment = jinja2.Environment(
    loader=jinja2.PackageLoader("autograder"), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
)


@dataclass(frozen=True)
class Row:
    """One check as a student may see it. `details` are (label, text)."""

    outcome: Outcome
    earned: float
    points: int
    sentence: str
    details: tuple[tuple[str, str], ...]


def points_text(points: float) -> str:
    """Points without a needless fraction: 3, 2.5."""
    return f"{points:g}"


def rows(assignment: Assignment, findings: Iterable[Finding], task: str | None = None) -> list[Row]:
    """The findings (of one task) as rows, failed ones first."""
    by_name = {check.name: check for check in assignment.checks}
    made = []
    for finding in findings:
        check = by_name.get(finding.check)
        if check is None or (task is not None and finding.task != task):
            continue
        passed = finding.outcome is Outcome.PASSED
        earned = float(check.points) if passed else check.points * (finding.credit or 0.0)
        made.append(Row(finding.outcome, earned, check.points, finding.sentence, tuple(_details(finding))))
    return sorted(made, key=lambda row: row.outcome is Outcome.PASSED)


def _details(finding: Finding) -> Iterable[tuple[str, str]]:
    if finding.outcome is Outcome.PASSED:
        return
    if not finding.hidden:
        if finding.message:
            yield "what happened:", finding.message
        if finding.value is not None:
            yield "your value:", finding.value
        if finding.expected is not None:
            yield "expected:", finding.expected
    if finding.hint:
        yield "next:", finding.hint


def task_html(result: Result, task: TaskScore) -> str:
    """The findings of one task of a stored result."""
    from autograder import suite

    assignment = suite.load_assignment(result.assignment)
    provenance = {
        "submission": result.submission_hash[:12],
        "suite": result.suite_hash[:12],
        "isolation": f"{result.isolation.name} (level {result.isolation.level})",
        "tier": result.tier,
        "framework": result.framework,
    }
    return _render(task, rows(assignment, result.findings, task.task), result.remarks, provenance)


def findings_html(task: TaskScore, shown: Sequence[Row], remarks: Sequence[str], provenance: dict[str, str]) -> str:
    """The same fragment for findings that are not stored: the self-check in a notebook."""
    return _render(task, shown, remarks, provenance)


def _render(task: TaskScore, shown: Sequence[Row], remarks: Sequence[str], provenance: dict[str, str]) -> str:
    return _environment.get_template("task.html").render(
        task=task, rows=shown, remarks=remarks, provenance=provenance, points=points_text, marks=MARKS, colours=HTML_COLOURS
    )


def table(title: str, shown: Sequence[Row]) -> Table:
    """The rows as a table for a terminal."""
    made = Table(title=escape(title), title_justify="left", show_lines=True, expand=False)
    made.add_column("outcome", no_wrap=True)
    made.add_column("points", no_wrap=True, justify="right")
    made.add_column("check", overflow="fold")
    for row in shown:
        lines = [escape(row.sentence), *(f"[dim]{label}[/dim] {escape(text)}" for label, text in row.details)]
        colour = RICH_COLOURS[row.outcome]
        made.add_row(
            f"[{colour}]{MARKS[row.outcome]} {row.outcome}[/{colour}]",
            f"{points_text(row.earned)} / {row.points}",
            "\n".join(lines),
        )
    return made
