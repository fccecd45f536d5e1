"""`check("task")` in a notebook: the public checks of a task, on the cells as they were last executed or saved."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from autograder import feedback, selfcheck
from autograder.manifest import HELPERS, Manifest
from autograder.submission import UnreadableSubmission

__all__ = ["check"]

PROVENANCE = {"submission": "of this notebook", "suite": "public checks", "isolation": "process only, self-check", "tier": "cpu", "framework": ""}
_executed: dict[str, str] = {}
"""Source of cells that this kernel executed since `autograder` was loaded, by cell id."""


class Shown:
    """The findings of a self-check, as HTML in a notebook and as text in a terminal."""

    def __init__(self, found: selfcheck.SelfCheck) -> None:
        self.found = found

    def _repr_html_(self) -> str:
        remarks = [f"read {self.found.read}", *self.found.remarks, *self.found.withheld]
        return "".join(
            feedback.findings_html(task, feedback.rows(self.found.assignment, self.found.findings, task.task), remarks, PROVENANCE)
            for task in self.found.tasks
        )

    def __repr__(self) -> str:
        text = io.StringIO()
        console = Console(width=110, no_color=True, force_jupyter=False, file=text)
        for task in self.found.tasks:
            title = f"{task.task}: {feedback.points_text(task.points)} of {task.max_points} public points, read {self.found.read}"
            console.print(feedback.table(title, feedback.rows(self.found.assignment, self.found.findings, task.task)))
        return text.getvalue()


class Problem:
    """Why a self-check could not be run."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Not checked. {self.text}"


def check(task: str) -> Shown | Problem:
    """Run the public checks of `task`. Looks at the notebook that this kernel belongs to, in the folder that it was fetched to."""
    try:
        path = _notebook()
        return Shown(selfcheck.run(path, task, _newer(path)))
    except (selfcheck.SelfCheckError, UnreadableSubmission, FileNotFoundError) as error:
        return Problem(str(error))


def _notebook() -> Path:
    """The notebook of this kernel: JupyterLab names it; elsewhere it is the one of the folder."""
    named = os.environ.get("JPY_SESSION_NAME", "")
    if named.endswith(".ipynb") and Path(named).is_file():
        return Path(named)
    manifest = Manifest.load(Path.cwd())
    return Path.cwd() / f"{manifest.assignment}.ipynb"


def _newer(path: Path) -> dict[str, str]:
    """Graded cells that were executed here with another text than the saved file has."""
    try:
        cells = json.loads(path.read_bytes())["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    newer = {}
    for cell in cells:
        name = cell.get("metadata", {}).get("task") or cell.get("metadata", {}).get(HELPERS)
        source = cell.get("source", "")
        source = "".join(source) if isinstance(source, list) else source
        executed = _executed.get(str(cell.get("id")))
        if name and executed is not None and executed != source:
            newer[str(name)] = executed
    return newer


def _remember(info: Any) -> None:
    if getattr(info, "cell_id", None) and info.raw_cell:
        _executed[str(info.cell_id)] = info.raw_cell


def _watch() -> None:
    """Remember what is executed from now on, and what was executed before under a known cell id."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is not None:
        shell.events.register("pre_run_cell", _remember)


_watch()
