"""A class of `kv_cache`, generated from a seed, and three courses in which the same submissions meet the same checks.

`ours` is a course of the autograder. In `stock`, an ordinary nbgrader course, the suite's text stands in a setup cell and each
check is an autograder cell. For `otter` each check is a test file of its own, the suite a support file. In both the kernel
calls the same check functions as our judge does, through `in_kernel.py`, for the same points.

Kind to both: cells for prose, plots and experiments are left out of their notebooks, and nobody's code loops for ever, which
only we stop. Not covered: endless loops, attacks.
"""

from __future__ import annotations

import ast
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from autograder import suite
from autograder.authoring import build, corpus
from autograder.courses import course, gradebook

__all__ = ["NAME", "OTTER_LOOP", "Class", "otter_course", "our_course", "stock_course", "submissions"]

NAME = "kv_cache"
KINDS = {"right": 5, "wrong": 3, "unfinished": 2}
"""How many of ten are of which kind; their order is drawn."""
SLOW = "test_length_of_huge_limit"
"""Who fails this check counts up to 10**9, which only we stop."""
MODULES = ("oracles", "paged", "spec", "test_public", "test_hidden")
"""Those of the suite, in an order in which each finds the ones that it imports."""
STOCK_CONFIG = 'c = get_config()\nc.CourseDirectory.course_id = "stock"\nc.ExecutePreprocessor.timeout = 300\n'
FUTURE = "from __future__ import annotations\n"
OTTER_TEST = """
from otter.test_files import test_case

OK_FORMAT = False
name = "{check}"
points = {points}


@test_case(points={points}, hidden={hidden})
def {check}(env):
    import suite_of_checks

    suite_of_checks.run(suite_of_checks.{module}.{check}, env)
"""
OTTER_LOOP = """
import json, multiprocessing, os, sys
from pathlib import Path


def grade(path):
    from otter.api import grade_submission
    results = grade_submission(path, os.path.abspath("autograder.zip"), quiet=True)
    return Path(path).parent.parent.name, {name: results.get_score(name) for name in results.test_files}


if __name__ == "__main__":
    import otter.api
    print("warm", flush=True)
    with multiprocessing.get_context("fork").Pool(int(sys.argv[1]), maxtasksperchild=None) as pool:
        for student, points in pool.imap_unordered(grade, sys.argv[2:]):
            print(json.dumps([student, points]), flush=True)
"""
"""otter grades many submissions at once in Docker containers only. This is what it does in each, in a pool of processes."""

Class = dict[str, dict[str, str]]
"""Answers by student."""


def submissions(count: int, copies: float = 0.0, seed: int = 0) -> Class:
    """A class: right, wrong and unfinished submissions, no two alike but for a share of `copies`.

    The names say which half of the class (a, b) a student belongs to.
    """
    rng = random.Random(seed)
    entries = [entry for entry in corpus.load(NAME) if entry.kind in ("right", "wrong") and entry.name != "stub"]
    right = [entry.answers for entry in entries if entry.kind == "right"]
    wrong = [entry.answers for entry in entries if entry.kind == "wrong" and SLOW not in entry.fails]
    stub = corpus.stub(NAME).answers
    tasks = [task.name for task in suite.load_assignment(NAME)]
    unfinished = [right[0] | {name: stub[name] for name in tasks[done:]} for done in range(len(tasks))]
    decks: dict[str, list[Any]] = {"right": right, "wrong": wrong, "unfinished": unfinished}
    kinds = [kind for kind, share in KINDS.items() for _ in range(share)]
    order: list[str] = []
    while len(order) < count:
        order += rng.sample(kinds, len(kinds))
    left: dict[str, list[Any]] = {kind: [] for kind in decks}
    made: Class = {}
    for number, kind in enumerate(order[:count]):
        student = f"{'a' if number < (count + 1) // 2 else 'b'}{number:04}"
        if made and rng.random() < copies:
            made[student] = rng.choice(list(made.values()))
            continue
        left[kind] = left[kind] or rng.sample(decks[kind], len(decks[kind]))
        made[student] = {name: _vary(source, number) for name, source in left[kind].pop().items()}
    return made


def _vary(source: str, number: int) -> str:
    """The same code in another hand: local names end in a number, and there is a comment."""
    comment = f"\n# Version {number}, checked twice."
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source + comment
    locals_: set[str] = set()
    others = {"self", "cls"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            locals_.add(node.id)
        elif isinstance(node, ast.arg):
            others.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            others.add(node.name)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            others.update(node.names)
        elif isinstance(node, ast.alias):
            others.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            others.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            others.add(node.rest)
    bodies = [tree.body, *(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
    for body in bodies:
        for statement in body:  # names of the module and of classes are seen from elsewhere
            if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                others.update(part.id for part in ast.walk(statement) if isinstance(part, ast.Name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in locals_ - others:
            node.id = f"{node.id}_{number}"
    return ast.unparse(tree) + comment if tree.body else source + comment


# --------------------------------------------------------------------------------------------------------- the courses


def our_course(folder: Path, handed_in: Class) -> None:
    """A course that grades with us."""
    course.init(folder, [NAME], course_id="ours")
    for student, answers in handed_in.items():
        _hand_in(folder, student, suite.repository() / "assignments" / NAME / f"{NAME}.ipynb", answers)


def stock_course(folder: Path, handed_in: Class) -> None:
    """A course as nbgrader's manual has it: checks in autograder cells after each task."""
    folder.mkdir()
    (folder / course.CONFIG).write_text(STOCK_CONFIG)
    cells = [_stock_cell("setup", _suite())]
    for cell in build.read_source(NAME).notebook.cells:
        if "given" in cell.metadata or "helpers" in cell.metadata:
            cells.append(cell)
        elif task := cell.metadata.get("task"):
            cells.append(cell)
            for check in suite.load_assignment(NAME).task(task).checks:
                text = f"run({_module(check)}.{check.name}, globals())"
                cells.append(_stock_cell(f"{gradebook.CELL}{check.name}", text, check.points))
    path = folder / "source" / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(_notebook(cells), path)
    build.generate(folder, NAME, config=course.load_config(folder))
    for student, answers in handed_in.items():
        _hand_in(folder, student, folder / "release" / NAME / f"{NAME}.ipynb", answers)


def otter_course(folder: Path, handed_in: Class) -> None:
    """A folder with otter's autograder.zip, and the submissions as its notebooks."""
    (folder / "tests").mkdir(parents=True)
    for check in suite.load_assignment(NAME).checks:
        text = OTTER_TEST.format(check=check.name, points=check.points, hidden=check.hidden, module=_module(check))
        (folder / "tests" / f"{check.name}.py").write_text(text)
    (folder / "suite_of_checks.py").write_text(_suite())
    subprocess.run(
        [sys.executable, "-m", "otter", "generate", "-t", "tests", "--no-requirements", "suite_of_checks.py"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    cells = [
        cell for cell in build.read_source(NAME).notebook.cells if set(cell.metadata) & {"given", "helpers", "task"}
    ]
    release = folder / "release.ipynb"
    nbformat.write(_notebook(cells), release)
    for student, answers in handed_in.items():
        _hand_in(folder, student, release, answers)


def _module(check: Any) -> str:
    return "test_hidden" if check.hidden else "test_public"


def _notebook(cells: list[Any]) -> Any:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def _suite() -> str:
    """The suite as it stands, in one text, with what makes its checks run beside the student's code."""
    parts = [
        "import torch\nimport transformers\n",
        Path(__file__).with_name("in_kernel.py").read_text().replace(FUTURE, ""),
    ]
    folder = suite.repository() / "tests" / "grading" / NAME
    for module in MODULES:
        source = json.dumps((folder / f"{module}.py").read_text())
        parts.append(f"{module} = add_module('grading.{NAME}.{module}', {source})")
    return "\n".join(parts)


def _stock_cell(grade_id: str, source: str, points: int | None = None) -> Any:
    cell = new_code_cell(source)
    about = {"grade_id": grade_id, "schema_version": 3, "locked": True, "solution": False, "task": False}
    cell.metadata["nbgrader"] = about | ({"grade": True, "points": points} if points else {"grade": False})
    return cell


def _hand_in(folder: Path, student: str, release: Path, answers: dict[str, str]) -> None:
    notebook = nbformat.read(release, as_version=4)
    for cell in notebook.cells:
        if named := cell.metadata.get("task") or cell.metadata.get("helpers"):
            cell.source = answers[named]
    path = folder / "submitted" / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(notebook, path)
