"""Whatever interrupts a grading run, the next one ends as if nothing had: kills, disks, locks, clocks.

Elsewhere: results on a full or read-only disk (`test_bad_input`, `test_results`), Ctrl-C, two runs at once and the kill of
a whole run (`test_course`), of what stands around a submission (`test_infrastructure`), and a hundred random kills of a
class of kv_cache (`tests/benchmarks/kills.py`).
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import autograder

if TYPE_CHECKING:
    from conftest import Course

KILLS = Path(__file__).parent.parent / "benchmarks" / "kills.py"
WRONG = "def double(n): return 0"


# ------------------------------------------------------------------------------------------------------------- kills

NAP = "import time\ndef double(n):\n    time.sleep({seconds})\n    return {value}"


def test_random_kills_cost_nothing(course: Course) -> None:
    """After SIGKILL of judge, worker, zygote, command, tree and nbgrader's entering all is as without interruption."""
    for number in range(6):
        course.solve(f"student{number}", double=NAP.format(seconds=0.2, value="n + n" if number % 2 else "n"))
        (course.folder(f"student{number}") / "timestamp.txt").write_text("2026-05-01 11:00:00 UTC")
    command = [sys.executable, str(KILLS), "--course", str(course.root), "--assignment", course.name]
    process = course.start(*command, "--kills", "6", "--seed", "11", "--json")
    said, _ = process.communicate()  # a dozen commands, each of which has its own limit
    assert process.returncode == 0, said
    figures = json.loads(said.splitlines()[-1])
    assert figures["survived"] == 6
    assert figures["kills"] == dict.fromkeys(("judge", "worker", "zygote", "command", "tree", "entering"), 1)


PLACES = ("sanitized", "scores", "converted", "done")
MORTAL = """
import os
import signal

from nbgrader.preprocessors import NbGraderPreprocessor, SaveAutoGrades

from autograder.courses import preprocessors


def die(place):
    if os.environ.get("DIE") == place:
        os.kill(os.getpid(), signal.SIGKILL)


class Mortal(NbGraderPreprocessor):
    def preprocess(self, nb, resources):
        die(self.place)
        return nb, resources


class Sanitized(Mortal):
    place = "sanitized"


class Converted(Mortal):
    place = "converted"


class Scores(SaveAutoGrades):
    written = 0

    def _add_score(self, cell, resources):
        super()._add_score(cell, resources)
        self.written += 1
        if self.written == 1:
            die("scores")


c.Autograde.sanitize_preprocessors = [*preprocessors.SANITIZE, Sanitized]
enter, save, late, check = preprocessors.AUTOGRADE
c.Autograde.autograde_preprocessors = [enter, Scores, late, check, Converted]
c.Autograde.post_convert_hook = lambda **_: die("done")
"""
"""nbgrader settings with which entering a grade ends with SIGKILL at a place named by the environment."""


def test_a_kill_anywhere_within_one_student_is_mended(
    course: Course, tmp_path: Path, rows: Callable[[Course], Counter[str]]
) -> None:
    """Killed between any two steps of entering a new submission over an old one, the next run leaves no trace of that."""
    config = course.root / "nbgrader_config.py"
    config.write_text(config.read_text() + MORTAL)
    versions = [{"double": WRONG, "layers": "def layers(n): return n"}, {"layers": "def layers(n): return 0"}]
    peace = course.copy(tmp_path / "peace")
    expected = []
    for answers in versions:
        peace.solve("ada", **answers)
        assert peace.grade().code == 0
        expected.append(rows(peace))
    assert expected[0] != expected[1]
    course.solve("ada", **versions[1])
    assert course.grade().code == 0
    for number, place in enumerate(PLACES):
        course.solve("ada", **versions[number % 2])
        assert course.grade(DIE=place).code == -signal.SIGKILL
        again = course.grade()
        assert again.code == 0, f"{place}: {again.said}"
        assert rows(course) == expected[number % 2], place


def test_what_was_judged_again_is_entered_again(course: Course) -> None:
    """Students see the findings that are stored, even if a run ended between judging again and entering."""
    course.solve("ada", double="import os\ndef double(n):\n    print(os.urandom(8).hex())\n    return 0")

    def shown() -> str:
        return (Path(course.root) / "autograded" / "ada" / "tiny" / "tiny.ipynb").read_text()

    def printed() -> str:
        return str(course.findings("ada")["test_double"]["printed"])

    assert course.grade().code == 0
    before = printed()
    assert before in shown()
    assert course.grade("--force", "--no-import").code == 0
    assert printed() != before
    ran = course.grade()
    assert printed() in shown(), ran.said
    assert before not in shown()
    assert "Nothing to do" in course.grade().said


# ---------------------------------------------------------------------------------------------- gradebook and disk


def graded_class(course: Course) -> list[str]:
    """Students whose results are stored and not entered."""
    students = [f"student{number}" for number in range(6)]
    for student in students:
        course.solve(student)
    assert course.grade("--no-import").code == 0
    return students


def entered_again(course: Course, students: list[str]) -> None:
    """The same command enters everybody now, and judges nobody."""
    ran = course.grade()
    assert ran.code == 0, ran.said
    assert f"0 graded now, {len(students)} before" in ran.said
    assert {student: each.total for student, each in course.book().items()} == dict.fromkeys(students, 10.0)


def test_a_locked_gradebook_ends_the_run_with_a_sentence(course: Course) -> None:
    """While another program holds the gradebook nothing is entered, nobody waits once per student, and nothing is lost."""
    students = graded_class(course)
    config = course.root / "nbgrader_config.py"
    url = f"sqlite:///{course.root}/gradebook.db?timeout=0.3"  # seconds; 5 by default
    config.write_text(config.read_text() + f"\nc.CourseDirectory.db_url = {url!r}\n")
    for lock in ("EXCLUSIVE", "IMMEDIATE"):  # nobody may read, nobody may write
        with contextlib.closing(sqlite3.connect(course.root / "gradebook.db", isolation_level=None)) as other:
            other.execute(f"BEGIN {lock}")
            ran = course.grade()
            assert ran.code == 1
            assert "database is locked. Results are stored: close what else works with the gradebook" in ran.said
            assert "2/6" not in ran.said
            other.rollback()
    assert not course.book()
    entered_again(course, students)


@contextlib.contextmanager
def mounted(folder: Path, *how: str) -> Iterator[None]:
    """A mount at `folder`; skips where that is not allowed."""
    done = subprocess.run(["mount", *how, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_no_room_for_the_gradebook_ends_the_run_with_a_sentence(course: Course, tmp_path: Path) -> None:
    """A disk that fills up while grades are entered is named; with room the same command enters the rest."""
    students = graded_class(course)
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        small = course.copy(tmp_path / "disk" / "own")
        filler = tmp_path / "disk" / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 12))
        os.truncate(filler, filler.stat().st_size - (60 << 10))  # enough for one student, not for six
        ran = small.grade()
        assert ran.code == 1
        assert "database or disk is full. Results are stored: make room" in ran.said
        assert len(small.book()) < len(students)
        filler.unlink()
        entered_again(small, students)
        assert not list(small.root.rglob("*-journal"))


def test_a_gradebook_that_cannot_be_written_is_named(course: Course) -> None:
    """A read-only gradebook ends the run with a sentence; results are stored and entered as soon as it can be written."""
    students = graded_class(course)
    book = course.root / "gradebook.db"
    with contextlib.ExitStack() as stack:
        if os.geteuid() == 0:  # permissions do not stop root
            stack.enter_context(mounted(book, "--bind", str(book)))
            subprocess.run(["mount", "-o", "remount,bind,ro", str(book)], check=True)
        else:
            book.chmod(0o400)
            stack.callback(book.chmod, 0o600)
        ran = course.grade()
        assert ran.code == 1
        assert "gradebook.db cannot be used: attempt to write a readonly database" in ran.said
        assert "2/6" not in ran.said
    entered_again(course, students)


# ------------------------------------------------------------------------------------------------------------- clocks

JUMPING = """
import sys, time

real, began, jumps = time.time, time.monotonic(), []

def jumping():
    "A day back, a day on, and so forth: another time at every look."
    jumps.append(None)
    return real() + (-1) ** len(jumps) * 86_400

time.time = jumping
time.time_ns = lambda: int(jumping() * 10**9)

from autograder.cli import main

try:
    main()
finally:
    print("jumps:", len(jumps), "seconds:", time.monotonic() - began)
"""


def test_a_clock_that_jumps_changes_nothing(
    course: Course, tmp_path: Path, rows: Callable[[Course], Counter[str]]
) -> None:
    """With a wall clock that jumps by days at every look, points, durations and the gradebook are what they were."""
    course.solve("ada", double=WRONG)
    course.solve("bob", double=NAP.format(seconds=0.5, value="n + n"))
    peace = course.copy(tmp_path / "peace")
    assert peace.grade().code == 0
    ran = course.run(sys.executable, "-c", JUMPING, "grade", "tiny", "--plain")
    assert ran.code == 0, ran.said
    jumps, seconds = ran.line("jumps: ").split()[1::2]
    assert int(jumps) > 0, "nobody looked at the clock: this shows nothing"
    assert rows(course) == rows(peace)
    for student in ("ada", "bob"):
        found, expected = course.findings(student), peace.findings(student)
        assert {name: each["outcome"] for name, each in found.items()} == {
            name: each["outcome"] for name, each in expected.items()
        }
        assert all(0 <= each["seconds"] < float(seconds) for each in found.values())
        (file,) = course.results(student)
        assert 0 < json.loads(file.read_bytes())["seconds"] < float(seconds)


WALL_CLOCK = {
    "time.time",
    "time.time_ns",
    "time.localtime",
    "time.gmtime",
    "time.ctime",
    "time.strftime",
    "datetime.now",
}
WALL_CLOCK |= {"datetime.utcnow", "datetime.today", "date.today"}
ALLOWED = {
    "run.py": "shows since when the course is locked",
    "notebook.py": "compares with the time at which a file was saved, and shows it",
    "temporary.py": "age of a folder that a killed run left, which a lock protects as well",
    "models.py": "age of what a killed download left",
}
"""Who may read the wall clock, and what for."""


def test_limits_and_durations_never_come_from_the_wall_clock() -> None:
    """Nothing but the modules named, which show a time or look at a file's, reads a clock that can jump."""
    package = Path(autograder.__file__).parent
    readers = set()
    for path in (*package.rglob("*.py"), *(package.parent / "gpu_env").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ".".join(ast.unparse(node).split(".")[-2:]) in WALL_CLOCK:
                readers.add(path.name)
            elif isinstance(node, ast.ImportFrom) and node.module == "time":
                raise AssertionError(f"{path}: `import time`, so that this test sees what is read")
    assert readers == set(ALLOWED)
