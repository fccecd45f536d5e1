"""Judge stored results again, with their own seeds, and compare.

The submission comes from the copy that was kept when it was judged, so nothing that became of `submitted/` since matters; the
suite, the framework and the machine are the present ones, and what is different in them is told. Findings of correctness
checks must come out the same in every compared field. Measured checks (`thresholds` in the suite's `spec.py`) are
measured again and shown beside each other.

Not covered: submissions that do something else each time (that draw entropy or read the clock), and limits of time and memory
on a machine with less to spare: both show up as differences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autograder import results, suite, temporary
from autograder.courses import course
from autograder.errors import AutograderError
from autograder.finding import Finding
from autograder.grade import Graded
from autograder.pages import feedback
from autograder.results import Result
from autograder.runs import run
from autograder.runs.grading import Grader, Job
from autograder.runs.progress import Steps

__all__ = ["Difference", "Replay", "ReplayError", "differences", "print_replay", "replay", "surroundings"]

COMPARED = ("outcome", "message", "value", "expected", "credit")
SHOWN = 300
"""Characters of a text that a table shows."""


class ReplayError(AutograderError):
    """A result cannot be judged again. The text says why and what next."""


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was."""

    what: str
    then: str
    now: str


@dataclass(frozen=True)
class Replay:
    """One result judged again. `problem` says why that failed, if it did; nothing is reproduced then."""

    file: Path
    then: Result
    checks: int
    """Correctness checks compared."""
    findings: tuple[Difference, ...]
    measured: tuple[Difference, ...]
    """The measured checks, each as it was and as it is, different or not."""
    surroundings: tuple[Difference, ...]
    """What is different in suite, framework, packages, models, machine and isolation."""
    problem: str = ""

    @property
    def reproduced(self) -> bool:
        """Whether every finding of a correctness check came out the same."""
        return not self.problem and not self.findings


def replay(files: Sequence[Path], start: Path | None, isolation: str, steps: Steps) -> list[Replay]:
    """Judge the results in `files`, all of one assignment, again. Nothing in their course is changed.

    Copies of submissions are looked for in the course around `start`, without it in the one that the first file lies in.
    Raises `ReplayError`, `CourseError`, `SandboxUnavailable`; `results.Refused` if a result or a copy was changed.
    """
    folder = course.find(start or files[0].parent)
    signer = course.public_key(folder)
    then, jobs = [], []
    for number, file in enumerate(files):
        result = results.load(file, signer)
        if result is None:
            raise ReplayError(f"There is no {file}. Give stored results: {folder}/results/NAME/STUDENT/....json")
        then.append(result)
        jobs.append(Job(str(number), results.kept(folder / "results", result), seed=result.seed))
    names = sorted({result.assignment for result in then})
    if len(names) > 1:
        raise ReplayError(f"These are results of {' and '.join(names)}. Replay one assignment at a time.")
    loaded = suite.load(names[0])
    now: dict[str, Graded] = {}
    with (
        temporary.folder("autograder-replay-") as scratch,
        run.sandbox_for(loaded, run.level_of(isolation)) as sandbox,
    ):
        grader = Grader(loaded, sandbox, scratch, workers=min(len(jobs), run.cores()), tier=run.tier_of(loaded))
        grader.warm_up()
        with steps.step(f"judging {names[0]} again", len(jobs)) as progress:
            progress.activities = lambda: [
                replace(each, student=then[int(each.student)].student) for each in grader.activities()
            ]
            grader.watch(progress.tick)

            def done(each: Graded) -> None:
                now[each.student] = each
                progress.advance(then[int(each.student)].student)

            grader.grade(jobs, done)
    if grader.stopping:
        raise ReplayError("Stopped before all results were judged again. Nothing was changed.")
    measured = {check.name for check in loaded.assignment.checks if check.performance}
    return [
        _compared(file, result, now[job.student], measured) for file, result, job in zip(files, then, jobs, strict=True)
    ]


def _compared(file: Path, then: Result, graded: Graded, measured: Set[str]) -> Replay:
    if graded.result is None:
        return Replay(file, then, 0, (), (), (), graded.problem)
    checks = sum(finding.check not in measured for finding in then.findings)
    return Replay(
        file,
        then,
        checks,
        findings=tuple(differences(then.findings, graded.result.findings, measured)),
        measured=tuple(_measured(then.findings, graded.result.findings, measured)),
        surroundings=tuple(surroundings(then, graded.result)),
    )


def differences(then: Iterable[Finding], now: Iterable[Finding], measured: Set[str]) -> Iterator[Difference]:
    """Where findings of checks that are not `measured` differ in what is compared."""
    before, after = _by_check(then), _by_check(now)
    for check in sorted((before.keys() | after.keys()) - measured):
        one, other = before.get(check), after.get(check)
        if one is None or other is None:
            yield Difference(check, one.outcome if one else "no finding", other.outcome if other else "no finding")
            continue
        for name in COMPARED:
            if repr(getattr(one, name)) != repr(getattr(other, name)):  # repr: a credit that is NaN equals itself
                yield Difference(f"{check}: {name}", _words(getattr(one, name)), _words(getattr(other, name)))


def _words(value: object) -> str:
    return "–" if value is None else str(value)


def _measured(then: Iterable[Finding], now: Iterable[Finding], measured: Set[str]) -> Iterator[Difference]:
    before, after = _by_check(then), _by_check(now)
    for check in sorted((before.keys() | after.keys()) & measured):
        yield Difference(check, _reading(before.get(check)), _reading(after.get(check)))


def _reading(finding: Finding | None) -> str:
    if finding is None:
        return "no finding"
    numbers = [f"{name} {value:.3g}" for name, value in sorted(finding.measurements.items())]
    return ", ".join([finding.outcome, *([finding.value] if finding.value else []), *numbers])


def surroundings(then: Result, now: Result) -> Iterator[Difference]:
    """What is different beside the findings: suite, framework, isolation, machine, packages, models."""
    before, after = _facts(then), _facts(now)
    for what in [*before, *(what for what in after if what not in before)]:
        if before.get(what) != after.get(what):
            yield Difference(what, before.get(what, "none"), after.get(what, "none"))


def _facts(result: Result) -> dict[str, str]:
    isolation = result.isolation
    facts = {
        "suite": result.suite_hash,
        "release": result.release,
        "framework": result.framework,
        "tier": result.tier,
        "isolation": f"{isolation.name} (level {isolation.level}): {', '.join(isolation.walls)}",
    }
    for name, value in result.machine.items():
        if name == "packages" and isinstance(value, dict):
            facts |= {f"package {package}": str(version) for package, version in value.items()}
        elif name != "reasons":  # says in words why the rest is as it is
            facts[f"machine: {name}"] = str(value)
    return facts | {f"model {name}": digest for name, digest in result.models.items()}


def _by_check(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def print_replay(replays: Sequence[Replay], console: Console) -> None:
    """A line for each result, what came out differently, what is different around them, and a sentence on the whole."""
    names = {id(each): f"{each.then.student} {each.file.stem[:8]}" for each in replays}
    for each in replays:
        count = each.checks - len({difference.what.partition(":")[0] for difference in each.findings})
        said = f"{count} of {each.checks} correctness findings reproduced"
        if each.problem:
            said = f"could not be judged again. {each.problem}"
        console.print(f"{names[id(each)]}: {said}", markup=False, highlight=False, soft_wrap=True)
    findings = [(names[id(each)], row) for each in replays for row in each.findings]
    measured = [(names[id(each)], row) for each in replays for row in each.measured]
    around = Counter(row for each in replays for row in each.surroundings)
    _print("findings that differ", findings, console)
    _print("measured again, so that a ratio may differ", measured, console)
    _print("different around them", [(f"{count} of {len(replays)}", row) for row, count in around.items()], console)
    wrong = sum(not each.reproduced for each in replays)
    said = (
        f"{wrong} of {len(replays)} results are not reproduced" if wrong else "Every correctness finding is reproduced"
    )
    if other := sum(count for row, count in around.items() if row.what == "suite"):
        said += (
            f", {other} of them under another suite than then: that shows what the change does, and reproduces nothing"
        )
    console.print(f"{said}.", highlight=False, soft_wrap=True)


def _print(title: str, rows: Sequence[tuple[str, Difference]], console: Console) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for column in ("result", "what", "then", "now"):
        table.add_column(column, overflow="fold")
    for name, row in rows:
        table.add_row(*(_short(text) for text in (name, row.what, row.then, row.now)))
    console.print(table)


def _short(text: str) -> Text:
    """Text that may be the submission's, for a terminal."""
    shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"
    return Text(feedback.CONTROL.sub("\N{REPLACEMENT CHARACTER}", shown))
