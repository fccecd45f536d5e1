"""nbgrader's autograde, with our results in place of executed cells.

`RestoreRelease` runs first: it lays the student's answers into the release, whatever became of its other cells. `EnterResults`
replaces `Execute`: it writes the points and findings of the stored result into each grade cell, where nbgrader's own
`SaveAutoGrades` reads them. No student code runs here.

nbgrader's traps that shape this module: the first output of a cell wins; any text on stderr scores 0; no output, NaN or text
that is no number scores full points; more points than the maximum abort the student. So: exactly one output, a plain number.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_output
from nbgrader.converters import BaseConverter
from nbgrader.preprocessors import (
    AssignLatePenalties,
    CheckCellMetadata,
    ClearOutput,
    DeduplicateIds,
    NbGraderPreprocessor,
    OverwriteCells,
    OverwriteKernelspec,
    SaveAutoGrades,
)
from traitlets import Enum, Unicode

from autograder import results, suite
from autograder.errors import AutograderError
from autograder.grade import score
from autograder.pages import feedback
from autograder.results import Refused, Result
from autograder.sandboxing.isolation import LEVELS
from autograder.signing import PublicKey
from autograder.students import pair
from autograder.submission import UnreadableSubmission

__all__ = ["AUTOGRADE", "SANITIZE", "EnterResults", "RestoreRelease", "Withheld"]


class Withheld(AutograderError):
    """There is no grade to enter. nbgrader reports the student as failed and leaves the gradebook as it was."""


class RestoreRelease(NbGraderPreprocessor):
    """Rebuild the notebook: the cells of the release in their order, the student's answers in them, own cells after them."""

    def preprocess(self, nb: Any, resources: Any) -> tuple[Any, Any]:
        name = resources["nbgrader"]["assignment"]
        if name not in suite.names():
            return nb, resources
        loaded = suite.load(name)
        folder = _submitted(self, resources)
        try:
            submission = pair.read(folder, loaded.manifest, graded_only=True).submission
        except UnreadableSubmission as error:
            raise Withheld(str(error)) from None
        release = nbformat.read(suite.repository() / "assignments" / name / f"{name}.ipynb", as_version=4)
        known = {_identity(cell) for cell in release.cells}
        own: dict[Any, list[Any]] = {}
        after = None
        for cell in nb.cells:
            identity = _identity(cell)
            if identity in known:
                after = identity
            elif cell.cell_type == "code" and cell.source.strip():
                own.setdefault(after, []).append(_own(cell))
        cells = own.pop(None, [])
        for cell in release.cells:
            name_of = cell.metadata.get("task") or cell.metadata.get("helpers")
            if name_of in submission.answers:
                cell.source = submission.answers[name_of]
            cells += [cell, *own.pop(_identity(cell), [])]
        for number, cell in enumerate(cells):
            cell["id"] = f"graded-{number}"
        release.cells = cells
        return release, resources


class EnterResults(NbGraderPreprocessor):
    """Write points and findings of the stored result into the grade cells. Grades now if nothing is stored."""

    isolation = Enum(tuple(LEVELS), "sandbox", help="Lowest isolation that a grade may be made with.").tag(config=True)
    public_key = Unicode("", help="The key that results must be signed with; none need be without it.").tag(config=True)

    def preprocess(self, nb: Any, resources: Any) -> tuple[Any, Any]:
        name, student = resources["nbgrader"]["assignment"], resources["nbgrader"]["student"]
        if name not in suite.names():
            raise Withheld(f"{name!r} has no suite. In this course nbgrader grades assignments of the autograder only.")
        loaded = suite.load(name)
        file, result = self._result(loaded, resources)
        scored = score(loaded.assignment, result.findings, result.withheld)
        if scored.withheld:
            raise Withheld(f"The grade of {student} for {name} is withheld: " + "; ".join(scored.withheld))
        for task in scored.tasks:
            cells = [
                cell for cell in nb.cells if cell.metadata.get("nbgrader", {}).get("grade_id") == f"check_{task.task}"
            ]
            if len(cells) != 1 or not math.isfinite(task.points) or not 0 <= task.points <= task.max_points:
                raise Withheld(
                    f"{name}: the gradebook has {len(cells)} grade cells for {task.task}; run `autograder init`."
                )
            html = feedback.task_html(result, task)
            cells[0].outputs = [
                new_output("execute_result", {"text/plain": repr(task.points), "text/html": html}, execution_count=1)
            ]
            cells[0].execution_count = 1
        nb.metadata.setdefault("autograder", {})["result"] = file.stem
        return nb, resources

    def _result(self, loaded: suite.Suite, resources: Any) -> tuple[Path, Result]:
        name, student = resources["nbgrader"]["assignment"], resources["nbgrader"]["student"]
        course = Path(_converter(self).coursedir.root)
        submission = pair.read(_submitted(self, resources), loaded.manifest, graded_only=True).submission
        signer = PublicKey.parse(self.public_key) if self.public_key else None
        for attempt in range(2):
            why = f"No result is stored for {student}."
            for tier in ("gpu", "cpu"):
                file = results.path(course / "results", name, student, results.key(submission.hash, loaded.hash, tier))
                try:
                    result = results.load(file, signer, at_home=True)
                except Refused as error:
                    why = str(error)
                    continue
                if result and result.isolation.level >= LEVELS[self.isolation]:
                    return file, result
            if attempt == 0:
                self.log.info("%s Grading it now.", why)
                reason = self._grade_now(name, student, course)
        reason = reason or f"Run `autograder grade {name}`, it says why."
        raise Withheld(reason if why in reason else f"{why} {reason}")

    def _grade_now(self, name: str, student: str, course: Path) -> str:
        """Grade in a process of its own: this one may be a server with threads, which must not be forked.

        Gives what it says about the student.
        """
        command = [sys.executable, "-P", "-m", "autograder", "grade", name, f"--course={course}"]
        command += [f"--isolation={self.isolation}", "--no-import", "--plain"]
        if _converter(self).coursedir.student_id != "*":
            command += [f"--student={student}"]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        said = (done.stdout + done.stderr).splitlines()
        return " ".join(
            line.partition(":")[2].strip() for line in said if line.startswith((f"{student}:", "autograder:"))
        )


def _converter(preprocessor: NbGraderPreprocessor) -> BaseConverter:
    return preprocessor.parent.parent


def _submitted(preprocessor: NbGraderPreprocessor, resources: Any) -> Path:
    coursedir = _converter(preprocessor).coursedir
    about = resources["nbgrader"]
    return Path(coursedir.format_path(coursedir.submitted_directory, about["student"], about["assignment"]))


def _identity(cell: Any) -> Any:
    metadata = cell.metadata
    named = next(((role, metadata[role]) for role in ("task", "helpers", "given", "check") if role in metadata), None)
    return named or (cell.cell_type, cell.source)


def _own(cell: Any) -> Any:
    """A cell of the student's, without any metadata that nbgrader acts on."""
    cell.metadata = nbformat.from_dict({})
    return cell


class CheckMetadata(CheckCellMetadata):
    """nbgrader's check of its metadata, which is a quarter of an import's time: once for what all notebooks have alike.

    `RestoreRelease` gives each the same cells, and cells of the student's own have no metadata.
    """

    _checked = ""
    """What was right last time."""

    def preprocess(self, nb: Any, resources: Any) -> tuple[Any, Any]:
        known = json.dumps([cell.metadata.get("nbgrader") for cell in nb.cells if "nbgrader" in cell.metadata])
        if known != CheckMetadata._checked:
            nb, resources = super().preprocess(nb, resources)
            CheckMetadata._checked = known
        return nb, resources


SANITIZE = [RestoreRelease, ClearOutput, DeduplicateIds, OverwriteKernelspec, OverwriteCells, CheckMetadata]
AUTOGRADE = [EnterResults, SaveAutoGrades, AssignLatePenalties, CheckMetadata]
