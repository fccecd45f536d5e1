"""What a release says about itself: `assignments/<name>/manifest.json`, written by `build`, read by everybody else.

The copy in the repository is trusted; the one that comes back with a submission is not read.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from autograder.spec import Assignment, Task

__all__ = ["BEGIN", "END", "HELPERS", "REST", "Manifest", "TaskEntry", "digest"]

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
"""What stands between these lines of a source is the solution; nbgrader puts the stub in its place."""
HELPERS = "helpers"
"""Name of the one free cell of imports and helpers that is graded with the tasks."""
REST = "cells that are not graded"
"""Stands for all of those where the two files of a pair are compared."""


def digest(text: str) -> str:
    """Short content hash of a cell: trailing blank space, which editors add and drop unasked, does not count."""
    lines = "\n".join(line.rstrip() for line in text.rstrip().splitlines())
    return hashlib.sha256(lines.encode(errors="surrogatepass")).hexdigest()[:16]


class TaskEntry(BaseModel):
    """One task as students may know it: hidden checks are a number of points, no names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    minutes: int
    points: int
    public: dict[str, int]


class Manifest(BaseModel):
    """One release. `cells` is the order of all graded cells; `given` holds the source of the course's own ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    assignment: str
    title: str
    release: str
    """Hash of what graded code builds on: the given cells and the names of the tasks. Prose does not change it."""
    preload: tuple[str, ...]
    call_s: float
    check_s: float
    cpu_s: int
    memory_bytes: int
    cells: tuple[str, ...]
    given: dict[str, str]
    stubs: dict[str, str]
    """Hash of each cell that students fill, as released."""
    tasks: dict[str, TaskEntry]

    @property
    def points(self) -> int:
        return sum(task.points for task in self.tasks.values())

    def public_assignment(self) -> Assignment:
        """The assignment as far as its public checks go."""
        tasks = (Task(name, entry.title, entry.minutes, entry.public) for name, entry in self.tasks.items())
        return Assignment(
            self.assignment, self.title, tuple(tasks),
            call_s=self.call_s, check_s=self.check_s, cpu_s=self.cpu_s, memory_bytes=self.memory_bytes,
        )  # fmt: skip

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """The manifest in `folder`; `FileNotFoundError` with what to do when there is none."""
        path = folder / "manifest.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} holds no manifest.json, so it is not the folder of a released assignment. "
                "Give the folder that you fetched, or the notebook in it."
            )
        return cls.model_validate_json(path.read_bytes())

    def dump(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
