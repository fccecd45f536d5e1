"""From `solutions/<name>.py` to `assignments/<name>/`: the one source of an assignment becomes its release.

    solutions/<name>.py ─ read_source ─▶ nbgrader's source/ ─ nbgrader generate_assignment ─▶ release/ ─▶ assignments/<name>/

Deterministic: equal input gives equal bytes, on every Python and in every time zone. Points come from the suite. Nothing that
only the solution or the hidden checks say may stand in what is released; `build` refuses to write such a release.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from sqlalchemy.exc import SAWarning
from traitlets.config import Config

from autograder import suite, temporary
from autograder.authoring import catalogues
from autograder.errors import AutograderError
from autograder.manifest import BEGIN, END, HELPERS, REST, Manifest, TaskEntry, digest
from autograder.spec import Assignment
from autograder.submission import Submission, read_notebook

__all__ = ["BuildError", "LeakError", "build", "differences", "source_files"]

LEAK_LENGTH = 12
"""A line of a solution must be so long, in characters, to count as one that could leak; `return 0` stands everywhere."""
CELL_KEYS = ("task", "given", HELPERS, "check")


class BuildError(AutograderError):
    """`solutions/<name>.py` is not what a build needs. Says which cell and what to change."""


class LeakError(BuildError):
    """The release would show students what only the solution or the hidden checks may say."""


@dataclass(frozen=True)
class Source:
    """An assignment on its way to a release."""

    assignment: Assignment
    notebook: Any
    manifest: Manifest
    solution_lines: frozenset[str]
    """Lines that stand between the solution markers and nowhere else."""


def build(name: str, destination: Path) -> Path:
    """Write the release of `name` to `destination/<name>` and return that folder; what was there is replaced.

    Raises `BuildError`, `LeakError`, `UnknownAssignment`, `SpecError`.
    """
    source = read_source(name)
    with temporary.folder("autograder-build-") as course:
        for path, text in source_files(source).items():
            target = course / "source" / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8", newline="\n")
        generate(course, name)
        released = course / "release" / name
        notebook = nbformat.read(released / f"{name}.ipynb", as_version=4)
        manifest = _with_stubs(source.manifest, read_notebook(released / f"{name}.ipynb", source.manifest))
        files = {path.name: path.read_text(encoding="utf-8") for path in released.iterdir() if path.suffix != ".ipynb"}
        files[f"{name}.ipynb"] = nbformat.writes(notebook) + "\n"
        files[f"{name}.py"] = _script(notebook)
        files["manifest.json"] = manifest.dump()
        _refuse_leaks(source, files)
        target = destination / name
        if target.exists():
            shutil.rmtree(target)
        target.mkdir(parents=True)
        for file, text in files.items():
            (target / file).write_text(text, encoding="utf-8", newline="\n")
    return target


def differences(name: str) -> list[str]:
    """Files of the committed release that a build would write otherwise; empty when `assignments/` is up to date."""
    committed = suite.repository() / "assignments" / name
    with temporary.folder("autograder-build-") as folder:
        built = build(name, folder)
        paths = {
            path.relative_to(root).as_posix()
            for root in (built, committed)
            for path in root.rglob("*")
            if path.is_file()
        }
        return [path for path in sorted(paths) if _bytes(built / path) != _bytes(committed / path)]


def read_source(name: str) -> Source:
    """Read and check `solutions/<name>.py` against the suite's `spec.py`."""
    assignment = suite.load_assignment(name)
    path = suite.repository() / "solutions" / f"{name}.py"
    if not path.is_file():
        raise BuildError(
            f"{path.name} is missing from solutions/. Every assignment has one solution file of its own name."
        )
    given_notebook = jupytext.read(path, fmt="py:percent")
    cells: list[Any] = []
    seen: dict[str, list[str]] = {key: [] for key in CELL_KEYS}
    for number, cell in enumerate(given_notebook.cells, 1):
        cell.metadata.pop("lines_to_next_cell", None)  # jupytext's own note on blank lines
        roles = [key for key in CELL_KEYS if key in cell.metadata]
        if unknown := set(cell.metadata) - set(CELL_KEYS):
            raise BuildError(
                f"solutions/{name}.py, cell {number}: unknown head {sorted(unknown)}; known are {CELL_KEYS}."
            )
        if len(roles) > 1 or "check" in roles:
            raise BuildError(
                f"solutions/{name}.py, cell {number}: one role per cell, and no check cells (build adds them)."
            )
        if roles:
            seen[roles[0]].append(cell.metadata[roles[0]])
        made = _cell(cell, roles[0] if roles else None, len(cells))
        cells.append(made)
        if roles == ["task"]:
            cells.append(_check_cell(assignment, cell.metadata["task"], name))
    _compare(name, assignment, seen)
    graded = [cell for cell in cells if any(key in cell.metadata for key in ("task", "given", HELPERS))]
    given = {cell.metadata["given"]: cell.source for cell in graded if "given" in cell.metadata}
    order = tuple(next(cell.metadata[key] for key in CELL_KEYS if key in cell.metadata) for cell in graded)
    release = hashlib.sha256(json.dumps([given, [task.name for task in assignment]]).encode()).hexdigest()[:16]
    manifest = Manifest(
        assignment=name,
        title=assignment.title,
        release=release,
        preload=assignment.preload,
        call_s=assignment.call_s,
        check_s=assignment.check_s,
        cpu_s=assignment.cpu_s,
        memory_bytes=assignment.memory_bytes,
        cells=order,
        given=given,
        stubs={},
        tasks={
            task.name: TaskEntry(title=task.title, minutes=task.minutes, points=task.points, public=dict(task.public))
            for task in assignment
        },
    )
    notebook = new_notebook(cells=cells)
    notebook.metadata.update(
        autograder={"assignment": name, "release": release},
        jupytext={
            "formats": "ipynb,py:percent",
            "cell_metadata_filter": ",".join([*CELL_KEYS, "-all"]),
            "notebook_metadata_filter": "autograder,jupytext,kernelspec,-all",
        },
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    return Source(assignment, notebook, manifest, _solution_lines(cells))


def source_files(source: Source) -> dict[str, str]:
    """What a build puts into nbgrader's `source/<name>/`: everything but the notebook is copied to students as it is."""
    name = source.assignment.name
    public = suite.folder(name) / "test_public.py"
    return {
        f"{name}.ipynb": nbformat.writes(source.notebook) + "\n",
        "public_checks.py": public.read_text(encoding="utf-8"),
        "README.md": _readme(source),
        **catalogues.released(source.assignment, suite.folder(name)),
    }


def generate(course: Path, name: str, config: Config | None = None) -> None:
    """Run nbgrader's generate_assignment in a course folder. Raises `BuildError` with nbgrader's log."""
    from nbgrader.apps import NbGraderAPI

    config = config or Config()
    config.CourseDirectory.root = str(course)
    with quiet_nbgrader() as log:
        done = NbGraderAPI(config=config).generate_assignment(name)
    if not done["success"]:
        raise BuildError(f"nbgrader generate_assignment failed for {name}:\n{done.get('error', '')}{log.getvalue()}")


@contextlib.contextmanager
def quiet_nbgrader() -> Iterator[io.StringIO]:
    """Collect nbgrader's chatter instead of printing it; what went wrong is told by its results.

    nbgrader calls `alembic` by name, so the folder of our own commands leads the PATH meanwhile.
    """
    from traitlets import log as traitlets_log

    logger = traitlets_log.get_logger()
    handler = logging.StreamHandler(stream := io.StringIO())
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    path = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), path])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", SAWarning
            )  # nbgrader 0.9 on SQLAlchemy 2: about when objects join a session
            yield stream
    finally:
        os.environ["PATH"] = path
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def _cell(cell: Any, role: str | None, number: int) -> Any:
    made = nbformat.from_dict(dict(cell))
    made.metadata = nbformat.from_dict(dict(cell.metadata))
    made["id"] = f"{role}-{cell.metadata[role]}"[:64] if role else f"cell-{number}"
    made.pop("outputs", None)
    made.pop("execution_count", None)
    if made.cell_type == "code":
        made.update(outputs=[], execution_count=None)
    if role in ("task", "given"):
        made.metadata["nbgrader"] = _nbgrader(cell.metadata[role], solution=role == "task", locked=role == "given")
    if role == "given":
        made.metadata.update(deletable=False, editable=False)
    if role == "task":
        made.metadata.update(deletable=False)
    return made


def _check_cell(assignment: Assignment, task: str, name: str) -> Any:
    try:
        points = assignment.task(task).points
    except KeyError:
        raise BuildError(f'solutions/{name}.py has a cell task="{task}", which spec.py does not list.') from None
    cell = new_code_cell(f'from autograder import check\n\ncheck("{task}")')
    cell["id"] = f"check-{task}"[:64]
    metadata = _nbgrader(f"check_{task}", solution=False, locked=True) | {"grade": True, "points": points}
    cell.metadata.update(check=task, nbgrader=metadata, deletable=False, editable=False)
    return cell


def _nbgrader(grade_id: str, *, solution: bool, locked: bool) -> dict[str, Any]:
    """nbgrader's cell metadata, schema 3."""
    return {
        "grade": False,
        "grade_id": grade_id,
        "locked": locked,
        "schema_version": 3,
        "solution": solution,
        "task": False,
    }


def _compare(name: str, assignment: Assignment, seen: dict[str, list[str]]) -> None:
    tasks = [task.name for task in assignment]
    if seen["task"] != tasks:
        raise BuildError(f"solutions/{name}.py has cells for the tasks {seen['task']}; spec.py lists {tasks}.")
    if seen[HELPERS] != [HELPERS]:
        raise BuildError(f'solutions/{name}.py must have exactly one cell `# %% {HELPERS}="{HELPERS}"`.')
    names = [*tasks, HELPERS, *seen["given"]]
    if len(set(names)) < len(names):
        raise BuildError(f"solutions/{name}.py uses a cell name twice: {sorted(names)}.")


def _solution_lines(cells: list[Any]) -> frozenset[str]:
    inside: set[str] = set()
    outside: set[str] = set()
    for cell in cells:
        solution = False
        for line in (line.strip() for line in cell.source.splitlines()):
            if line in (BEGIN, END):
                solution = line == BEGIN
            else:
                (inside if solution else outside).add(line)
    return frozenset(line for line in inside - outside if len(line) >= LEAK_LENGTH)


def _with_stubs(manifest: Manifest, released: Submission) -> Manifest:
    """The manifest with the hashes of the cells as students receive them."""
    stubs = {name: digest(source) for name, source in released.answers.items()}
    return manifest.model_copy(update={"stubs": stubs | {REST: released.rest}})


def _refuse_leaks(source: Source, files: dict[str, str]) -> None:
    hidden = [check.name for check in source.assignment.checks if check.hidden]
    for file, text in files.items():
        lines = {
            line.strip().removeprefix("# ").strip()
            for line in text.replace('\\n",', "\n").replace('"', "").splitlines()
        }
        lines |= {line.strip() for line in text.splitlines()}
        if leaked := [
            line for line in sorted(source.solution_lines) if line in lines or line.replace('"', "") in lines
        ]:
            raise LeakError(f"The release file {file} shows a line of the solution: {leaked[0]!r}.")
        if named := [check for check in hidden if check in text]:
            raise LeakError(f"The release file {file} names the hidden check {named[0]}.")


def _script(notebook: Any) -> str:
    """The paired `.py` file, without the version of jupytext that wrote it: releases differ by content only."""
    lines = jupytext.writes(notebook, fmt="py:percent").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("#       jupytext_version:"))


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _readme(source: Source) -> str:
    assignment, name = source.assignment, source.assignment.name
    rows = "\n".join(
        f"| `{task.name}` | {task.title} | {task.minutes} min | {task.points} | {sum(task.public.values())} |"
        for task in assignment
    )
    return f"""# {assignment.title}

Work in `{name}.ipynb` (JupyterLab) or in `{name}.py` (any editor): they are one notebook in two formats. Edit one of them;
`autograder check` reads the one that you changed and brings the other up to date.

| task | what you implement | about | points | of them shown by public checks |
|---|---|---|---|---|
{rows}

- **Check** as often as you like: run the cell `check("...")` below a task, or in a terminal `autograder check {name}.ipynb`.
  It runs the public checks (`public_checks.py`, read them) on your machine; `--task NAME` runs those of one task, `--inline` runs
  your code in the same process, for breakpoints. Grading adds hidden checks of the same behaviour. One call of your code may take
  {assignment.call_s:g} s, one check {assignment.check_s:g} s.
- **Both files changed?** Then `autograder check` stops, and `autograder sync FILE` makes FILE the one that counts. What it
  overwrites is kept beside it as `.NAME.bak`. In JupyterLab, reload a notebook that was brought up to date before you go on
  (File, Reload).
- **What is graded**: the cell of each task and the one cell "imports and helpers". Other cells are yours and never run when
  grading, so import what your solution needs in the cell of helpers. A later task that calls an earlier one calls *your*
  earlier one. Cells below an unsolved task fail until you solve it.
- **Hand in** with nbgrader (Assignments tab in JupyterLab, or `nbgrader submit {name}`).
- **Language**: checks answer in the language of your environment if they know it. To choose: `autograder check --lang zh_TW`,
  or `%env LANGUAGE=zh_TW` in a cell of the notebook (正體中文).
- `python -m gpu_env` prints what a question in the forum should say about your machine.
"""
