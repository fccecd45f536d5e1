"""Where suites and releases lie in the repository, and what identifies a suite version."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import autograder
from autograder.errors import AutograderError
from autograder.manifest import Manifest
from autograder.spec import Assignment, SpecError

__all__ = ["Suite", "UnknownAssignment", "folder", "load", "load_assignment", "names", "repository"]

JUDGING = (
    "autograder/checks.py", "autograder/finding.py", "autograder/grade.py", "autograder/spec.py", "autograder/judging/*.py",
    "autograder/sandboxing/pausing.py", "autograder/worker/*.py", "gpu_env/paired.py", "gpu_env/sequential.py",
)  # fmt: skip
"""Files of the framework that take part in a verdict."""


class UnknownAssignment(AutograderError):
    """There is no assignment of that name. The text says what there is."""


def repository() -> Path:
    """The folder that holds `solutions/`, `assignments/` and `tests/grading/`.

    `$AUTOGRADER_REPOSITORY` if set, else the checkout that this package runs from. `FileNotFoundError` where there is none:
    students have the package alone, and do not need it.
    """
    named = os.environ.get("AUTOGRADER_REPOSITORY")
    root = Path(named) if named else Path(autograder.__file__).parent.parent
    if not (root / "tests" / "grading").is_dir():
        raise FileNotFoundError(
            f"{root} holds no suites (tests/grading). Building and grading need a checkout of the course's repository: "
            "install it with `pip install -e .` there, or set AUTOGRADER_REPOSITORY to its path."
        )
    return root


def names() -> list[str]:
    """All assignments that have a suite."""
    return sorted(path.parent.name for path in (repository() / "tests" / "grading").glob("*/spec.py"))


def folder(name: str) -> Path:
    """Where the suite of an assignment lies, with the catalogues of its texts."""
    return repository() / "tests" / "grading" / name


def load_assignment(name: str) -> Assignment:
    """The `ASSIGNMENT` of a suite's `spec.py`. `UnknownAssignment` with the nearest names, `SpecError` if it is wrong."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise UnknownAssignment(
            f"There is no assignment {name!r}."
            + (f" Did you mean {near[0]!r}?" if near else "")
            + f" There are: {', '.join(known)}."
        )
    path = str(repository() / "tests")
    if path not in sys.path:
        sys.path.append(path)
    assignment = importlib.import_module(f"grading.{name}.spec").ASSIGNMENT
    if not isinstance(assignment, Assignment) or assignment.name != name:
        raise SpecError(f"tests/grading/{name}/spec.py does not define ASSIGNMENT with the name {name!r}.")
    return assignment


@dataclass(frozen=True)
class Suite:
    """All checks of an assignment and the release that they belong to."""

    assignment: Assignment
    manifest: Manifest
    files: tuple[Path, ...]
    hash: str


def load(name: str) -> Suite:
    """The suite of an assignment. Raises like `load_assignment`; `FileNotFoundError` if it was never built."""
    assignment = load_assignment(name)
    lies = folder(name)
    manifest = Manifest.load(repository() / "assignments" / name)
    files = tuple(lies / file for file in ("test_public.py", "test_hidden.py"))
    content = hashlib.sha256(manifest.model_dump_json().encode())
    root = Path(autograder.__file__).parent.parent
    judging = (path for pattern in JUDGING for path in sorted(root.glob(pattern)))
    recorded = (repository() / "tests" / "recordings").glob("*/*") if assignment.vllm else ()
    for path in [*sorted(lies.glob("*.py")), *sorted(recorded), *judging]:
        content.update(path.name.encode() + b"\0" + path.read_bytes())
    return Suite(assignment, manifest, files, content.hexdigest())


def version() -> str:
    """Version of the framework."""
    return importlib.metadata.version("inference-autograder")
