"""`check("task")` in a notebook: the public checks of a task, on the cells as they were last executed or saved."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from autograder import language
from autograder.finding import Outcome
from autograder.language import ENGLISH, N_, Language, LanguageError, _, said
from autograder.manifest import HELPERS, Manifest, digest
from autograder.pages import feedback
from autograder.students import selfcheck
from autograder.submission import UnreadableSubmission, defined

__all__ = ["check"]

ABOUT = N_("Public checks, run by yourself. Hidden ones look at the same rules with other inputs when you are graded.")
_executed: dict[str, tuple[str, float]] = {}
"""Source and time of the cells that this kernel executed since `autograder` was loaded, by cell id."""


class Shown:
    """The findings of a self-check, as HTML in a notebook and as text in a terminal."""

    def __init__(self, found: selfcheck.SelfCheck, notes: list[str], spoken: Language = ENGLISH) -> None:
        self.found = found
        self.notes = notes
        self.spoken = spoken

    @property
    def passed(self) -> bool:
        """Whether all points of the public checks are there."""
        return all(finding.outcome is Outcome.PASSED for finding in self.found.findings)

    def _repr_html_(self) -> str:
        found = self.found
        with language.use(self.spoken):
            read = _("read {what}").format(what=found.read)
            remarks = [read, *self.notes, *found.remarks, *found.withheld]
            return "".join(
                feedback.findings_html(
                    task, feedback.rows(found.assignment, found.findings, task.task), remarks, _(ABOUT)
                )
                for task in found.tasks
            )

    def __repr__(self) -> str:
        text = io.StringIO()
        console = Console(width=110, no_color=True, force_jupyter=False, file=text)
        with language.use(self.spoken):
            text.writelines(_("Note: {remark}").format(remark=note) + "\n" for note in self.notes)
            for task in self.found.tasks:
                points = feedback.points_of(task.points, task.max_points)
                title = f"{task.task}: " + _("{points}, read {what}").format(points=points, what=self.found.read)
                rows = feedback.rows(self.found.assignment, self.found.findings, task.task)
                console.print(feedback.table(title, rows))
        return text.getvalue()


class Problem:
    """Why a self-check could not be run."""

    passed = False

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class ChecksFailed(Exception):
    """What nbgrader's Validate button shows of checks that did not pass: any other output is a success to it."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback, which would tell of our code."""
        return [str(self)]


def check(task: str) -> Shown | Problem:
    """Run the public checks of `task` on the notebook that this kernel belongs to, in the folder it was fetched to.

    The language is the environment's; `%env LANGUAGE=zh_TW` in a cell above chooses another one.
    """
    shown: Shown | Problem
    spoken = ENGLISH
    try:
        path = _notebook()
        spoken = language.load(language.chosen(), path.parent)
        with language.use(spoken):
            newer, notes = _newer(path)
            shown = Shown(selfcheck.run(path, task, newer), notes, spoken)
    except (selfcheck.SelfCheckError, UnreadableSubmission, LanguageError, FileNotFoundError) as error:
        with language.use(spoken):
            shown = Problem(_("Not checked. {why}").format(why=said(str(error))))
    if os.environ.get("NBGRADER_EXECUTION") == "validate" and not shown.passed:
        raise ChecksFailed(repr(shown))
    return shown


def _notebook() -> Path:
    """The notebook of this kernel: JupyterLab names it; elsewhere it is the one of the folder."""
    named = os.environ.get("JPY_SESSION_NAME", "")
    if named.endswith(".ipynb") and Path(named).is_file():
        return Path(named)
    manifest = Manifest.load(Path.cwd())
    return Path.cwd() / f"{manifest.assignment}.ipynb"


def _newer(path: Path) -> tuple[dict[str, str], list[str]]:
    """Graded cells that this kernel executed after the file was saved, and a note on those where that is not known."""
    try:
        cells = json.loads(path.read_bytes())["cells"]
        saved = path.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):
        return {}, []
    newer, notes = {}, []
    for cell in cells:
        name = cell.get("metadata", {}).get("task") or cell.get("metadata", {}).get(HELPERS)
        if not name:
            continue
        source = cell.get("source", "")
        source = "".join(source) if isinstance(source, list) else source
        executed, at = _executed.get(str(cell.get("id")), (_last_definition(name), _started()))
        if executed is None or digest(executed) == digest(source):
            continue
        if at > saved:
            newer[str(name)] = executed
        elif str(cell.get("id")) not in _executed:  # executed before or after it was saved: nobody knows
            when = time.strftime("%H:%M:%S", time.localtime(saved))
            notes.append(
                _("{file} as saved at {time} has another text for {name} than you ran last. Save (Ctrl+S), check again.")
                .format(file=path.name, time=when, name=name)
            )  # fmt: skip
    return newer, notes


def _last_definition(name: str) -> str | None:
    """The last input of this kernel that defines `name`: all that is known of cells executed before `autograder` was loaded."""
    shell = _shell()
    inputs = shell.history_manager.input_hist_raw if shell is not None else []
    return next((text for text in reversed(inputs) if name in defined(text)), None)


def _started() -> float:
    """When this kernel was started: what it executed came later."""
    import psutil  # every kernel has it

    return float(psutil.Process().create_time())


def _remember(info: Any) -> None:
    if getattr(info, "cell_id", None) and info.raw_cell:
        _executed[str(info.cell_id)] = (info.raw_cell, time.time())


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


if (shell := _shell()) is not None:
    shell.events.register("pre_run_cell", _remember)
