"""nbgrader's generate_feedback, with our page in place of the exported notebook.

The page comes from the stored result; the autograded notebook adds the student's code, the gradebook (nbgrader's own
`GetGrades` runs first) late penalties, points set by hand and comments. `release_feedback` then publishes the file as ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nbconvert.exporters import Exporter, HTMLExporter
from traitlets import Unicode

from autograder import language, results, suite
from autograder.errors import AutograderError
from autograder.pages import html_pages
from autograder.pages.student_page import Book, Cell, student_page
from autograder.signing import PublicKey

__all__ = ["NoPage", "StudentPageExporter", "cells"]

CHECK = "check_"
"""Prefix of the grade cells' ids; the rest is the task."""


class NoPage(AutograderError):
    """There is nothing to make the page from. nbgrader reports the student as failed and goes on with the next."""


class StudentPageExporter(HTMLExporter):
    """What `GenerateFeedback` exports an autograded notebook with."""

    language = Unicode("en", help="The language of students' pages.").tag(config=True)

    def from_notebook_node(self, nb: Any, resources: Any = None, **kw: Any) -> tuple[str, Any]:
        """The page of a notebook, and nbconvert's resources. Raises `NoPage`, and `Refused` if the result was changed."""
        nb, resources = Exporter.from_notebook_node(self, nb, resources, **kw)
        about = resources["nbgrader"]
        name, student = about["assignment"], about["student"]
        file = results.path(self._root() / "results", name, student, str(_noted(nb)))
        key = self.config.EnterResults.get("public_key", "")
        result = results.load(file, PublicKey.parse(str(key)) if key else None, at_home=True)
        if result is None:
            raise NoPage(
                f"The result that {student}'s notebook for {name} was graded from is not there. "
                f"Grade again, then generate the feedback again: autograder grade {name}"
            )
        book = Book(max(0.0, float(about["score"])), float(about["late_penalty"]), dict(_entered(nb)))
        with language.use(language.load(self.language, suite.folder(name))):
            page = student_page(result, tuple(cells(nb)), book)
            return html_pages.student_html(page), resources

    def _root(self) -> Path:
        return Path(self.parent.coursedir.root)


def cells(nb: Any) -> Iterable[Cell]:
    """The cells of an autograded notebook, or of a release with answers in it, as a page shows them."""
    for cell in nb.cells:
        about = cell.metadata
        if cell.cell_type == "markdown":
            yield Cell("text", cell.source)
        elif cell.cell_type == "code" and "check" not in about:
            kind = next((kind for kind in ("task", "helpers", "given") if kind in about), "own")
            comment = about.get("nbgrader", {}).get("comment") or ""
            yield Cell(kind, cell.source, about.get("task", ""), comment)  # type: ignore[arg-type]  # one of the four


def _noted(nb: Any) -> str:
    """The name of the result that the notebook was graded from."""
    return str(nb.metadata.get("autograder", {}).get("result", "none"))


def _entered(nb: Any) -> Iterable[tuple[str, float]]:
    """The points of each task in the gradebook, as `GetGrades` found them."""
    for cell in nb.cells:
        about = cell.metadata.get("nbgrader", {})
        if about.get("grade") and str(about.get("grade_id", "")).startswith(CHECK) and "score" in about:
            yield about["grade_id"].removeprefix(CHECK), float(about["score"])
