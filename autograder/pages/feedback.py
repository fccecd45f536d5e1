"""Findings as people read them: an HTML fragment for notebooks and feedback pages, and a table for terminals.

All text that came from a submission is escaped; of hidden checks only what their author wrote is shown. Rows and pages are in
the language in use (`autograder.language`); what the gradebook keeps is English.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import jinja2
from rich.table import Table
from rich.text import Text

from autograder.finding import NOT_IMPLEMENTED, Finding, Outcome
from autograder.grade import TaskScore, earned
from autograder.language import N_, _, ngettext, said, spoken
from autograder.results import Result
from autograder.spec import Assignment

__all__ = ["NAMES", "Row", "findings_html", "points_of", "points_text", "rows", "table", "task_html"]

MARKS = {outcome: "?" for outcome in Outcome} | {Outcome.PASSED: "✓", Outcome.FAILED: "✗", Outcome.BLOCKED: "–"}
HTML_COLOURS = {outcome: "#7a4b00" for outcome in Outcome} | {Outcome.PASSED: "#14662b", Outcome.FAILED: "#a4161a"}
RICH_COLOURS = {outcome: "yellow" for outcome in Outcome} | {Outcome.PASSED: "green", Outcome.FAILED: "red"}

NAMES = {
    Outcome.PASSED: N_("PASSED"),
    Outcome.FAILED: N_("FAILED"),
    Outcome.BLOCKED: N_("BLOCKED"),
    Outcome.SKIPPED: N_("SKIPPED"),
    Outcome.INCONCLUSIVE: N_("INCONCLUSIVE"),
    Outcome.REVIEW: N_("REVIEW"),
    Outcome.BROKEN: N_("BROKEN"),
}
"""Outcomes as people read them."""

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that command a terminal, or change the order of the text around them."""

_environment = jinja2.Environment(
    loader=jinja2.PackageLoader("autograder.pages"),
    autoescape=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
    extensions=["jinja2.ext.i18n"],
)
_environment.install_gettext_callables(_, ngettext, newstyle=True)  # type: ignore[attr-defined]  # the extension's


@dataclass(frozen=True)
class Row:
    """One check as a student may see it. `details` are (label, text); labels are translated where they are shown."""

    outcome: Outcome
    earned: float
    points: int
    sentence: str
    details: tuple[tuple[str, str], ...]
    untried: bool = False
    """The student has not begun: there is a stub."""
    check: str = ""


def points_text(points: float) -> str:
    """Points without a needless fraction: 3, 2.5."""
    return f"{points:g}"


def points_of(points: float, most: int) -> str:
    """Points of a task that public checks can show."""
    return _("{points} of {most} public points").format(points=points_text(points), most=most)


def rows(assignment: Assignment, findings: Iterable[Finding], task: str | None = None) -> list[Row]:
    """The findings (of one task) as rows, failed ones first."""
    by_name = {check.name: check for check in assignment.checks}
    by_check: dict[str, list[Finding]] = {}
    for finding in findings:
        by_check.setdefault(finding.check, []).append(finding)
    made = []
    for finding in (finding for group in by_check.values() for finding in group):
        check = by_name.get(finding.check)
        if check is None or (task is not None and finding.task != task):
            continue
        points = earned(check, by_check[check.name])[0]
        made.append(
            Row(
                finding.outcome,
                points,
                check.points,
                _(finding.sentence),
                tuple(_details(finding, bool(finding.measurements) and not check.performance)),
                _untried(finding),
                check.name,
            )
        )
    return sorted(made, key=lambda row: row.outcome is Outcome.PASSED)


def _untried(finding: Finding) -> bool:
    return finding.message == NOT_IMPLEMENTED


def _details(finding: Finding, figures: bool) -> Iterable[tuple[str, str]]:
    """What a row says below its sentence; `figures`: also what was measured beside a verdict that does not rest on it."""
    if {"speedup", "speedup_low", "speedup_high", "speedup_asked"} <= finding.measurements.keys():
        yield N_("measured:"), _speed(finding.measurements)
    elif figures:
        yield N_("measured:"), ", ".join(f"{name} {value:,.4g}" for name, value in finding.measurements.items())
    if finding.outcome is Outcome.PASSED:
        return
    if not finding.hidden:
        if finding.message:
            yield N_("what happened:"), said(finding.message)
        if finding.value is not None:
            yield N_("your value:"), said(finding.value, quoted=True)
        if finding.expected is not None:
            yield N_("expected:"), said(finding.expected)
        if finding.printed:
            yield N_("printed:"), finding.printed
    if finding.hint:
        yield N_("next:"), _(finding.hint)


def _speed(measured: Mapping[str, float]) -> str:
    """The judge's own figures, so students may see them of hidden checks too."""
    return _("{ratio:.2f} times as fast as the reference ({low:.2f} to {high:.2f}); {asked:g} is asked for").format(
        ratio=measured["speedup"],
        low=measured["speedup_low"],
        high=measured["speedup_high"],
        asked=measured["speedup_asked"],
    )


def task_html(result: Result, task: TaskScore) -> str:
    """The findings of one task of a stored result."""
    about = (
        f"Result {result.submission_hash[:12]} under suite {result.suite_hash[:12]}, isolation: {result.isolation.name} "
        f"(level {result.isolation.level}), {result.tier} tier, autograder {result.framework}."
    )
    return findings_html(task, rows(result.spec, result.findings, task.task), result.remarks, about)


def findings_html(task: TaskScore, shown: Sequence[Row], remarks: Sequence[str], about: str) -> str:
    """Findings of one task, remarks above and a line `about` them below."""
    return _environment.get_template("task.html").render(
        task=task,
        rows=shown,
        remarks=[said(remark) for remark in remarks],
        about=about,
        lang=spoken().tag,
        names=NAMES,
        points=points_text,
        marks=MARKS,
        colours=HTML_COLOURS,
    )


def table(title: str, shown: Sequence[Row]) -> Table:
    """The rows as a table for a terminal."""
    made = Table(title=_text(title), title_justify="left", show_lines=True, expand=False)
    made.add_column(_("outcome"), no_wrap=True)
    made.add_column(_("points"), no_wrap=True, justify="right")
    made.add_column(_("check"), overflow="fold")
    for row in shown:
        lines = [_text(row.sentence)]
        lines += [Text.assemble((_(label), "dim"), " ", _text(text)) for label, text in row.details]
        made.add_row(
            Text(f"{MARKS[row.outcome]} {_(NAMES[row.outcome])}", style=RICH_COLOURS[row.outcome]),
            f"{points_text(row.earned)} / {row.points}",
            Text("\n").join(lines),
        )
    return made


def _text(text: str) -> Text:
    """`text` to be shown as it is: no markup, no emoji names, no commands to the terminal."""
    return Text(CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))
