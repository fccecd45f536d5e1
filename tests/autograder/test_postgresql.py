"""nbgrader's gradebook in PostgreSQL: a real server, made for these tests, of this machine's own package."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Course

psycopg = pytest.importorskip(
    "psycopg", reason="psycopg is not installed: pip install 'inference-autograder[postgresql]'"
)

WRONG = "def double(n): return 0"
AT_ONCE = """
import json, os, sys, time
from pathlib import Path
from autograder import suite
from autograder.courses import gradebook
from autograder.runs import run
from autograder.runs.grading import discover, stored

folder = Path(".").resolve()
loaded = suite.load("tiny")
jobs = discover(folder / "submitted", "tiny", loaded.manifest)
gradebook.recorded(folder, "tiny")  # all that is loaded when needed is loaded now
begin = time.monotonic() + 2
children = {}
for job in jobs:
    if not (pid := os.fork()):
        said = []
        time.sleep(max(0.0, begin - time.monotonic()))
        graded = stored(loaded, folder / "results", job, 0)
        gradebook.enter(folder, "tiny", [graded], "sandbox", lambda each: said.append(each) or True)
        print(*[f"{each.student}: {each.problem or 'entered'}" for each in said], flush=True)
        os._exit(0 if [each.problem for each in said] == [""] else 1)
    children[pid] = job.student
for pid, student in children.items():
    if os.waitpid(pid, 0)[1]:
        print("failed:", student)
"""


def _programs() -> Path:
    """The folder of PostgreSQL's server programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    on_path = shutil.which("initdb")
    if not found and not on_path:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return found[-1].parent if found else Path(str(on_path)).parent


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    """A running server that can be reached by a socket in the folder given, and by nothing else."""
    programs = _programs()
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as made:  # a short name, for the socket
        folder = Path(made)
        os.chown(folder, user.pw_uid, user.pw_gid)
        folder.chmod(0o711)
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": made}

        def run(*command: object) -> None:
            done = subprocess.run(
                [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, check=False,
                **identity,
            )  # type: ignore[call-overload]  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr

        run(programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "grader", "-N", "-E", "UTF8")
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        run(programs / "pg_ctl", "-D", folder / "data", "-o", options, "-l", folder / "log", "-w", "-t", "100", "start")
        try:
            yield folder
        finally:
            run(programs / "pg_ctl", "-D", folder / "data", "-m", "immediate", "-w", "stop")


@pytest.fixture
def course(server: Path, tiny: Course, tmp_path: Path) -> Iterator[Course]:
    """A course of one's own whose gradebook is a database of one's own; eight students handed in."""
    name = f"book_{os.getpid()}_{abs(hash(tmp_path))}"
    with psycopg.connect(host=str(server), user="grader", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    own = tiny.copy(tmp_path / "own")
    (own.root / "gradebook.db").unlink()
    config = own.root / "nbgrader_config.py"
    url = f"postgresql+psycopg://grader:hush@/{name}?host={server}"
    config.write_text(f"{config.read_text()}\nc.CourseDirectory.db_url = {url!r}\n")
    ran = own.autograder("init", ".", "tiny")
    assert ran.code == 0, ran.said
    for number in range(8):
        own.solve(f"student{number}", **({"double": WRONG} if number % 2 else {}))
    yield own
    assert not (own.root / "gradebook.db").exists(), "something wrote to SQLite"


EXPECTED = {f"student{number}": 5.0 if number % 2 else 10.0 for number in range(8)}


def totals(course: Course) -> dict[str, float]:
    """What the gradebook says, by student."""
    return {student: each.total for student, each in course.book().items()}


def test_grade_regrade_and_export(course: Course, tmp_path: Path) -> None:
    """Grading enters eight students, again nothing; a new submission replaces its score; a manual score is kept."""
    ran = course.grade()
    assert ran.code == 0, ran.said
    assert totals(course) == EXPECTED
    assert "Nothing to do" in course.grade().said
    from nbgrader.api import Gradebook

    from autograder.courses import gradebook

    with Gradebook(gradebook._db_url(course.root), "inference") as book:
        grade = book.find_grade("check_layers", "tiny", "tiny", "student1")
        grade.manual_score = 1.0
        book.db.commit()
    course.solve("student1", helpers="# another one", double="def double(n): return n + n")
    ran = course.grade()
    assert ran.code == 0, ran.said
    assert "1 graded now, 7 before" in ran.said
    assert totals(course) == EXPECTED | {"student1": 6.0}
    forced = course.grade("--force")
    assert forced.code == 0, forced.said
    assert totals(course) == EXPECTED | {"student1": 6.0}
    course.nbgrader("export", f"--CsvExportPlugin.to={tmp_path / 'grades.csv'}")
    assert (tmp_path / "grades.csv").read_text().count("\ntiny,") == 8


def test_eight_importers_at_once(course: Course) -> None:
    """Eight processes that enter a student each in the same moment all succeed, and each score is right."""
    assert course.grade("--no-import").code == 0
    ran = course.run(sys.executable, "-c", AT_ONCE)
    assert ran.code == 0, ran.said
    assert "failed" not in ran.said, ran.said
    assert totals(course) == EXPECTED
    autograded = [json.loads(path.read_bytes()) for path in course.root.glob("autograded/*/tiny/tiny.ipynb")]
    assert len(autograded) == 8


def test_a_locked_table_ends_the_run_with_a_sentence(course: Course, server: Path) -> None:
    """Where somebody else holds the gradebook's tables nobody waits for ever, and the password is shown to nobody."""
    assert course.grade("--no-import").code == 0
    name = course.root.joinpath("nbgrader_config.py").read_text().rpartition("@/")[2].partition("?")[0]
    for mode in ("ACCESS EXCLUSIVE", "EXCLUSIVE"):  # nobody may read, nobody may write
        with psycopg.connect(host=str(server), user="grader", dbname=name) as connection:
            connection.execute(f"LOCK TABLE assignment, grade, student IN {mode} MODE")
            ran = course.grade(PGOPTIONS="-c lock_timeout=300ms")
            assert ran.code == 1, ran.said
            assert "lock timeout. Results are stored: close what else works with the gradebook" in ran.said
            assert "hush" not in ran.said
            connection.rollback()
    assert course.grade().code == 0
    assert totals(course) == EXPECTED


def test_a_server_that_is_not_there_is_named(course: Course, tmp_path: Path) -> None:
    """Without its server the gradebook is named, without the password; the results are stored and entered later."""
    config = course.root / "nbgrader_config.py"
    before = config.read_text()
    config.write_text(
        f"{before}\nc.CourseDirectory.db_url = 'postgresql+psycopg://grader:hush@/none?host={tmp_path}'\n"
    )
    ran = course.grade()
    assert ran.code == 1, ran.said
    assert "nbgrader's gradebook postgresql+psycopg://grader:***@/none" in ran.said
    assert "hush" not in ran.said
    config.write_text(before)
    again = course.grade()
    assert "0 graded now, 8 before" in again.said
    assert totals(course) == EXPECTED
