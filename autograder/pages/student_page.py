"""What stands on a student's page, from a stored result, the notebook and the gradebook.

A function of these and of the language in use, without any markup (`html_pages` has that). Of hidden checks it takes
what `feedback.rows` lets through, which is author text and the judge's own measurements; no seed, no withheld reason of a
single check.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from autograder.finding import Finding, Outcome
from autograder.grade import WITHHOLDING, TaskScore, score
from autograder.language import _, said
from autograder.pages.feedback import Row, rows
from autograder.results import Result
from autograder.spec import Check

__all__ = ["Book", "Cell", "Section", "Speed", "StudentPage", "TaskPart", "student_page"]

MOST_OWN_CELLS = 100
"""Cells that are not graded and shown all the same; nobody has so many, and a page must not grow without end."""
SPEED = {"speedup", "speedup_low", "speedup_high", "speedup_asked"}


@dataclass(frozen=True)
class Cell:
    """One cell of the notebook. `name` is the task's for kind "task"; `comment` is a grader's."""

    kind: Literal["text", "task", "helpers", "given", "own"]
    source: str
    name: str = ""
    comment: str = ""


@dataclass(frozen=True)
class Section:
    """A section of the handout with the student's code in it. `anchor` is its id on the page."""

    anchor: str
    title: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Book:
    """What nbgrader's gradebook says of the submission, where it has been entered. `tasks` has the points of each task."""

    total: float
    late_penalty: float = 0.0
    tasks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Speed:
    """One measured comparison with the reference. `naive` is where credit begins; times are microseconds of one call."""

    row: Row
    ratio: float
    low: float
    high: float
    asked: float
    naive: float | None
    pairs: int
    noise_percent: float
    own_us: float
    reference_us: float


@dataclass(frozen=True)
class TaskPart:
    """One task: its points and its checks, sorted by what there is to do about them."""

    name: str
    title: str
    points: float
    max_points: int
    by_hand: float | None
    """The points that a person has set instead."""
    withheld: bool
    failed: tuple[Row, ...]
    """In the order of the assignment; the first is what to look at first."""
    open: tuple[Row, ...]
    """Checks without a verdict: nothing to be done by the student."""
    passed: tuple[Row, ...]
    section: Section | None

    @property
    def untried(self) -> bool:
        """The stub still stands."""
        return any(row.untried for row in self.failed)


@dataclass(frozen=True)
class StudentPage:
    """All that is on the page. `book` is `None` where the gradebook knows nothing."""

    title: str
    result: Result
    points: float
    max_points: int
    withheld: bool
    whole: tuple[str, ...]
    """Reasons for withholding that concern the whole submission."""
    tasks: tuple[TaskPart, ...]
    speeds: tuple[Speed, ...]
    sections: tuple[Section, ...]
    left_out: int
    """Cells of the student's own that are not shown."""
    book: Book | None
    machine: tuple[str, ...]

    @property
    def total(self) -> float:
        """The points that count: the gradebook's where there are any."""
        return self.book.total if self.book else self.points


def student_page(result: Result, cells: Sequence[Cell] = (), book: Book | None = None) -> StudentPage:
    """The page of `result`, under the spec it was judged by; `cells` are those of the submitted notebook, in order.

    Total, like `grade.score`.
    """
    assignment = result.spec
    scored = score(assignment, result.findings, result.withheld)
    own = itertools.count(1)
    kept = [cell for cell in cells if cell.kind != "own" or next(own) <= MOST_OWN_CELLS]
    sections = _sections(kept)
    at = {cell.name: section for section in sections for cell in section.cells if cell.kind == "task"}
    parts = tuple(
        _part(result, task, at.get(task.task), None if book is None else book.tasks.get(task.task))
        for task in scored.tasks
    )
    return StudentPage(
        title=_(assignment.title),
        result=result,
        points=scored.points,
        max_points=scored.max_points,
        withheld=bool(scored.withheld),
        whole=tuple(map(said, result.withheld)),
        tasks=parts,
        speeds=tuple(_speeds(result)),
        sections=sections,
        left_out=len(cells) - len(kept),
        book=None if scored.withheld else book,
        machine=tuple(machine(result.machine)),
    )


def _part(result: Result, scored: TaskScore, section: Section | None, entered: float | None) -> TaskPart:
    shown = rows(result.spec, result.findings, scored.task)
    by_hand = None if entered is None or abs(entered - scored.points) < 1e-9 else entered
    return TaskPart(
        name=scored.task,
        title=_(result.spec.task(scored.task).title),
        points=scored.points,
        max_points=scored.max_points,
        by_hand=by_hand,
        withheld=bool(scored.withheld or result.withheld),
        failed=tuple(row for row in shown if row.outcome in (Outcome.FAILED, Outcome.BLOCKED)),
        open=tuple(row for row in shown if row.outcome in WITHHOLDING),
        passed=tuple(row for row in shown if row.outcome is Outcome.PASSED),
        section=section,
    )


def _speeds(result: Result) -> Iterable[Speed]:
    checks = {check.name: check for check in result.spec.checks}
    shown = {row.check: row for row in rows(result.spec, result.findings)}
    for finding in result.findings:
        if finding.check in checks and finding.measurements.keys() >= SPEED:
            yield _speed(checks[finding.check], finding, shown[finding.check])


def _speed(check: Check, finding: Finding, row: Row) -> Speed:
    measured = finding.measurements
    naive = next(
        (each.naive for each in check.thresholds.values() if each.ratio == measured["speedup_asked"]),
        None,
    )
    return Speed(
        row=row,
        ratio=measured["speedup"],
        low=measured["speedup_low"],
        high=measured["speedup_high"],
        asked=measured["speedup_asked"],
        naive=naive,
        pairs=int(measured.get("pairs", 0)),
        noise_percent=measured.get("noise_percent", 0.0),
        own_us=measured.get("submission_us_per_call", 0.0),
        reference_us=measured.get("reference_us_per_call", 0.0),
    )


def _sections(cells: Sequence[Cell]) -> tuple[Section, ...]:
    """The notebook cut at its headings of the first two levels, each with the heading as its title."""
    groups: list[list[Cell]] = []
    for cell in cells:
        if not groups or (cell.kind == "text" and cell.source.startswith(("# ", "## "))):
            groups.append([])
        groups[-1].append(cell)
    return tuple(_section(f"handout-{number}", group) for number, group in enumerate(groups, 1))


def _section(anchor: str, group: Sequence[Cell]) -> Section:
    first, *others = group
    if first.kind != "text" or not first.source.startswith(("# ", "## ")):
        return Section(anchor, "", tuple(group))
    heading, _, rest = first.source.partition("\n")
    return Section(anchor, heading.lstrip("#").strip(), (Cell("text", rest), *others))


def machine(described: Mapping[str, Any]) -> Iterable[str]:
    """The machine in a few words; whatever a result of another version lacks is left out."""
    if cpu := described.get("cpu"):
        yield _("{cpu}, {cores} cores").format(cpu=cpu, cores=described.get("cores", "?"))
    if memory := described.get("memory_bytes"):
        yield f"{memory / 2**30:.1f} GiB"
    for gpu in described.get("gpus") or ():
        yield str(gpu.get("name", "GPU")) if isinstance(gpu, Mapping) else str(gpu)
    if python := described.get("python"):
        yield str(python)
    yield from (f"{name} {version}" for name, version in (described.get("packages") or {}).items())
