"""The corpus: right, wrong and hostile submissions that show that the checks of a suite pass and fail where they must.

`tests/submissions/<assignment>/<kind>/<name>.py` is a py:percent file whose docstring says what it is; a line `fails: ...`
names all checks that must not pass (`*` for every one). Tasks that a file leaves out are those of the reference solution.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat

from autograder.errors import AutograderError
from autograder import suite
from autograder.build import BEGIN, END
from autograder.finding import Outcome
from autograder.grading import Graded
from autograder.manifest import HELPERS, Manifest
from autograder.spec import Assignment
from autograder.submission import Submission

__all__ = ["KINDS", "Entry", "complaints", "expected_points", "load", "notebook", "reference", "stub", "unkilled"]

KINDS = ("right", "wrong", "hostile")


class CorpusError(AutograderError):
    """A file of the corpus has no proper head."""


@dataclass(frozen=True)
class Entry:
    """One submission of the corpus. `fails` are the checks that must not pass."""

    kind: str
    name: str
    about: str
    fails: frozenset[str]
    answers: dict[str, str]

    def submission(self, manifest: Manifest) -> Submission:
        return Submission(f"{self.kind}/{self.name}.py", {name: self.answers[name] for name in [*manifest.tasks, HELPERS]})


def reference(name: str) -> Entry:
    """The reference solution."""
    cells = jupytext.read(suite.repository() / "solutions" / f"{name}.py", fmt="py:percent").cells
    answers = {
        cell.metadata.get("task") or cell.metadata.get(HELPERS): "\n".join(
            line for line in cell.source.splitlines() if line.strip() not in (BEGIN, END)
        )
        for cell in cells
        if "task" in cell.metadata or HELPERS in cell.metadata
    }
    return Entry("right", "reference", "The reference solution.", frozenset(), answers)


def stub(name: str) -> Entry:
    """The release as it is handed out, untouched: earns nothing."""
    cells = jupytext.read(suite.repository() / "assignments" / name / f"{name}.ipynb").cells
    answers = {
        cell.metadata.get("task") or cell.metadata.get(HELPERS): cell.source
        for cell in cells
        if "task" in cell.metadata or HELPERS in cell.metadata
    }
    checks = frozenset(check.name for check in suite.load_assignment(name).checks)
    return Entry("wrong", "stub", "The untouched stub.", checks, answers)


def load(name: str) -> list[Entry]:
    """The corpus of an assignment, with reference and stub. Raises `CorpusError`."""
    assignment = suite.load_assignment(name)
    base = reference(name)
    entries = [base, stub(name)]
    for kind in KINDS:
        for path in sorted((suite.repository() / "tests" / "submissions" / name / kind).glob("*.py")):
            entries.append(_entry(path, kind, base, assignment))
    return entries


def _entry(path: Path, kind: str, base: Entry, assignment: Assignment) -> Entry:
    text = path.read_text(encoding="utf-8")
    about = ast.get_docstring(ast.parse(text)) or ""
    names = [word for line in about.splitlines() if line.startswith("fails:") for word in line.split()[1:]]
    known = {check.name for check in assignment.checks}
    fails = known if names == ["*"] else set(names)
    if not about or fails - known or bool(fails) == (kind == "right"):
        raise CorpusError(
            f"{path.name} ({kind}): its docstring must say what it is" + (
                "." if kind == "right" else f" and name the checks that it fails; unknown: {sorted(fails - known)}."
            )
        )
    answers = dict(base.answers)
    for cell in jupytext.reads(text, fmt="py:percent").cells:
        if named := cell.metadata.get("task") or cell.metadata.get(HELPERS):
            if named not in answers:
                raise CorpusError(f"{path.name} has a cell {named!r}, which the assignment has not.")
            answers[named] = cell.source
    return Entry(kind, path.stem, about.splitlines()[0], frozenset(fails), answers)


def expected_points(entry: Entry, assignment: Assignment) -> float:
    """The points that the entry must get."""
    return float(sum(check.points for check in assignment.checks if check.name not in entry.fails))


def complaints(entry: Entry, graded: Graded) -> list[str]:
    """Where the grade of `entry` is not what its head says."""
    if graded.result is None or graded.score is None:
        return [f"{entry.kind}/{entry.name} was not graded: {graded.problem}"]
    if graded.score.withheld:
        return [f"{entry.kind}/{entry.name} is withheld: {'; '.join(graded.score.withheld)}"]
    passed = {finding.check for finding in graded.result.findings if finding.outcome is Outcome.PASSED}
    failed = {finding.check: finding for finding in graded.result.findings if finding.outcome is not Outcome.PASSED}
    wrong = [f"{entry.kind}/{entry.name} passes {check}, which it must fail" for check in sorted(entry.fails & passed)]
    return wrong + [
        f"{entry.kind}/{entry.name} fails {check}, which it must pass: {failed[check].message}"
        for check in sorted(failed.keys() - entry.fails)
    ]


def unkilled(entries: Iterable[Entry], assignment: Assignment) -> list[str]:
    """Checks that no wrong submission but the stub fails: nobody has seen them fail for a reason."""
    failed = {check for entry in entries if entry.kind == "wrong" and entry.name != "stub" for check in entry.fails}
    return [check.name for check in assignment.checks if check.name not in failed]


def notebook(name: str, answers: dict[str, str]) -> Any:
    """The released notebook with `answers` in its cells, as a student would hand it in."""
    made = copy.deepcopy(nbformat.read(suite.repository() / "assignments" / name / f"{name}.ipynb", as_version=4))
    for cell in made.cells:
        if named := cell.metadata.get("task") or cell.metadata.get(HELPERS):
            cell.source = answers[named]
    return made
