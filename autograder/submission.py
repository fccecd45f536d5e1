"""What a student handed in: the graded cells of a notebook or of its paired `.py` file, and nothing else of it.

Graded are the task cells and the one cell of helpers. The course's own cells are taken from the release, never from what was
handed in. A task whose cell cannot be identified for sure is no zero: the grade waits for a person.
"""

from __future__ import annotations

import ast
import hashlib
import json
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from autograder.errors import AutograderError
from autograder.manifest import HELPERS, Manifest, digest

__all__ = ["Submission", "UnreadableSubmission", "defined", "read_bytes", "read_notebook", "read_script"]

MAX_FILE_BYTES = 1 << 30
MAX_SCRIPT_BYTES = 2 << 20
"""A `.py` file has no outputs, and jupytext takes seconds for each megabyte."""
MAX_PARSED = 1 << 18
"""Characters of a graded cell, and of all others together, that are parsed for names; the parser needs 400 times that."""
MAX_SOURCE_BYTES = 1 << 20
"""Of all graded cells together. The longest honest solution of the course has some thousand bytes."""
ROLES = ("task", HELPERS, "given", "check")


class UnreadableSubmission(AutograderError):
    """The file is no submission of this assignment. The text says what, why and what next, for the student."""


@dataclass(frozen=True)
class Submission:
    """The graded content of one submission.

    `answers` maps task names and "helpers" to source. `missing` says for a task why it has none; `review` lists reasons why
    a person must look before any grade counts; `remarks` are for the student and change nothing.
    """

    source: str
    answers: dict[str, str]
    missing: dict[str, str] = field(default_factory=dict)
    review: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    elsewhere: dict[str, str] = field(default_factory=dict)
    """Names that only cells outside the graded ones define, with the cell."""
    rest: str = ""
    """Hash of the code cells that are not graded: a pair of files must not lose them."""

    @property
    def hash(self) -> str:
        """Identifies the graded content: equal content, equal grade."""
        content = [sorted(self.answers.items()), sorted(self.missing.items()), self.review]
        return hashlib.sha256(json.dumps(content).encode(errors="surrogatepass")).hexdigest()

    def module(self, manifest: Manifest) -> list[tuple[str, str]]:
        """The cells that a worker executes, in order: given ones from the release, answers from the student."""
        cells = ((name, manifest.given.get(name, self.answers.get(name))) for name in manifest.cells)
        return [(name, source) for name, source in cells if source is not None]


@dataclass(frozen=True)
class _Cell:
    number: int
    role: str | None
    name: str | None
    source: str

    def __str__(self) -> str:
        return f"cell {self.number}"


def read_notebook(path: Path, manifest: Manifest) -> Submission:
    """The submission in a notebook. Raises `UnreadableSubmission`."""
    raw = read_bytes(path)
    try:
        notebook = json.loads(raw)
    except UnicodeDecodeError as error:
        raise UnreadableSubmission(
            f"{path.name} is not a notebook: byte {error.start:,} is not valid UTF-8. "
            "Open your own copy in JupyterLab, save it, and hand in again."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UnreadableSubmission(
            f"{path.name} is not a notebook: it is not valid JSON ({str(error)[:120]}). "
            "A merge conflict or an interrupted download does this; open your own copy in JupyterLab, save it, hand in again."
        ) from None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise UnreadableSubmission(
            f"{path.name} is not a notebook of format 4: it has no list of cells. Open it in JupyterLab, save it, hand in again."
        )
    metadata = notebook.get("metadata")
    about = metadata.get("autograder") if isinstance(metadata, dict) else None
    code = [
        _notebook_cell(number, cell)
        for number, cell in enumerate(cells, 1)
        if isinstance(cell, dict) and cell.get("cell_type") == "code"
    ]
    return _select(path.name, about if isinstance(about, dict) else {}, code, manifest)


def read_script(path: Path, manifest: Manifest) -> Submission:
    """The submission in a py:percent file. Raises `UnreadableSubmission`."""
    import jupytext

    try:
        text = read_bytes(path, MAX_SCRIPT_BYTES).decode()
    except UnicodeDecodeError as error:
        raise UnreadableSubmission(
            f"{path.name} is not valid UTF-8 (byte {error.start:,}). Save it as UTF-8 and try again."
        ) from None
    try:
        notebook = jupytext.reads(text, fmt="py:percent")
    except Exception as error:  # jupytext raises what its YAML and metadata parsers raise
        raise UnreadableSubmission(
            f"{path.name} is not a py:percent file: {str(error)[:200]}. Restore its `# %%` lines from the release."
        ) from None
    code = [
        _notebook_cell(number, dict(cell))
        for number, cell in enumerate(notebook.cells, 1)
        if cell.get("cell_type") == "code"
    ]
    about = notebook.metadata.get("autograder")
    return _select(path.name, dict(about) if isinstance(about, dict) else {}, code, manifest)


def read_bytes(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """The content of a regular file: links, devices and pipes are not followed, opened or waited for."""
    try:
        status = path.lstat()
    except OSError as error:
        raise UnreadableSubmission(
            f"{path.name} cannot be read: {error.strerror}. Check its name and permissions."
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableSubmission(f"{path.name} is not a regular file (a link or a device). Hand in the file itself.")
    if status.st_size > limit:
        raise UnreadableSubmission(
            f"{path.name} has {status.st_size:,} bytes; at most {limit:,} are read. "
            "Clear its outputs (Edit, Clear Outputs of All Cells) and pasted data, save, and hand in again."
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableSubmission(f"{path.name} cannot be read: {error.strerror}. Check its permissions.") from None


def _notebook_cell(number: int, cell: dict[str, Any]) -> _Cell:
    source = cell.get("source", "")
    if isinstance(source, list):
        source = "".join(part for part in source if isinstance(part, str))
    metadata = cell.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    nbgrader = metadata.get("nbgrader")
    name = nbgrader.get("grade_id") if isinstance(nbgrader, dict) else None
    role = next((role for role in ROLES if isinstance(metadata.get(role), str)), None)
    if role is not None:
        name = metadata[role] if not isinstance(name, str) or role == "check" else name
    source = source if isinstance(source, str) else ""
    # Half of a surrogate pair, which JSON can escape, is no text that Python could compile or a wire carry.
    source = source.encode(errors="replace").decode()
    return _Cell(number, role, name if isinstance(name, str) else None, source)


def _select(file: str, about: dict[str, Any], code: list[_Cell], manifest: Manifest) -> Submission:
    wanted = [*manifest.tasks, HELPERS]
    known = [cell for cell in code if cell.name in wanted and cell.role in (None, "task", HELPERS)]
    named = about.get("assignment")
    if isinstance(named, str) and named != manifest.assignment:
        raise UnreadableSubmission(
            f"{file} is a notebook of the assignment {named[:80]!r}, not of {manifest.assignment!r}. "
            f"Hand in {manifest.assignment}.ipynb."
        )
    if named is None and not known:
        raise UnreadableSubmission(
            f"{file} has none of the cells of {manifest.assignment!r}. "
            "Copy your code into the notebook that was released, and hand that in."
        )
    review, remarks = [], []
    release = about.get("release")
    if release != manifest.release:
        review.append(
            f"{file} comes from {'an older release' if isinstance(release, str) else 'no known release'} of "
            f"{manifest.assignment!r} than the one graded now. Fetch the assignment again and copy your solutions over."
        )
    answers: dict[str, str] = {}
    missing: dict[str, str] = {}
    used: set[int] = set()
    chosen = {cell.number for cell in known}
    definitions = _definitions(cell for cell in code if cell.number not in chosen)
    for name in wanted:
        candidates = [cell for cell in known if cell.name == name]
        used.update(cell.number for cell in candidates)
        if len({digest(cell.source) for cell in candidates}) > 1:
            where = " and ".join(map(str, candidates))
            review.append(
                f"{file} has different cells for {name!r}: {where}. Keep the one that counts, delete the others."
            )
        if candidates:
            answers[name] = candidates[-1].source
            if len(candidates) > 1:
                remarks.append(f"The cell for {name!r} stands {len(candidates)} times.")
        elif name != HELPERS:
            defining = [cell for cell in code if cell.name not in wanted and name in definitions.get(cell.number, ())]
            if defining:
                review.append(
                    f"{file} has no cell for the task {name!r}, but {defining[0]} defines that name. "
                    "The cell has lost its identity (copying does this): put the code into the cell of the release."
                )
            missing[name] = (
                f"The notebook has no cell for {name!r}: it was deleted or renamed. "
                "Fetch the assignment again and copy your code into its cells."
            )
    for cell in code:
        if cell.name in manifest.given and digest(cell.source) != digest(manifest.given[cell.name]):
            remarks.append(f"You changed the course's own {cell}; grading uses the original.")
    if sum(len(source) for source in answers.values()) > MAX_SOURCE_BYTES:
        raise UnreadableSubmission(
            f"The graded cells of {file} hold more than {MAX_SOURCE_BYTES:,} characters. Compute data instead of pasting it."
        )
    others = [cell for cell in code if cell.number not in used and cell.name not in manifest.given]
    elsewhere = {name: str(cell) for cell in others for name in definitions.get(cell.number, ())}
    for source in [*answers.values(), *manifest.given.values()]:
        for name in defined(source):
            elsewhere.pop(name, None)
    rest = digest("\n".join(cell.source for cell in code if cell.number not in used and cell.role != "check"))
    return Submission(file, answers, missing, tuple(review), tuple(remarks), elsewhere, rest)


def _definitions(cells: Iterable[_Cell]) -> dict[int, frozenset[str]]:
    """Names that cells bind at their top level, by number of the cell, as far as parsing them is affordable."""
    found, parsed = {}, 0
    for cell in cells:
        if parsed + len(cell.source) <= MAX_PARSED:
            parsed += len(cell.source)
            found[cell.number] = defined(cell.source)
    return found


@lru_cache(maxsize=256)  # a class has the course's own cells in common, and each submission is read several times
def defined(source: str) -> frozenset[str]:
    """Names that a cell binds at its top level; none if it does not parse, or is too long to be parsed."""
    if len(source) > MAX_PARSED:
        return frozenset()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        else:
            names.update(
                part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            )
    return frozenset(names)
