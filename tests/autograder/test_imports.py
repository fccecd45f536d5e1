"""Imports point one way: what may be loaded beside what."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import autograder
import gpu_env
from autograder.judging.remote import RunningSubmission
from autograder.sandboxing.sandbox import ProcessSandbox

PACKAGE = Path(autograder.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
HEAVY = {
    "IPython", "hypothesis", "jinja2", "jupytext", "matplotlib", "msgspec", "nbconvert", "nbformat", "nbgrader",
    "numpy", "pydantic", "pytest", "rich", "torch", "traitlets", "transformers", "typer",
}  # fmt: skip


def imported(path: Path, package: str) -> Iterator[str]:
    """Full names of the modules that the file at `path` imports, anywhere in it; of `from a import b` a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base]) if base else ".".join(parent)
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def loaded_after(code: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter has loaded after `code`."""
    code += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return set(names)


def test_the_scan_sees_imports_of_every_form(tmp_path: Path) -> None:
    """The scan itself finds what the other tests forbid: nested, relative, aliased and dynamic imports."""
    path = tmp_path / "x.py"
    path.write_text(
        "import a.b as c\nfrom d import e\n"
        "def f():\n  from . import g\n  from ..h import i\n  importlib.import_module('j.k')"
    )
    assert set(imported(path, "p.q")) == {"a.b", "d", "d.e", "p.q", "p.q.g", "p.h", "p.h.i", "j.k"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    """`import autograder` costs a student's notebook, and a worker, no library at all."""
    names = loaded_after("import autograder")
    assert not HEAVY & names
    assert [name for name in names if within(name, "autograder")] == ["autograder"]


def test_the_arithmetic_loads_neither_torch_nor_nbgrader() -> None:
    """Grades are computed without any library that runs, fetches or converts something."""
    names = loaded_after("import autograder.grade")
    assert "autograder.grade" in names
    assert not (HEAVY - {"pydantic"}) & names


def test_specs_need_the_standard_library_only() -> None:
    """A suite's `spec.py` can be read where nothing is installed."""
    assert not HEAVY & loaded_after("import autograder.spec")


def test_only_one_module_touches_the_gradebook() -> None:
    """nbgrader's database API is imported by `autograder.courses.gradebook` and by nothing else."""
    using = {
        str(path)
        for path in MODULES
        if any(within(name, "nbgrader.api") for name in imported(PACKAGE / path, "autograder"))
    }
    assert using == {"courses/gradebook.py"}


@pytest.mark.parametrize("path", [path for path in MODULES if path.parts[0] == "worker"], ids=str)
def test_the_worker_imports_nothing_else_of_ours(path: Path) -> None:
    """What is loaded beside student code knows neither checks nor grades."""
    ours = [name for name in imported(PACKAGE / path, "autograder.worker") if within(name, "autograder")]
    assert [name for name in ours if name != "autograder" and not within(name, "autograder.worker")] == []


def test_a_running_worker_has_loaded_nothing_else_of_ours() -> None:
    """Student code that looks around in a real worker finds the package's head and the worker, and no suite."""
    source = "import sys\ndef look(): return sorted(sys.modules)"
    running = RunningSubmission([("cell", source)], ProcessSandbox())
    try:
        names = running.look()
    finally:
        running.close()
    ours = {name for name in names if within(name, "autograder")}
    assert {"autograder", "autograder.worker", "autograder.worker.serve", "autograder.worker.wire"} <= ours
    assert [name for name in ours if name != "autograder" and not within(name, "autograder.worker")] == []
    assert not any(within(name, package) for name in names for package in ("gpu_env", "grading", "pytest", "nbgrader"))


def test_gpu_env_knows_nothing_of_grading() -> None:
    """The machine's package can be used alone."""
    folder = Path(gpu_env.__file__).parent
    paths = sorted(folder.rglob("*.py"))
    assert paths
    for path in paths:
        assert not [name for name in imported(path, "gpu_env") if within(name, "autograder")], path.name


def test_what_enters_grades_knows_nothing_of_runs() -> None:
    """Runs use the course's gradebook, not the other way round."""
    for path in [path for path in MODULES if path.parts[0] == "courses"]:
        found = imported(PACKAGE / path, "autograder.courses")
        assert not [name for name in found if within(name, "autograder.runs")], path


def test_random_state_is_kept_without_a_look_at_gpus() -> None:
    """`fork_rng` that names no devices begins to use every GPU: fatal in a judge forked from a process that used one."""
    folders = [PACKAGE.parent / each for each in ("autograder", "gpu_env", "solutions", "tests/grading")]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    calls = [call for file in files for call in re.findall(r"fork_rng\(.*?\)", file.read_text(encoding="utf-8"))]
    assert calls
    assert set(calls) == {"fork_rng(devices=[])"}


def test_only_the_command_line_is_imported_by_nobody() -> None:
    """`cli` imports everything else; nothing but the program's entry imports `cli` at run time."""
    for path in MODULES:
        tree = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
        at_run_time = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in at_run_time for alias in node.names} | {
            node.module for node in at_run_time if isinstance(node, ast.ImportFrom)
        }
        if path.name not in ("__main__.py", "cli.py"):
            assert not names & {"autograder.cli", "cli"}, path
