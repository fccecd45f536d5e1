"""Courses for the tests of whole grading runs: real nbgrader, real commands, each in a folder of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest

from autograder.authoring import corpus

os.environ["LANGUAGE"] = "en"  # whatever the language of whoever runs the tests: of what is started here too

KILLS = Path(__file__).parent.parent / "benchmarks" / "kills.py"
ALIVE_S = 120
"""Seconds that any command of these tests may take; the longest takes a fifth of it."""

TINY = {
    "solutions/tiny.py": '''
        # %% [markdown]
        # # Tiny

        # %% helpers="helpers"
        # Your imports and helpers.

        # %% task="double"
        def double(n: int) -> int:
            """Twice `n`."""
            ### BEGIN SOLUTION
            return n + n
            ### END SOLUTION

        # %% task="layers"
        def layers(n: int) -> int:
            """`n` itself."""
            ### BEGIN SOLUTION
            return int(n)
            ### END SOLUTION
    ''',
    "tests/grading/__init__.py": "",
    "tests/grading/tiny/__init__.py": "",
    "tests/grading/tiny/spec.py": """
        from autograder.spec import Assignment, Task

        ASSIGNMENT = Assignment(
            "tiny", "Tiny",
            (
                Task("double", "Twice", 1, public={"test_double": 3}, hidden={"test_double_big": 2}),
                Task("layers", "Layers of the model", 1, public={"test_layers": 1}, hidden={"test_layers_of_model": 4}),
            ),
            call_s=8.0,
        )
    """,
    "tests/grading/tiny/test_public.py": '''
        from autograder.checks import expect_equal


        def test_double(submission):
            """Two is twice one."""
            expect_equal(submission.double(1), 2, "Twice 1")


        def test_layers(submission):
            """The number comes back."""
            expect_equal(submission.layers(7), 7, "The layers")
    ''',
    "tests/grading/tiny/test_hidden.py": '''
        import json

        from autograder.checks import expect_equal
        from autograder.judging.oracle import oracle
        from gpu_env import models


        @oracle
        def real_layers():
            return json.loads((models.find("SmolLM2-135M-Instruct") / "config.json").read_text())["num_hidden_layers"]


        def test_double_big(submission, figures):
            """Large numbers are doubled too."""
            figures["digits"] = 22.0
            expect_equal(submission.double(2**70), 2**71, "Twice 2**70")


        def test_layers_of_model(submission):
            """The layers of a real model come back."""
            expect_equal(submission.layers(real_layers()), real_layers(), "The layers of the model")
    ''',
}
"""A repository with one small assignment: 10 points, graded in a tenth of a second, needs the model to be here."""


@dataclass(frozen=True)
class Ran:
    """How a command ended. `said` is all that it printed."""

    code: int
    said: str

    def line(self, start: str) -> str:
        """The line of `said` that begins with `start`."""
        found = [line for line in self.said.splitlines() if line.startswith(start)]
        assert len(found) == 1, f"{len(found)} lines begin with {start!r}:\n{self.said}"
        return found[0]


@dataclass
class Course:
    """An nbgrader course with one assignment. `tmp` is the folder for temporary files of all its commands."""

    root: Path
    name: str
    tmp: Path
    environment: dict[str, str] = field(default_factory=dict)
    output: int = subprocess.PIPE
    """Where commands write: a descriptor, by default a pipe that is read to its end."""

    def start(self, *command: str, **more: str) -> subprocess.Popen[str]:
        """Start a command line in the course's folder, in a process group of its own, without our PATH."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
        clean = {
            "PATH": "/usr/bin:/bin",
            "TMPDIR": str(self.tmp),
            "JUPYTER_CONFIG_DIR": str(self.tmp.with_name("none")),
        }
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=kept | clean | self.environment | more,
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, **more: str) -> Ran:
        """Run a command line to its end."""
        return self.finish(self.start(*command, **more))

    def finish(self, process: subprocess.Popen[str]) -> Ran:
        """Wait for a command that was started; none may run for ever."""
        try:
            said, _ = process.communicate(timeout=ALIVE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
            pytest.fail(f"{process.args!r} did not end within {ALIVE_S} s:\n{said}")
        return Ran(process.returncode, said)

    def autograder(self, *arguments: str, **more: str) -> Ran:
        """Run `autograder`, which never shows a traceback."""
        ran = self.run(sys.executable, "-m", "autograder", *arguments, **more)
        assert "Traceback" not in ran.said, ran.said
        return ran

    def grade(self, *arguments: str, **more: str) -> Ran:
        """Run `autograder grade`."""
        return self.autograder("grade", self.name, *arguments, **more)

    def nbgrader(self, *arguments: str, code: int = 0) -> Ran:
        """Run a stock nbgrader command, which must end with `code`."""
        ran = self.run(sys.executable, "-m", "nbgrader", *arguments)
        assert ran.code == code, ran.said
        return ran

    def folder(self, student: str) -> Path:
        """Where the submission of `student` lies; made if need be."""
        folder = self.root / "submitted" / student / self.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def hand_in(self, student: str, notebook: Any) -> None:
        """Hand in a notebook: an object, or the bytes of the file."""
        content = notebook if isinstance(notebook, bytes) else json.dumps(notebook).encode()
        (self.folder(student) / f"{self.name}.ipynb").write_bytes(content)

    def solve(self, student: str, **answers: str) -> None:
        """Hand in the released notebook of the tiny assignment, `answers` in place of the reference.

        The helpers have the student's name: identical submissions would be judged once.
        """
        notebook = nbformat.read(self.root / "release" / self.name / f"{self.name}.ipynb", as_version=4)
        right = {"double": "def double(n): return n + n", "layers": "def layers(n): return n"}
        right["helpers"] = f"# {student!r}"
        for cell in notebook.cells:
            if named := cell.metadata.get("task") or cell.metadata.get("helpers"):
                cell.source = (right | answers)[named]
        self.hand_in(student, notebook)

    def results(self, student: str = "*") -> list[Path]:
        """The stored results."""
        return sorted((self.root / "results" / self.name).glob(f"{student}/*.json"))

    def findings(self, student: str) -> dict[str, dict[str, Any]]:
        """The findings of the one stored result of `student`, by check."""
        (file,) = self.results(student)
        return {each["check"]: each for each in json.loads(file.read_bytes())["findings"]}

    def book(self) -> dict[str, Any]:
        """What the gradebook says, by student."""
        from autograder.courses import gradebook

        return dict(gradebook.recorded(self.root, self.name))

    def total(self, student: str) -> float | None:
        """The total in the gradebook, `None` if there is none."""
        recorded = self.book().get(student)
        return None if recorded is None else recorded.total

    def copy(self, to: Path) -> Course:
        """The same course in another folder."""
        to.mkdir()
        (to / "tmp").mkdir()
        shutil.copytree(self.root, to / "course")
        return Course(to / "course", self.name, to / "tmp", self.environment)

    def handed_in(self, to: Course, students: Iterable[str]) -> None:
        """Hand in the same submissions to another course."""
        for student in students:
            shutil.copytree(self.folder(student), to.folder(student), dirs_exist_ok=True)


def _init(folder: Path, name: str, environment: dict[str, str]) -> Course:
    (folder / "tmp").mkdir(parents=True)
    (folder / "course").mkdir()
    course = Course(folder / "course", name, folder / "tmp", environment)
    ran = course.autograder("init", ".", name, "--exchange", str(folder / "exchange"))
    assert ran.code == 0, ran.said
    return course


@pytest.fixture(scope="session")
def kv_cache(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """A course with the assignment `kv_cache` and no submission. To be copied."""
    return _init(tmp_path_factory.mktemp("kv_cache") / "base", "kv_cache", {})


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """A course with the assignment of `TINY` and no submission. To be copied."""
    folder = tmp_path_factory.mktemp("tiny")
    repository = folder / "repository"
    for path, text in TINY.items():
        (repository / path).parent.mkdir(parents=True, exist_ok=True)
        (repository / path).write_text(textwrap.dedent(text).lstrip())
    environment = {"AUTOGRADER_REPOSITORY": str(repository)}
    builder = Course(repository, "tiny", folder / "none", environment)
    built = builder.run(sys.executable, "-m", "autograder", "build", TMPDIR=str(folder))
    assert built.code == 0, built.said
    return _init(folder / "base", "tiny", environment)


@pytest.fixture
def course(tiny: Course, tmp_path: Path) -> Course:
    """A course of one's own with the small assignment."""
    return tiny.copy(tmp_path / "own")


@pytest.fixture(scope="session")
def reference() -> dict[str, str]:
    """The reference solution of `kv_cache`: cell name to source."""
    return dict(corpus.reference("kv_cache").answers)


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """A function that returns when a condition holds, and fails if a process ends before it does."""

    def wait(process: subprocess.Popen[str], condition: Callable[[], Any]) -> None:
        end = time.monotonic() + ALIVE_S
        while not condition():
            assert process.poll() is None, f"it ended too early:\n{process.communicate()[0]}"
            assert time.monotonic() < end, f"{process.args!r} did not come so far within {ALIVE_S} s"
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def rows() -> Callable[[Course], Counter[str]]:
    """A function that gives all rows of a gradebook, as the benchmark compares them."""
    spec = importlib.util.spec_from_file_location("kills", KILLS)
    assert spec
    assert spec.loader
    kills: Any = importlib.util.module_from_spec(spec)
    sys.modules["kills"] = kills  # dataclasses look for their module there
    spec.loader.exec_module(kills)
    return lambda course: kills.state(course.root, course.name).book
