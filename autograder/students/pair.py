"""A notebook and its paired `.py` file: either may be edited. Which one counts, and bringing the other up to date.

`.pair.json` beside them keeps the hashes of the cells that both agreed on last; at first that is the release. The file that
changed since is the one that is read. If both changed, and differently, nothing is guessed.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from autograder.manifest import REST, Manifest, digest
from autograder.submission import (
    MAX_SCRIPT_BYTES,
    Submission,
    UnreadableSubmission,
    read_bytes,
    read_notebook,
    read_script,
)

__all__ = ["Pair", "PairConflict", "read", "take"]

STATE = ".pair.json"


class PairConflict(UnreadableSubmission):
    """Notebook and `.py` file both changed since they last agreed."""


@dataclass(frozen=True)
class Pair:
    """The submission of a folder. `path` was read; `stale` is the other file if it holds older code."""

    submission: Submission
    path: Path
    stale: Path | None
    why: str


def read(folder: Path, manifest: Manifest, *, graded_only: bool = False) -> Pair:
    """Read the file that counts in `folder`. Raises `PairConflict`, `UnreadableSubmission`.

    With `graded_only` the cells that are not graded may differ: they matter to who works on, not to a grade.
    """
    notebook, script = _paths(folder, manifest)
    if not os.path.lexists(script):
        if not os.path.lexists(notebook):
            raise UnreadableSubmission(
                f"There is no {notebook.name} in this folder. Hand in the notebook under the name that it was released with."
            )
        return Pair(read_notebook(notebook, manifest), notebook, None, f"there is no {script.name}")
    if not os.path.lexists(notebook):
        return Pair(read_script(script, manifest), script, None, f"there is no {notebook.name}")
    in_notebook, in_script = read_notebook(notebook, manifest), _tolerant(script, manifest)
    if in_script is None:
        return Pair(in_notebook, notebook, script, f"{script.name} cannot be read")
    differing = _differing(in_notebook, in_script, graded_only)
    if not differing:
        return Pair(in_notebook, notebook, None, "both files hold the same code")
    agreed = _agreed(folder, manifest)
    notebook_changed = any(_hash(in_notebook, name) != agreed.get(name) for name in differing)
    script_changed = any(_hash(in_script, name) != agreed.get(name) for name in differing)
    if notebook_changed and script_changed:
        raise PairConflict(
            f"{notebook.name} and {script.name} both changed since they last agreed, and differ in "
            f"{', '.join(differing)}. Decide which one counts: `autograder sync {notebook.name}` or "
            f"`autograder sync {script.name}` (it overwrites the other)."
        )
    if script_changed:
        return Pair(in_script, script, notebook, f"only {script.name} changed since both agreed")
    return Pair(in_notebook, notebook, script, f"only {notebook.name} changed since both agreed")


def take(path: Path, manifest: Manifest) -> Path:
    """Make the other file of the pair hold what `path` holds, and note that they agree. Returns the other's path.

    What it held before stays as `.NAME.bak` beside it. Raises `UnreadableSubmission`; nothing has changed then.
    """
    import jupytext
    import nbformat
    from jupytext.combine import combine_inputs_with_outputs

    notebook, script = _paths(path.parent, manifest)
    other = script if path.name == notebook.name else notebook
    submission = read_notebook(path, manifest) if path.name == notebook.name else read_script(path, manifest)
    try:
        if path.name == notebook.name:
            text = jupytext.writes(jupytext.read(path), fmt="py:percent")
        else:
            inputs = jupytext.read(path, fmt="py:percent")
            if other.is_file():
                combine_inputs = jupytext.read(other)
                inputs = combine_inputs_with_outputs(inputs, combine_inputs, fmt="py:percent")
                _restore_metadata(inputs, combine_inputs)
            text = nbformat.writes(inputs) + "\n"
    except Exception as error:  # jupytext and nbformat raise anything on a notebook with fields of the wrong type
        raise UnreadableSubmission(
            f"{path.name} cannot be carried over to {other.name}: {str(error)[:200]}. Nothing was changed. "
            f"Open {notebook.name} in JupyterLab and save it, or, if {script.name} counts, move {notebook.name} away; "
            "then run the same command again."
        ) from None
    if other.is_file():
        _write(other.with_name(f".{other.name}.bak"), other.read_bytes())
    _write(other, text.encode())
    _note(path.parent, submission)
    return other


def note_agreement(folder: Path, submission: Submission) -> None:
    """Remember the code that both files hold now."""
    _note(folder, submission)


def _paths(folder: Path, manifest: Manifest) -> tuple[Path, Path]:
    return folder / f"{manifest.assignment}.ipynb", folder / f"{manifest.assignment}.py"


def _tolerant(script: Path, manifest: Manifest) -> Submission | None:
    """The paired file, `None` if it is of no use: the notebook is what nbgrader hands in, so it alone may be graded."""
    try:
        return read_script(script, manifest)
    except UnreadableSubmission:
        return None


def _differing(one: Submission, other: Submission, graded_only: bool) -> list[str]:
    names = [*dict.fromkeys([*one.answers, *other.answers]), *([] if graded_only else [REST])]
    return [name for name in names if _hash(one, name) != _hash(other, name)]


def _hash(submission: Submission, name: str) -> str | None:
    if name == REST:
        return submission.rest
    return digest(submission.answers[name]) if name in submission.answers else None


def _agreed(folder: Path, manifest: Manifest) -> dict[str, str]:
    try:
        state = json.loads(read_bytes(folder / STATE, MAX_SCRIPT_BYTES))
    except (UnreadableSubmission, ValueError, RecursionError):
        state = None
    return state if isinstance(state, dict) else dict(manifest.stubs)


def _note(folder: Path, submission: Submission) -> None:
    state = {name: digest(source) for name, source in submission.answers.items()} | {REST: submission.rest}
    data = (json.dumps(state, indent=1) + "\n").encode()
    path = folder / STATE
    if not path.is_file() or path.read_bytes() != data:
        _write(path, data)


def _restore_metadata(notebook: object, before: object) -> None:
    """nbgrader's cell metadata lives in the notebook only; give it back to the cells of the same identity."""
    known = {_identity(cell): cell.metadata for cell in before.cells if _identity(cell)}  # type: ignore[attr-defined]
    for cell in notebook.cells:  # type: ignore[attr-defined]
        if (found := known.get(_identity(cell))) is not None:
            cell.metadata = found


def _identity(cell: object) -> tuple[str, str] | None:
    metadata = cell.metadata  # type: ignore[attr-defined]
    return next(((role, metadata[role]) for role in ("task", "helpers", "given", "check") if role in metadata), None)


def _write(path: Path, data: bytes) -> None:
    """Write all of `data` or nothing."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_bytes(data)
    os.replace(temporary, path)
