"""Bad input: what a student hands in or a machine lacks ends in a sentence, costs nobody else, is no wrong score."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from typer.testing import CliRunner

from autograder import suite
from autograder.authoring import corpus
from autograder.cli import app

if TYPE_CHECKING:
    from conftest import Course, Ran

NAME = "kv_cache"
VICTIM = "max_model_len_that_fits"
"""A task that no other task builds on: what is done to it costs its points only."""
Notebook = Any
Answers = dict[str, str]


def cell(notebook: Notebook, key: str, name: str) -> Any:
    """The one cell whose metadata says `key`: `name`."""
    (found,) = [each for each in notebook.cells if each.metadata.get(key) == name]
    return found


def without(notebook: Notebook, key: str, name: str) -> Notebook:
    notebook.cells.remove(cell(notebook, key, name))
    return notebook


def twice(notebook: Notebook, source: str | None = None) -> Notebook:
    first = cell(notebook, "task", VICTIM)
    second = copy.deepcopy(first)
    second["id"] = "second"
    second.source = first.source if source is None else source
    notebook.cells.insert(notebook.cells.index(first) + 1, second)
    return notebook


def renamed(notebook: Notebook) -> Notebook:
    found = cell(notebook, "task", VICTIM)
    found.metadata["task"] = "mine"
    found.metadata["nbgrader"]["grade_id"] = "mine"
    return notebook


def edited(notebook: Notebook) -> Notebook:
    cell(notebook, "given", "kv_spec").source = "raise SystemExit(0)"
    cell(notebook, "check", VICTIM).source = "print('full marks')"
    return notebook


def about(notebook: Notebook, **more: str) -> Notebook:
    notebook.metadata["autograder"].update(more)
    return notebook


def with_output(notebook: Notebook, size: int) -> Notebook:
    found = cell(notebook, "check", VICTIM)
    found.outputs = [nbformat.v4.new_output("stream", name="stdout", text="x" * size)]
    return notebook


def markdown_only(notebook: Notebook) -> Notebook:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("My answer is 42.")])


@dataclass(frozen=True)
class Hurt:
    """A submission that is the reference but for one thing. `what` makes the notebook, from the reference's.

    It gets no points for the tasks in `costs`, and no grade (withheld) if that is None. `says` must be told.
    """

    what: Callable[[Notebook], Notebook | bytes]
    costs: tuple[str, ...] | None = ()
    says: str = ""


def task(source: str, costs: tuple[str, ...] = (VICTIM,), says: str = "") -> Hurt:
    """The reference with another cell for `VICTIM`."""

    def make(notebook: Notebook) -> Notebook:
        cell(notebook, "task", VICTIM).source = source
        return notebook

    return Hurt(make, costs, says)


def helper(source: str, costs: tuple[str, ...], says: str = "") -> Hurt:
    """The reference with more in the cell of helpers."""

    def make(notebook: Notebook) -> Notebook:
        cell(notebook, "helpers", "helpers").source += "\n" + source
        return notebook

    return Hurt(make, costs, says)


def constant(value: str, imports: str = "") -> str:
    return f"def {VICTIM}(*args, **kwargs):\n    {imports or 'pass'}\n    return {value}"


EVERYTHING = tuple(each.name for each in suite.load_assignment(NAME))
BATCH: dict[str, Hurt] = {
    "not json": Hurt(lambda notebook: b'{"cells": [<<<<<<< HEAD', None, "not valid JSON"),
    "invalid utf-8": Hurt(
        lambda notebook: nbformat.writes(notebook).encode().replace(b"KV", b"\xff\xfe", 1), None, "UTF-8"
    ),
    "empty file": Hurt(lambda notebook: b"", None, "not valid JSON"),
    "a list": Hurt(lambda notebook: b"[1, 2]", None, "no list of cells"),
    "deeply nested": Hurt(lambda notebook: b"[" * 200_000, None, "not a notebook"),
    "other assignment": Hurt(lambda notebook: about(notebook, assignment="sampling"), None, "'sampling'"),
    "older release": Hurt(lambda notebook: about(notebook, release="0" * 16), None, "older release"),
    "only markdown": Hurt(markdown_only, None, "none of the cells"),
    "deleted given": Hurt(lambda notebook: without(notebook, "given", "kv_spec")),
    "deleted check": Hurt(lambda notebook: without(notebook, "check", VICTIM)),
    "deleted task": Hurt(lambda notebook: without(notebook, "task", VICTIM), (VICTIM,), "was deleted or renamed"),
    "duplicated same": Hurt(twice),
    "duplicated different": Hurt(lambda notebook: twice(notebook, "pass"), None, "different cells"),
    "renamed": Hurt(renamed, None, "lost its identity"),
    "edited locked": Hurt(edited),
    "200 MB of output": Hurt(lambda notebook: with_output(notebook, 200_000_000)),
    "task empty": task("", says="does not define that name"),
    "other name": task(f"def {VICTIM}_(): return 0", says="does not define that name"),
    "not a function": task(f"{VICTIM} = 3", says="neither a function nor a class"),
    "other signature": task(f"def {VICTIM}(): return 0", says="TypeError"),
    "raises on import": task("raise RuntimeError('at import')", says="at import"),
    "syntax error": task("def (", says="SyntaxError"),
    "notebook magic": task("%timeit 1", says="notebook commands"),
    "lone surrogate": task(f"def {VICTIM}(*a, **k): return '\ud800'"),
    "nul character": task("x = 1\0", says="null byte"),
    "asleep": task(constant("0", "import time; time.sleep(1e6)"), says="did not answer within"),
    "nan": task(constant("float('nan')"), says="nan"),
    "tensor": task(constant("torch.tensor(0, dtype=torch.int32)", "import torch"), says=""),
    "numpy scalar": task(constant("numpy.int64(0)", "import numpy"), says="int64"),
    "bool": task(constant("False"), says="False"),
    "raises odd text": task(f"def {VICTIM}(*a, **k): raise ValueError('\\ud800\\x00<b>' * 9999)", says="<b>"),
    "exits": helper("import os\nos._exit(0)", EVERYTHING, "ended with exit code 0"),
    "asleep at import": helper("import time\ntime.sleep(1e6)", EVERYTHING, "did not answer within"),
    "prints 100 MB": helper("for _ in range(1000): print('x' * 100_000)", ()),
    "imports torch": helper("import torch", ()),
}
NAMES = ("good", "name with spaces", "zoë 陳", "-rf", "Chan, Zoë; 100%")
PATTERN = "a[b]*c"
SHADOWS = (
    "pytest.py",
    "conftest.py",
    "torch.py",
    "sitecustomize.py",
    "nbgrader_config.py",
    "json.py",
    "jupyter_config.py",
)


@dataclass
class Graded:
    """A course with all of the batch, after one run."""

    course: Course
    ran: Ran
    executed: Path
    """Exists if a file of a student's was executed outside the sandbox."""


@pytest.fixture(scope="module")
def graded(kv_cache: Course, reference: Answers, tmp_path_factory: pytest.TempPathFactory) -> Graded:
    """One grading run over everything bad, and some good."""
    course = kv_cache.copy(tmp_path_factory.mktemp("bad") / "batch")
    executed = course.tmp.with_name("executed")
    good = corpus.notebook(NAME, reference)
    for student in (*NAMES, PATTERN):
        course.hand_in(student, good)
    for student, hurt in BATCH.items():
        course.hand_in(student, hurt.what(copy.deepcopy(good)))
    course.folder("a link").joinpath(f"{NAME}.ipynb").symlink_to(course.folder("good") / f"{NAME}.ipynb")
    course.folder("a folder").joinpath(f"{NAME}.ipynb").mkdir()
    os.mkfifo(course.folder("a pipe") / f"{NAME}.ipynb")
    course.folder("nothing")
    for file in (f"{NAME}.py", "manifest.json"):
        shutil.copy(course.root / "release" / NAME / file, course.folder("no notebook"))
    course.hand_in("bad files", good)
    for file in SHADOWS:
        (course.folder("bad files") / file).write_text(
            f"open({str(executed)!r}, 'w').close()\nraise SystemExit('shadowed')\n"
        )
    course.hand_in(".hidden", good)
    ran = course.grade(PYTHONIOENCODING="utf-8")
    return Graded(course, ran, executed)


def points(*without: str) -> float:
    return float(sum(each.points for each in suite.load_assignment(NAME) if each.name not in without))


def test_the_good_are_graded_beside_the_bad(graded: Graded) -> None:
    """Right submissions have full points, whatever the students are called."""
    book = graded.course.book()
    assert {student: book[student].total for student in NAMES} == dict.fromkeys(NAMES, points())


@pytest.mark.parametrize("student", BATCH)
def test_bad_submissions_get_a_sentence_and_the_right_points(graded: Graded, student: str) -> None:
    """What is wrong costs its own task, or leaves the grade to a person; and it is said."""
    hurt = BATCH[student]
    total = graded.course.total(student)
    if hurt.costs is None:
        assert total is None
        assert hurt.says in graded.ran.line(f"{student}: ")
        return
    assert total == points(*hurt.costs)
    findings = graded.course.findings(student).values()
    assert {each["task"] for each in findings if each["outcome"] != "PASSED"} == set(hurt.costs)
    assert not hurt.costs or any(hurt.says in f"{each['message']} {each['value']}" for each in findings)


def test_files_that_are_no_notebook_are_named(graded: Graded) -> None:
    """A link, a folder, a pipe or nothing where the notebook should be withholds the grade and says so."""
    for student, says in (
        ("a link", "not a regular file"),
        ("a folder", "not a regular file"),
        ("a pipe", "not a regular file"),
        ("nothing", f"There is no {NAME}.ipynb"),
    ):
        assert says in graded.ran.line(f"{student}: ")
        assert graded.course.total(student) is None


def test_a_script_alone_is_graded_and_the_way_into_the_gradebook_named(graded: Graded) -> None:
    """Without a notebook nbgrader cannot enter the grade; the instructor is told how to make one, and then it can."""
    said = graded.ran.line("no notebook: ")
    folder = graded.course.folder("no notebook")
    assert f"autograder sync '{folder / NAME}.py'" in said
    assert graded.course.results("no notebook")
    assert graded.course.total("no notebook") is None
    assert CliRunner().invoke(app, ["sync", str(folder / f"{NAME}.py")]).exit_code == 0
    ran = CliRunner().invoke(app, ["grade", NAME, "--course", str(folder), "--student", "no notebook"])
    assert (ran.exit_code, graded.course.total("no notebook")) == (0, points(*EVERYTHING)), ran.output


def test_a_name_that_nbgrader_takes_for_a_pattern_is_told(graded: Graded) -> None:
    """nbgrader would look for other students than the one called so; nobody's score is entered."""
    assert "Rename the folder" in graded.ran.line(f"{PATTERN}: ")
    assert graded.course.total(PATTERN) is None


def test_files_of_a_student_are_never_imported(graded: Graded) -> None:
    """Neither judge nor nbgrader takes modules or settings from a submission, even when started in its folder."""
    assert graded.course.total("bad files") == points()
    assert not graded.executed.exists()
    folder = graded.course.folder("bad files")
    said = CliRunner().invoke(app, ["grade", NAME, "--course", str(folder), "--student", "bad files"])
    assert (said.exit_code, graded.executed.exists()) == (0, False), said.output


def test_hidden_folders_are_no_students(graded: Graded) -> None:
    """`.ipynb_checkpoints` and the like are passed over, as nbgrader does."""
    assert ".hidden" not in graded.ran.said
    assert graded.course.total(".hidden") is None


def test_the_run_ends_with_a_status_and_without_litter(graded: Graded) -> None:
    """Withheld grades make the exit status 1; no temporary file is left."""
    assert graded.ran.code == 1
    assert list(graded.course.tmp.iterdir()) == []
    assert {path.name for path in graded.course.root.iterdir() if path.name.startswith(".")} == set()


def test_remarks_tell_of_changed_locked_cells(graded: Graded) -> None:
    """Who edited the course's own cells or has one twice reads that it made no difference."""
    import json

    for student, says in (("edited locked", "the course's own"), ("duplicated same", "stands 2 times")):
        (file,) = graded.course.results(student)
        assert any(says in remark for remark in json.loads(file.read_bytes())["remarks"])


def test_stock_autograde_withholds_the_same(graded: Graded, kv_cache: Course, tmp_path: Path) -> None:
    """nbgrader's own command enters no score where ours entered none, and the others' scores are the same."""
    course = kv_cache.copy(tmp_path / "stock")
    graded.course.handed_in(course, ("good", "not json", "renamed", "older release", "nan", "nothing"))
    shutil.copytree(graded.course.root / "results", course.root / "results")
    course.nbgrader("autograde", NAME, code=1)
    assert {student: each.total for student, each in course.book().items()} == {
        "good": points(),
        "nan": points(VICTIM),
    }


# ------------------------------------------------------------------------------------------------ wrong words


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["kv_cash"], "Did you mean 'kv_cache'?"),
        ([NAME, "--student", "nobody"], "No submission of nobody"),
        ([NAME, "--isolation", "sandbx"], "Use one of: sandbox, landlock, process"),
        ([NAME, "--course", "/nowhere/at/all"], "autograder init"),
    ],
)
def test_wrong_words_are_answered_with_the_right_ones(
    graded: Graded, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    """A name that does not exist ends in a sentence that says what there is."""
    monkeypatch.chdir(graded.course.root)
    said = CliRunner().invoke(app, ["grade", *arguments])
    assert said.exit_code == 1
    assert isinstance(said.exception, SystemExit)
    assert says in said.stderr


def refused(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    """What `autograder grade` in `folder` says when it refuses, in a sentence."""
    monkeypatch.chdir(folder)
    said = CliRunner().invoke(app, ["grade", NAME])
    assert said.exit_code == 1
    assert isinstance(said.exception, SystemExit), said.exception
    return said.stderr


def test_an_empty_course_says_how_to_collect(kv_cache: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    """No submissions at all is an error that names nbgrader's next command."""
    assert f"nbgrader collect {NAME}" in refused(monkeypatch, kv_cache.root)


def test_a_folder_that_is_no_course_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of any course the command to make one is named."""
    assert "autograder init" in refused(monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("def broken(", "cannot be loaded: SyntaxError"),
        ("c = get_config()", "configure(c)"),
        (
            "from autograder.courses.course import configure\nconfigure(get_config(), isolation='none')",
            "Unknown isolation 'none'",
        ),
    ],
)
def test_settings_that_would_not_grade_safely_are_refused(
    kv_cache: Course, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, says: str
) -> None:
    """A course whose nbgrader_config.py is broken, or lets nbgrader execute notebooks, is not graded."""
    course = kv_cache.copy(tmp_path / "own")
    course.folder("ada")
    (course.root / "nbgrader_config.py").write_text(config)
    assert says in refused(monkeypatch, course.root)
    assert not (course.root / "autograded").exists()


def test_a_broken_gradebook_is_named(course: Course) -> None:
    """A gradebook that is no database, or does not know the assignment, ends in a sentence; the results are stored."""
    course.solve("ada")
    (course.root / "gradebook.db").write_bytes(b"no database at all, just text " * 100)
    ran = course.grade()
    assert ran.code == 1
    assert "gradebook.db cannot be used" in ran.said
    assert len(course.results("ada")) == 1
    (course.root / "gradebook.db").unlink()
    ran = course.grade()
    assert ran.code == 1
    assert "No assignment with ID 'tiny'" in ran.line("ada: ")
    assert "autograder init" in ran.line("ada: ")


# ------------------------------------------------------------------------------------------------ what a machine lacks


def test_a_missing_model_withholds_and_is_tried_again(course: Course) -> None:
    """Without its model a check withholds the grade, says which model, and is run again as soon as it is there."""
    course.solve("ada")
    empty = course.tmp.with_name("no models")
    empty.mkdir()
    ran = course.grade(AUTOGRADER_MODELS=str(empty))
    assert ran.code == 1
    assert "SmolLM2-135M-Instruct" in ran.line("ada: ")
    assert course.total("ada") is None
    ran = course.grade()
    assert (ran.code, course.total("ada")) == (0, 10.0)
    assert "1 graded now" in ran.said


def test_isolation_that_cannot_be_had_is_no_grade(course: Course) -> None:
    """Where the kernel refuses namespaces nothing is graded, and the remedy is named."""
    course.solve("ada")
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" "$@"'
    trial = subprocess.run(["unshare", "-Ur", "sh", "-c", forbid, "true"], capture_output=True, check=False)
    if trial.returncode:
        pytest.skip(f"no user namespace to forbid namespaces in: {trial.stderr.decode().strip()}")
    command = [sys.executable, "-m", "autograder", "grade", "tiny"]
    ran = course.run("unshare", "-Ur", "sh", "-c", forbid, *command)
    assert ran.code == 1
    assert "Level 3 is demanded and cannot be had" in ran.said
    assert "sysctl user.max_user_namespaces" in ran.said
    assert "Traceback" not in ran.said
    assert not course.results()
    ran = course.run("unshare", "-Ur", "sh", "-c", forbid, *command, "--isolation", "process")
    assert "process only (level 0)" in ran.said
    assert (ran.code, course.total("ada")) == (0, 10.0), ran.said
    assert list(course.tmp.iterdir()) == []


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of `size` at `folder`; skips where one cannot be mounted."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_what_was_stored(course: Course) -> None:
    """When results no longer fit the run ends with a sentence; what fitted stays and is not graded again."""
    students = [f"student{number}" for number in range(6)]
    for student in students:
        course.solve(student)
    results = course.root / "results"
    with small_disk(results, "20k"):
        ran = course.grade("--workers", "1")
        assert ran.code == 1
        assert "cannot be stored: No space left on device" in ran.said
        assert "run the same command again" in ran.said
        fitted = {path: path.read_bytes() for path in course.results()}
        assert 0 < len(fitted) < len(students)
        assert not list(results.rglob(".writing-*"))
        subprocess.run(["mount", "-o", "remount,size=1m", str(results)], check=True)
        ran = course.grade()
        assert f"{len(students) - len(fitted)} graded now, {len(fitted)} before" in ran.said
        assert all(path.read_bytes() == content for path, content in fitted.items())
        assert {course.total(student) for student in students} == {10.0}
        subprocess.run(["mount", "-o", "remount,ro", str(results)], check=True)
        ran = course.grade()
        assert ran.code == 1
        assert "Read-only file system" in ran.said


def test_a_results_folder_that_is_none_is_named(course: Course) -> None:
    """A file where the results should be ends the run before anything is graded."""
    course.solve("ada")
    (course.root / "results").write_text("")
    ran = course.grade()
    assert ran.code == 1
    assert "Results cannot be stored in" in ran.said
