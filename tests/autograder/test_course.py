"""A course from release to feedback, with nbgrader's own commands; and what a grading run survives."""

from __future__ import annotations

import csv
import dataclasses
import html
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import psutil
import pytest
from nbgrader.api import Gradebook
from nbgrader.apps import NbGraderAPI
from nbgrader.utils import capture_log
from traitlets.config import Config

from autograder import results, suite
from autograder.authoring import build, corpus
from autograder.authoring.corpus import Entry
from autograder.courses import course as courses
from autograder.grade import Graded
from autograder.runs import grading
from autograder.runs.grading import Grader, Job
from autograder.sandboxing.sandbox import ProcessSandbox

if TYPE_CHECKING:
    from conftest import Course, Ran

NAME = "kv_cache"


# ------------------------------------------------------------------------------------------------ a class of four


@dataclass
class Class:
    """A graded course whose students fetched and submitted through nbgrader's exchange."""

    course: Course
    homes: Path
    entries: dict[str, Entry]
    ran: Ran


def succeed(outcome: dict[str, Any]) -> None:
    """Stop if a call of nbgrader's API failed."""
    assert outcome["success"], f"{outcome.get('error', '')}{outcome.get('log', '')}"


def as_student(course: Course, homes: Path, student: str, action: str) -> None:
    """What a student does with nbgrader's exchange: FetchAssignment, Submit or FetchFeedback."""
    home = homes / student
    home.mkdir(parents=True, exist_ok=True)
    config = Config()
    config.CourseDirectory.root = str(home)
    config.CourseDirectory.course_id = "inference"
    config.CourseDirectory.student_id = student
    config.CourseDirectory.assignment_id = NAME
    config.Exchange.root = str(courses.load_config(course.root).Exchange.root)
    config.Exchange.assignment_dir = str(home)
    config.Exchange.cache = str(home / "cache")
    with build.quiet_nbgrader():
        api = NbGraderAPI(config=config)
        act = getattr(api.exchange, action)
        succeed(capture_log(act(coursedir=api.coursedir, authenticator=api.authenticator, parent=api)))


@pytest.fixture(scope="module")
def class_(kv_cache: Course, tmp_path_factory: pytest.TempPathFactory) -> Class:
    """Reference, stub, and two wrong submissions: one fails hidden checks, one public ones."""
    folder = tmp_path_factory.mktemp("class")
    course, homes = kv_cache.copy(folder / "taught"), folder / "homes"
    exchange = Path(str(courses.load_config(course.root).Exchange.root))
    exchange.mkdir()
    exchange.chmod(0o777)
    known = {entry.name: entry for entry in corpus.load(NAME)}
    names = ("reference", "stub", "public_numbers", "query_heads")
    entries = {student: known[name] for student, name in zip("dcba", names, strict=True)}
    api = courses.api(course.root)
    succeed(api.release_assignment(NAME))
    for student, entry in entries.items():
        as_student(course, homes, student, "FetchAssignment")
        nbformat.write(corpus.notebook(NAME, entry.answers), homes / student / NAME / f"{NAME}.ipynb")
        as_student(course, homes, student, "Submit")
    succeed(api.collect(NAME))
    return Class(course, homes, entries, course.grade())


def expected(class_: Class) -> dict[str, float]:
    """The points that every student must have."""
    assignment = suite.load_assignment(NAME)
    return {student: corpus.expected_points(entry, assignment) for student, entry in class_.entries.items()}


def scores(course: Course) -> dict[str, float]:
    """The totals in the gradebook."""
    return {student: recorded.total for student, recorded in course.book().items()}


def test_everything_submitted_is_graded_and_entered(class_: Class) -> None:
    """`autograder grade` gives each submission the points of its checks, in the results and in the gradebook."""
    assert class_.ran.code == 0, class_.ran.said
    assert scores(class_.course) == expected(class_)
    assert "isolation in force: namespaces (level 3)" in class_.ran.said


def test_grading_again_does_nothing_and_says_so(class_: Class) -> None:
    """The second run judges nothing, enters nothing and leaves every file as it is."""

    def state() -> dict[Path, int]:
        kept = [*class_.course.results(), *(class_.course.root / "autograded").rglob("*")]
        return {path: path.stat().st_mtime_ns for path in kept}

    before = state()
    ran = class_.course.grade()
    assert (ran.code, state()) == (0, before)
    assert "Nothing to do: every submission is graded." in ran.said
    assert "0 graded now, 4 before" in ran.said
    assert list(class_.course.tmp.iterdir()) == []


def test_the_table_is_in_the_order_of_names(class_: Class) -> None:
    """Rows come by student, whoever was finished first."""
    rows = [line.split()[1] for line in class_.ran.said.splitlines() if line.startswith("│")]
    assert rows == sorted(class_.entries)


def test_results_are_named_by_their_content(class_: Class) -> None:
    """A result's file name follows from submission, suite and tier; other users cannot read it."""
    for student in class_.entries:
        (file,) = class_.course.results(student)
        result = results.load(file)
        assert result is not None
        assert file.stem == results.key(result.submission_hash, result.suite_hash, result.tier)
        assert (result.student, result.suite_hash) == (student, suite.load(NAME).hash)
    assert (class_.course.root / "results").stat().st_mode & 0o077 == 0


def test_stock_autograde_without_results_gives_the_same_scores(class_: Class, kv_cache: Course, tmp_path: Path) -> None:
    """`nbgrader autograde` alone, without the commands of the virtual environment on its PATH, grades like we do."""
    course = kv_cache.copy(tmp_path / "stock")
    class_.course.handed_in(course, class_.entries)
    course.nbgrader("autograde", NAME)
    assert scores(course) == expected(class_)
    assert len(course.results()) == len(class_.entries)


def test_students_get_our_findings_and_no_secrets_as_feedback(class_: Class) -> None:
    """nbgrader's feedback has every check's sentence; of hidden checks neither what happened nor what was expected."""
    class_.course.nbgrader("generate_feedback", NAME)
    class_.course.nbgrader("release_feedback", NAME)
    hidden_failures = 0
    for student in class_.entries:
        as_student(class_.course, class_.homes, student, "FetchFeedback")
        (page,) = (class_.homes / student / NAME / "feedback").rglob(f"{NAME}.html")
        source = page.read_text(encoding="utf-8")
        plain = re.sub("</?code[^>]*>", "`", source)  # as the sentence is written
        text = " ".join(html.unescape(plain).split())
        findings = class_.course.findings(student).values()
        failed = [each for each in findings if each["outcome"] == "FAILED"]
        public = [each for each in failed if not each["hidden"]]
        assert all(each["sentence"] in text for each in findings)
        assert all(each["message"] in text for each in public)
        for label, key in (("your value:", "value"), ("expected:", "expected")):
            shown = re.findall(rf"{label}\s*(?:<[^>]*>\s*)*([^<]*)", source)
            assert sorted(map(html.unescape, shown)) == sorted(each[key] for each in public if each[key] is not None)
        known = {each["message"] for each in public}
        secrets = [each["message"] for each in failed if each["hidden"] and each["message"] not in known]
        assert not [secret for secret in secrets if secret in text]
        hidden_failures += len(secrets)
    assert hidden_failures > 3


def test_no_page_is_made_from_a_result_that_is_gone_or_changed(class_: Class, tmp_path: Path) -> None:
    """nbgrader names the students and why; the others get their pages."""
    course = class_.course.copy(tmp_path / "own")
    gone, changed = (course.results(student)[0] for student in "ab")
    gone.unlink()
    changed.write_bytes(changed.read_bytes().replace(b"FAILED", b"PASSED", 1) + b" ")
    said = " ".join(course.nbgrader("generate_feedback", NAME, "--force", code=1).said.split())
    assert f"The result that a's notebook for {NAME} was graded from is not there. Grade again" in said
    assert f"The result of b ({changed.name}) was changed after it was written" in said
    assert {path.parent.parent.name for path in (course.root / "feedback").rglob("*.html")} == {"c", "d"}


def test_export_has_the_scores(class_: Class, tmp_path: Path) -> None:
    """`nbgrader export` writes the same scores into its CSV file."""
    class_.course.nbgrader("export", "--to", str(tmp_path / "grades.csv"))
    with open(tmp_path / "grades.csv", newline="") as file:
        rows = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
    assert rows == expected(class_)


# ------------------------------------------------------------------------------------------------ people's decisions


LATE_AND_MANUAL = """
from nbgrader.plugins import BasePlugin


class Half(BasePlugin):
    def late_submission_penalty(self, student_id, score, total_seconds_late):
        return score / 2


c.AssignLatePenalties.plugin_class = Half
"""


def test_late_penalties_and_manual_grades_are_kept(course: Course) -> None:
    """nbgrader's late plug-in, or a class of one's own, sets the penalty; a manual grade survives `--force`."""
    config = course.root / "nbgrader_config.py"
    text = config.read_text()
    with build.quiet_nbgrader(), Gradebook(f"sqlite:///{course.root}/gradebook.db") as book:
        book.update_or_create_assignment("tiny", duedate="2026-05-01 12:00:00")
    for student, handed_in in (("late", "2026-05-01 13:00:00 UTC"), ("early", "2026-05-01 11:00:00 UTC")):
        course.solve(student, double="def double(n): return 0")
        (course.folder(student) / "timestamp.txt").write_text(handed_in)
    config.write_text(text + "\nc.LateSubmissionPlugin.penalty_method = 'zero'\n")
    ran = course.grade()
    assert scores(course) == {"late": 0.0, "early": 5.0}, ran.said
    assert "0 late" in ran.said
    config.write_text(text + LATE_AND_MANUAL)
    with build.quiet_nbgrader(), Gradebook(f"sqlite:///{course.root}/gradebook.db") as book:
        book.find_grade("check_double", "tiny", "tiny", "early").manual_score = 4.5
        book.db.commit()
    before = {path: json.loads(path.read_bytes())["seed"] for path in course.results()}
    ran = course.grade("--force")
    assert {path: json.loads(path.read_bytes())["seed"] for path in course.results()}.keys() == before.keys()
    assert all(json.loads(path.read_bytes())["seed"] != seed for path, seed in before.items())
    assert scores(course) == {"late": 2.5, "early": 9.5}, ran.said
    assert "9.5 manual" in ran.said
    assert "2.5 late" in ran.said


def test_a_new_submission_is_graded_and_replaces_the_old_score(course: Course) -> None:
    """Collecting again makes the next run judge that student only; a broken file leaves the old score and says so."""
    for student in ("ada", "bob"):
        course.solve(student, double="def double(n): return 0")
    assert course.grade().code == 0
    course.solve("ada")
    course.hand_in("bob", b"{")
    ran = course.grade()
    assert "1 graded now, 0 before, 1 cannot be graded" in ran.said
    assert scores(course) == {"ada": 10.0, "bob": 5.0}
    assert ran.code == 1
    assert "bob: The gradebook keeps what was entered before: 5 points." in ran.said


def test_figures_that_a_check_measures_are_stored_with_its_finding(course: Course) -> None:
    """They belong to the check that measured them, and to no other."""
    course.solve("ada")
    assert course.grade().code == 0
    measured = {name: found["measurements"] for name, found in course.findings("ada").items() if found["measurements"]}
    assert measured == {"test_double_big": {"digits": 22.0}}


def test_the_api_behind_formgraders_button_grades_what_has_no_result(course: Course) -> None:
    """`NbGraderAPI.autograde` without a stored result gives the score of `autograder grade`; withheld ones fail."""
    course.solve("ada", double="def double(n): return 0")
    course.hand_in("bob", b"{")
    code = (
        "import os; from nbgrader.apps import NbGraderAPI; from autograder.courses import course; from pathlib import Path;"
        "api = NbGraderAPI(config=course.load_config(Path.cwd()));"
        "print([api.autograde('tiny', student)['success'] for student in ('ada', 'bob')])"
    )
    ran = course.run(sys.executable, "-c", code)
    assert "[True, False]" in ran.said, ran.said
    assert scores(course) == {"ada": 5.0}
    again = course.grade("--student", "ada")
    assert "0 graded now, 1 before" in again.said
    assert scores(course) == {"ada": 5.0}


# ------------------------------------------------------------------------------------------------ interruptions

SLOW = "import time\ndef double(n):\n    time.sleep({seconds})\n    return n + n"


def slow_class(course: Course, count: int, seconds: float) -> list[str]:
    """`count` students whose submissions take twice `seconds` each."""
    students = [f"student{number:02}" for number in range(count)]
    for student in students:
        course.solve(student, double=SLOW.format(seconds=seconds))
    return students


def whole(paths: list[Path]) -> dict[Path, bytes]:
    """The content of results, each of which must be whole."""
    for path in paths:
        assert results.load(path) is not None, f"{path} is not whole"
    return {path: path.read_bytes() for path in paths}


def test_one_run_at_a_time_and_ctrl_c_finishes_what_runs(course: Course, wait_for: Callable[..., None]) -> None:
    """A second run names the first; Ctrl-C ends the first after the submission at hand; the next does only the rest."""
    students = slow_class(course, 12, 0.4)
    first = course.start(sys.executable, "-m", "autograder", "grade", "tiny", "--workers", "1")
    wait_for(first, course.results)
    second = course.grade()
    assert second.code == 1
    assert f"Another grading run is at work in this course (process {first.pid} since" in second.said
    before = len(course.results())
    os.killpg(first.pid, signal.SIGINT)
    ran = course.finish(first)
    assert ran.code == 130, ran.said
    done = whole(course.results())
    assert before < len(done) < len(students)
    left = len(students) - len(done)
    assert f"Stopped; {left} submissions wait to be graded, {len(done)} grades to be entered" in ran.said
    assert "the same command goes on from here" in ran.said
    assert not course.book()
    ran = course.grade()
    assert f"{left} graded now, {len(done)} before" in ran.said
    assert all(path.read_bytes() == content for path, content in done.items())
    assert scores(course) == dict.fromkeys(students, 10.0)


def test_ctrl_c_while_entering_leaves_whole_students(course: Course, wait_for: Callable[..., None]) -> None:
    """Stopped between nbgrader's students, the next run enters the others."""
    students = [f"student{number:02}" for number in range(12)]
    for student in students:
        course.solve(student)
    process = course.start(sys.executable, "-m", "autograder", "grade", "tiny")
    wait_for(process, (course.root / "autograded").exists)
    os.killpg(process.pid, signal.SIGINT)
    ran = course.finish(process)
    assert ran.code == 130, ran.said
    assert "0 submissions wait to be graded" in ran.said
    assert 0 < len(scores(course)) < len(students)
    ran = course.grade()
    assert "0 graded now, 12 before" in ran.said
    assert scores(course) == dict.fromkeys(students, 10.0)


def test_kill_loses_nothing_and_leaves_nothing(course: Course, wait_for: Callable[..., None]) -> None:
    """After SIGKILL at random moments results are whole, no process is left, and the next run does the rest."""
    students = ["first", *slow_class(course, 10, 0.25)]
    course.solve("first", double="import time\ndef double(n):\n    time.sleep(6 * (n == 1))\n    return n + n")
    done: dict[Path, bytes] = {}
    chance = random.Random(time.time_ns())
    for moment in ("grading", "grading", "entering"):
        process = course.start(sys.executable, "-m", "autograder", "grade", "tiny")
        entering = course.root / "autograded"
        wait_for(process, entering.exists if moment == "entering" else lambda: len(course.results()) > len(done))  # noqa: B023
        time.sleep(chance.uniform(0, 0.3))
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        _, alive = psutil.wait_procs(family, timeout=3)  # the judge of "first" could live on for longer
        assert not alive, f"killed while {moment}: {alive} live on"
        course.finish(process)
        now = whole(course.results())
        assert now.items() >= done.items()
        done = now
    left = course.results()[0].with_name(".writing-left")
    left.write_text("what a killed run leaves")
    ran = course.grade()
    assert f"{len(students) - len(done)} graded now, {len(done)} before" in ran.said
    assert not left.exists()
    assert whole(course.results()).items() >= done.items()
    assert scores(course) == dict.fromkeys(students, 10.0)
    assert not list((course.root / "results").rglob(".writing-*"))


def test_a_damaged_result_is_judged_again(course: Course) -> None:
    """One byte that is not what was written, or the file of another student, makes a result count for nothing."""
    for student in ("ada", "bob"):
        course.solve(student)
    course.grade("--no-import")
    (file,) = course.results("ada")
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"findings"', b'"findingz"', 1))
    ran = course.grade("--no-import")
    assert "1 graded now, 1 before" in ran.said
    assert results.load(file) is not None
    (other,) = course.results("bob")
    shutil.copy(other, file)
    assert "1 graded now, 1 before" in course.grade("--no-import").said


def test_checks_that_change_during_a_run_are_told_of(course: Course, tmp_path: Path) -> None:
    """Grades by two versions of the checks do not mix: the run says what happened, the next one judges again."""
    course.solve("ada")
    shutil.copytree(course.environment["AUTOGRADER_REPOSITORY"], tmp_path / "repository")
    course.environment = {"AUTOGRADER_REPOSITORY": str(tmp_path / "repository")}
    checks = tmp_path / "repository" / "tests" / "grading" / "tiny" / "test_hidden.py"
    before = checks.read_text()
    checks.write_text(f"{before.rstrip()}\n    open({str(checks)!r}, 'w').write({before!r})  # while it is judged\n")
    ran = course.grade()
    assert ran.code == 1
    assert "were changed while this run judged" in " ".join(ran.said.split())
    assert "1 graded now" in course.grade().said
    assert scores(course) == {"ada": 10.0}


# ------------------------------------------------------------------------------------------------ judges that fail


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], list[Graded]]:
    """Grade one submission with a function in place of the judge; gives what became of it."""

    def grade(judge: Callable[..., Any]) -> list[Graded]:
        loaded = suite.load(NAME)
        loaded = dataclasses.replace(loaded, assignment=dataclasses.replace(loaded.assignment, check_s=0.1))
        monkeypatch.setattr(grading, "judge", judge)
        monkeypatch.setattr(grading, "SILENCE_S", 0.3)
        grader = Grader(loaded, ProcessSandbox(), tmp_path / "results", workers=1)
        found: list[Graded] = []
        grader.grade([Job("ada", corpus.reference(NAME).submission(loaded.manifest))], found.append)
        return found

    return grade


@pytest.mark.parametrize(
    ("judge", "says"),
    [
        (lambda *_, **__: time.sleep(600), "no sign of life"),
        (lambda *_, **__: os._exit(0), "exit code 0"),
        (lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL), "killed by signal 9"),
        (lambda *_, **__: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_judge_that_fails_twice_withholds_the_grade(judged: Any, judge: Callable[..., Any], says: str) -> None:
    """A judge that hangs, dies or breaks is our fault: tried again, then no grade, and the reason."""
    (found,) = judged(judge)
    assert found.status == "withheld"
    assert "The judge failed 2 times" in found.problem
    assert says in found.problem
    assert "no fault of the submission" in found.problem


def test_a_judge_that_fails_once_is_tried_again(judged: Any, tmp_path: Path) -> None:
    """What went wrong once, and not again, costs nobody anything."""
    mark = tmp_path / "tried"

    def judge(*_: Any, **__: Any) -> list[Any]:
        if not mark.exists():
            mark.touch()
            os._exit(3)
        return []

    (found,) = judged(judge)
    assert found.result is not None
    assert found.problem == ""


def test_a_judge_that_gives_signs_of_life_may_take_its_time(judged: Any) -> None:
    """The limit is on silence between checks, not on the whole."""

    def judge(*_: Any, watchers: Any, **__: Any) -> list[Any]:
        for _number in range(8):
            watchers[0].give()
            time.sleep(0.1)
        return []

    (found,) = judged(judge)
    assert found.result is not None
