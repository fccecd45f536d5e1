"""Regrading after the suite changed: shown with both versions, applied as shown, and undone without a trace."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbgrader.api import Gradebook

from autograder.authoring import build
from autograder.finding import Finding, Outcome
from autograder.results import IsolationRecord, Result
from autograder.runs import regrade
from autograder.spec import Assignment, Task

if TYPE_CHECKING:
    from conftest import Course, Ran

Rows = Callable[["Course"], Counter[str]]
HALF = "def double(n): return 2 * n if n < 99 else 0"
LATE = """
from nbgrader.plugins import BasePlugin


class Half(BasePlugin):
    def late_submission_penalty(self, student_id, score, total_seconds_late):
        return score / 2


c.AssignLatePenalties.plugin_class = Half
"""


@pytest.fixture(scope="module")
def once(tiny: Course, tmp_path_factory: pytest.TempPathFactory) -> Course:
    """A graded class: right, half right, late, and two about whom a person decided. To be copied."""
    course = tiny.copy(tmp_path_factory.mktemp("regrade") / "once")
    with (course.root / "nbgrader_config.py").open("a") as file:
        file.write(LATE)
    for student, double in (
        ("ada", HALF),
        ("bob", "def double(n): return n + n"),
        ("eve", HALF),
        ("kim", HALF),
        ("zoe", HALF),
    ):
        course.solve(student, double=double)
        (course.folder(student) / "timestamp.txt").write_text(f"2026-05-01 {13 if student == 'zoe' else 11}:00:00 UTC")
    with build.quiet_nbgrader(), Gradebook(f"sqlite:///{course.root}/gradebook.db") as book:
        book.update_or_create_assignment("tiny", duedate="2026-05-01 12:00:00")
    assert course.grade().code == 0
    with build.quiet_nbgrader(), Gradebook(f"sqlite:///{course.root}/gradebook.db") as book:
        for student, review in (("eve", False), ("kim", True)):
            grade = book.find_grade("check_double", "tiny", "tiny", student)
            grade.manual_score, grade.extra_credit, grade.needs_manual_grade = 4.5, 0.25, review
            book.find_comment("double", "tiny", "tiny", student).manual_comment = f"Well tried, {student}."
        book.find_grade("check_layers", "tiny", "tiny", "ada").extra_credit = 1.0
        book.db.commit()
    return course


@pytest.fixture
def course(once: Course, tmp_path: Path) -> Course:
    """A copy of one's own, with a repository of its own that may be changed."""
    copy = once.copy(tmp_path / "own")
    shutil.copytree(once.environment["AUTOGRADER_REPOSITORY"], tmp_path / "repository")
    copy.environment = {"AUTOGRADER_REPOSITORY": str(tmp_path / "repository")}
    return copy


def change(course: Course, file: str, before: str, after: str) -> None:
    """Change a file of the suite."""
    path = Path(course.environment["AUTOGRADER_REPOSITORY"], "tests", "grading", "tiny", file)
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    os.utime(path, ns=(path.stat().st_mtime_ns + 2_000_000_000,) * 2)  # else Python may take what it compiled before


def autograded(course: Course) -> dict[Path, bytes]:
    """What nbgrader keeps of every graded submission."""
    found = (course.root / "autograded").rglob("*")
    return {path.relative_to(course.root): path.read_bytes() for path in found if path.is_file()}


def rewards_zero(course: Course) -> None:
    """Another version of a hidden check: who doubled large numbers fails it, who gave 0 passes."""
    change(course, "test_hidden.py", "2**71", "0")


def cells(ran: Ran) -> str:
    """The output with the lines of each table cell put together."""
    return " ".join(re.sub(r"[│┃━─┏┓┗┛┡┩├┤┼└┘┴┬┳╇]", " ", ran.said).split())


def test_a_dry_run_shows_what_changes_and_why_and_changes_nothing(course: Course, rows: Rows) -> None:
    """Totals, the flipped check in both versions with what it said, manual scores that stay; all is as it was."""
    rewards_zero(course)
    before = rows(course), autograded(course)
    ran = course.autograder("regrade", "tiny", "--dry-run", "--plain", COLUMNS="220")
    assert ran.code == 0, ran.said
    assert (rows(course), autograded(course)) == before
    said = cells(ran)
    for student, then, now in (("ada", "9", "11"), ("bob", "10", "8"), ("eve", "9.75", "9.75"), ("zoe", "4", "5")):
        assert re.search(rf" {student} {then} {now} ", said), (student, ran.said)
    assert "test_double_big: FAILED 0/2 → PASSED 2/2" in said
    assert "test_double_big: PASSED 2/2 → FAILED 0/2" in said
    assert said.count("then: Twice 2**70") == 4
    assert said.count("now: Twice 2**70") == 1
    assert f"value 0; expected {2**71:_}" in said
    assert "test_layers" not in said
    assert said.count("double keeps its 4.5 by hand; the automatic points under it go from 3 to 5.") == 2
    assert "3 of 5 totals change; 0 students keep every check as it was." in said
    assert "Dry run: the gradebook is as it was. Apply it with: autograder regrade tiny" in said


def test_what_was_shown_is_what_is_applied(course: Course) -> None:
    """Applying judges nothing again, and every total is the one that the dry run gave, a late plug-in's penalty included."""
    rewards_zero(course)
    course.autograder("regrade", "tiny", "--dry-run")
    results = {path: path.read_bytes() for path in course.results()}
    assert len(results) == 10, "of both suites"
    ran = course.autograder("regrade", "tiny", COLUMNS="220")
    assert ran.code == 0, ran.said
    assert {path: path.read_bytes() for path in course.results()} == results
    assert {student: recorded.total for student, recorded in course.book().items()} == {
        "ada": 11.0, "bob": 8.0, "eve": 9.75, "kim": 9.75, "zoe": 5.0
    }  # fmt: skip
    assert "5 grades entered into the gradebook." in ran.said
    assert "as shown above" not in ran.said
    again = course.autograder("regrade", "tiny")
    assert "0 of 5 totals change; 5 students keep every check as it was." in again.said
    assert "0 grades entered into the gradebook." in again.said
    assert "Nothing to do" in course.grade().said


def test_old_new_old_restores_the_gradebook(course: Course, rows: Rows) -> None:
    """Every row of every table and every autograded file, manual scores, extra credit, comments and reviews among them."""
    before, copies = rows(course), autograded(course)
    rewards_zero(course)
    assert course.autograder("regrade", "tiny").code == 0
    changed = rows(course)
    assert changed != before
    for kept in ('"manual_score": 4.5', '"extra_credit": 0.25', "Well tried, kim."):
        assert sum(kept in row for row in changed) == sum(kept in row for row in before) > 0
    change(course, "test_hidden.py", "2**70), 0", "2**70), 2**71")
    seen = {path: path.read_bytes() for path in course.results()}
    assert course.autograder("regrade", "tiny").code == 0
    assert rows(course) == before
    assert autograded(course) == copies
    assert {path: path.read_bytes() for path in course.results()} == seen, "results of the old suite were still there"


def test_other_points_are_told_to_the_gradebook_first(course: Course, rows: Rows) -> None:
    """nbgrader knows itself what a task is worth: regrading says so before it changes anything, then goes both ways."""
    before = rows(course)
    change(course, "spec.py", '"test_double": 3', '"test_double": 13')
    for arguments, code in ((["--dry-run"], 0), ([], 1)):
        ran = course.autograder("regrade", "tiny", *arguments, COLUMNS="220")
        assert ran.code == code
        assert "double (5 there, 15 here)" in ran.said
        assert "test_double: PASSED 3/3 → PASSED 13/13" in cells(ran)
        assert rows(course) == before
    for arguments in (["build", "tiny"], ["init", ".", "tiny"], ["regrade", "tiny"]):
        ran = course.autograder(*arguments)
        assert ran.code == 0, ran.said
    assert course.total("bob") == 20.0
    assert course.total("eve") == 9.75
    change(course, "spec.py", '"test_double": 13', '"test_double": 3')
    for arguments in (["build", "tiny"], ["init", ".", "tiny"], ["regrade", "tiny"]):
        assert course.autograder(*arguments).code == 0
    assert rows(course) == before


def test_a_check_that_breaks_costs_nobody_anything(course: Course, rows: Rows) -> None:
    """Withheld under the new suite: the grade stays, and the reason is told."""
    before = rows(course)
    change(
        course,
        "test_hidden.py",
        "expect_equal(submission.double(2**70), 2**71",
        "expect_equal(submission.double(2**70), 1 // 0",
    )
    ran = course.autograder("regrade", "tiny", "--student", "ada", "--student", "eve", COLUMNS="220")
    assert ran.code == 1
    assert rows(course) == before
    said = cells(ran)
    assert said.count("Withheld: test_double_big: BROKEN") == 2
    assert said.count("The gradebook keeps what it has.") == 2
    assert "test_double_big: FAILED 0/2 → BROKEN 0/2" in said
    assert "0 of 2 totals change" in said


def test_checks_come_and_go(course: Course) -> None:
    """A check that is new or gone is a flip against no check at all; a submission handed in since is told apart."""
    change(course, "test_hidden.py", "def test_double_big", "def test_double_huge")
    change(course, "spec.py", "test_double_big", "test_double_huge")
    course.solve("bob", double=HALF)
    course.solve("new")
    shutil.rmtree(course.root / "results" / "tiny" / "kim")
    ran = course.autograder("regrade", "tiny", "--dry-run", COLUMNS="220")
    said = cells(ran)
    assert "test_double_big: FAILED 0/2 → no such check" in said
    assert "test_double_huge: no such check → FAILED 0/2" in said
    assert said.count("Handed in anew since: the checks differ by more than the suite.") == 1
    assert re.search(r" new – 10 Not in the gradebook yet\.", said)
    assert re.search(r"kim 9\.75 9\.75 The result that the gradebook shows \(\w{32}\) is not there", said)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "There is no assignment 'nothing'"),
        (["tiny", "--student", "nobody"], "No submission of nobody for tiny"),
        (["tiny", "--isolation", "none"], "Unknown isolation 'none'"),
    ],
)
def test_what_cannot_be_regraded_says_why(course: Course, rows: Rows, arguments: list[str], says: str) -> None:
    """Names that are none are sentences, and change nothing."""
    before = rows(course)
    ran = course.autograder("regrade", *arguments)
    assert ran.code == 1
    assert says in ran.said
    assert rows(course) == before


# ------------------------------------------------------------------------------------------------ the comparison itself

CHECKS = ("test_a", "test_b", "test_c")
findings = st.lists(
    st.builds(
        Finding,
        check=st.sampled_from(CHECKS),
        task=st.just("first"),
        outcome=st.sampled_from(Outcome),
        hidden=st.just(False),
        sentence=st.just(""),
        message=st.text(max_size=2),
    ),
    max_size=4,
)
specs = st.dictionaries(st.sampled_from(CHECKS), st.integers(1, 3), min_size=1)


def result(stream: list[Finding], points: dict[str, int]) -> Result:
    """A result under a spec with these checks."""
    fields: dict[str, Any] = {
        "assignment": "sample", "student": "ada", "source": "x", "submission_hash": "a", "submission_copy": "c" * 64,
        "suite_hash": "b", "release": "1", "framework": "0", "tier": "cpu", "seed": 1, "machine": {}, "models": {},
        "isolation": IsolationRecord(name="", level=3, walls=(), refused=()), "seconds": 1, "withheld": (), "remarks": (),
        "spec": Assignment("sample", "Sample", (Task("first", "First", 1, points),)), "findings": stream,
    }  # fmt: skip
    return Result.model_validate(fields)


@settings(deadline=None)
@given(findings, specs)
def test_a_result_does_not_differ_from_itself(stream: list[Finding], points: dict[str, int]) -> None:
    """In whatever order its findings are."""
    assert not list(regrade.flips(result(stream, points), result(stream[::-1], points)))


@settings(deadline=None)
@given(findings, specs, findings, specs)
def test_flips_are_the_checks_whose_verdicts_differ(
    then: list[Finding], old: dict[str, int], now: list[Finding], new: dict[str, int]
) -> None:
    """A check is told if its outcome, its points or what it is worth differ, the other way round too; messages decide nothing."""

    def verdicts(stream: list[Finding], points: dict[str, int]) -> dict[str, Any]:
        return {
            name: (worth, [each.outcome for each in stream if each.check == name]) for name, worth in points.items()
        }

    one, other = verdicts(then, old), verdicts(now, new)
    different = {
        name
        for name in one.keys() | other.keys()
        if one.get(name) != other.get(name)
        and not (  # several findings are one verdict, whatever they say
            name in one
            and name in other
            and one[name][0] == other[name][0]
            and len(one[name][1]) == len(other[name][1]) != 1
        )
    }
    there = list(regrade.flips(result(then, old), result(now, new)))
    back = list(regrade.flips(result(now, new), result(then, old)))
    assert {flip.check for flip in there} == different
    assert {(flip.check, flip.then, flip.now) for flip in there} == {(flip.check, flip.now, flip.then) for flip in back}
