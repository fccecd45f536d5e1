"""Explanations of grades: every point has its rule, and the points are those of the grade."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbgrader.api import Gradebook
from rich.console import Console

from autograder import results
from autograder.authoring import build
from autograder.finding import Finding, Outcome
from autograder.grade import Rule, decide, score
from autograder.reports import explain
from autograder.reports.explain import Explanation
from autograder.spec import Assignment, Task, Threshold

if TYPE_CHECKING:
    from conftest import Course

FAST = {"test_fast": {"cpu": Threshold(2.0, 1.0, "2.2 measured", "a laptop")}}
TASKS = (Task("first", "First", 1, {"test_a": 3}, {"test_fast": 4}, FAST), Task("other", "Other", 1, {"test_b": 2}))
ASSIGNMENT = Assignment("sample", "Sample", TASKS)
RULES = {
    Outcome.PASSED: Rule.PASSED,
    Outcome.FAILED: Rule.FAILED,
    Outcome.BLOCKED: Rule.BLOCKED,
    Outcome.SKIPPED: Rule.WAITS,
    Outcome.INCONCLUSIVE: Rule.WAITS,
    Outcome.REVIEW: Rule.WAITS,
    Outcome.BROKEN: Rule.WAITS,
}
text = st.text(max_size=5)
findings = st.builds(
    Finding,
    check=st.sampled_from(["test_a", "test_b", "test_fast", "test_unknown"]),
    task=st.sampled_from(["first", "other"]),
    outcome=st.sampled_from(Outcome),
    hidden=st.booleans(),
    sentence=text,
    message=text,
    credit=st.none() | st.floats(),
)


def finding(check: str, outcome: Outcome, **more: object) -> Finding:
    return Finding.model_validate(
        {"check": check, "task": "first", "outcome": outcome, "hidden": False, "sentence": "It works."} | more
    )


# ------------------------------------------------------------------------------------------------ the rules


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_its_rule(outcome: Outcome) -> None:
    """Each outcome is decided by one rule; all points or none, and what withholds says so."""
    check = ASSIGNMENT.checks[0]
    decision = decide(check, [finding("test_a", outcome)])
    assert decision.rule is RULES[outcome]
    assert decision.points == (3 if outcome is Outcome.PASSED else 0)
    assert (decision.withheld is not None) == (decision.rule is Rule.WAITS)


def test_the_other_rules() -> None:
    """Partial credit, a missing, a doubled and an impossible finding have rules of their own."""
    first, fast, _ = ASSIGNMENT.checks
    failed = finding("test_fast", Outcome.FAILED, credit=0.25)
    assert (decide(fast, [failed]).rule, decide(fast, [failed]).points) == (Rule.SHARE, 1.0)
    assert decide(first, []).rule is Rule.MISSING
    assert decide(fast, [failed, failed]).rule is Rule.MISSING
    assert decide(first, [finding("test_a", Outcome.PASSED, task="other")]).rule is Rule.IMPOSSIBLE
    assert decide(first, [finding("test_a", Outcome.FAILED, credit=0.5)]).rule is Rule.IMPOSSIBLE


@settings(deadline=None)
@given(st.lists(findings, max_size=6))
def test_explained_points_add_up_to_the_grade(stream: list[Finding]) -> None:
    """Whatever was found, the points of the rules are the grade's, and a grade is withheld only for a reason."""
    by_check = {check.name: [each for each in stream if each.check == check.name] for check in ASSIGNMENT.checks}
    decisions = [decide(check, by_check[check.name]) for check in ASSIGNMENT.checks]
    scored = score(ASSIGNMENT, stream)
    assert sum(each.points for each in decisions) == pytest.approx(scored.points)
    reasons = [each.withheld for each in decisions if each.withheld]
    assert [each for each in scored.withheld if "an unknown check" not in each] == reasons
    assert all((each.points == 0) or each.rule in (Rule.PASSED, Rule.SHARE) for each in decisions)


# ------------------------------------------------------------------------------------------------ what is printed

HALF = "def double(n): return 2 * n if n < 99 else '[red]' + chr(27) + '[31m'"


@pytest.fixture(scope="module")
def once(tiny: Course, tmp_path_factory: pytest.TempPathFactory) -> Course:
    """A graded course in which half of ada's `double` is right. To be looked at, or copied."""
    course = tiny.copy(tmp_path_factory.mktemp("graded") / "once")
    course.solve("ada", double=HALF)
    assert course.grade().code == 0
    course.solve("bob")
    course.hand_in("broken", b"{")
    return course


@pytest.fixture
def graded(once: Course, tmp_path: Path) -> Course:
    """A copy of one's own."""
    return once.copy(tmp_path / "copy")


def printed(found: Explanation) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        explain.print_explanation(found, console)
    return capture.get()


def test_student_and_assignment_explain_what_the_gradebook_shows(once: Course) -> None:
    """Every check with points, outcome and rule; what a hidden check found; the sums; the gradebook's total."""
    ran = once.autograder("explain", "ada", "tiny", COLUMNS="200")
    assert ran.code == 0, ran.said
    assert "ada, tiny: 8 of 10 points" in ran.said
    assert "the present suite" in ran.said
    for said in (
        "double: 3 of 5",
        "layers: 5 of 5",
        "✓ test_double (public): PASSED",
        "✗ test_double_big (hidden): FAILED",
    ):
        assert said in ran.said
    assert re.search(
        r"3 / 3 +│ ✓ test_double \(public\): PASSED +│ A check that passed earns all its points\.", ran.said
    )
    assert re.search(r"0 / 2 +│ ✗ test_double_big .* +│ A check that failed earns nothing\.", ran.said)
    assert f"expected: {2**71:_}" in ran.said
    assert "[red]" in ran.said, "what looks like markup is text"
    assert "total: 8 of 10." in ran.said
    assert "double: 3 of 5 (3 automatic)" in ran.said


def test_a_file_says_the_same(once: Course) -> None:
    """The path of the result leads to the same explanation as the student's name."""
    (file,) = once.results("ada")
    by_name = once.autograder("explain", "ada", "tiny")
    assert once.autograder("explain", str(file)).said == by_name.said
    (file,) = [file.relative_to(once.root)]
    assert "8 of 10 points" in once.autograder("explain", str(file)).said


def test_manual_grade_extra_credit_and_lateness_are_told(graded: Course) -> None:
    """What people and nbgrader did to the points stands between the sum of the checks and the gradebook's total."""
    with build.quiet_nbgrader(), Gradebook(f"sqlite:///{graded.root}/gradebook.db") as book:
        book.find_grade("check_double", "tiny", "tiny", "ada").manual_score = 4.5
        book.find_grade("check_layers", "tiny", "tiny", "ada").extra_credit = 1
        book.find_submission_notebook("tiny", "tiny", "ada").late_submission_penalty = 2
        book.db.commit()
    said = graded.autograder("explain", "ada", "tiny").said
    assert "8 of 10 points" in said
    assert "double: 4.5 of 5 (3 automatic, 4.5 by hand instead)" in said
    assert "layers: 6 of 5 (5 automatic, 1 extra credit)" in said
    assert "total: 8.5 of 10, after a late penalty of 2." in said


def test_an_old_result_is_explained_with_the_points_of_then(once: Course) -> None:
    """Another suite may have other points: a result brings the ones that it was graded with."""
    repository = once.root.with_name("changed")
    shutil.copytree(once.environment["AUTOGRADER_REPOSITORY"], repository)
    spec = repository / "tests" / "grading" / "tiny" / "spec.py"
    spec.write_text(spec.read_text().replace('"test_double": 3', '"test_double": 30'))
    (file,) = once.results("ada")
    said = once.autograder("explain", str(file), AUTOGRADER_REPOSITORY=str(repository)).said
    assert "ada, tiny: 8 of 10 points" in said
    assert "another suite than the present one" in said
    assert "3 / 3" in said


def test_partial_credit_is_told_with_measurement_and_threshold(once: Course, tmp_path: Path) -> None:
    """The share of a performance check stands beside what was measured, what is asked for and why."""
    (file,) = once.results("ada")
    stored = results.load(file)
    assert stored is not None
    fast = finding("test_fast", Outcome.FAILED, credit=0.25, measurements={"speedup": 1.2, "speedup_asked": 2.0})
    stored = stored.model_copy(update={"spec": ASSIGNMENT, "findings": (fast, finding("test_a", Outcome.PASSED))})
    results.save(tmp_path / "x.json", stored)
    said = printed(explain.explain_file(tmp_path / "x.json"))
    assert "withheld, with 4 of 9 points so far" in said
    assert "share: 25% of 4 points" in said
    assert "1.2 times as fast as the reference" in said
    assert "2.2 measured" in said
    assert "Withheld: test_b: no finding instead of one" in said
    assert Rule.MISSING[1:] in said
    assert "The gradebook has no grade" in said


def test_a_withheld_grade_is_told_with_its_reason(course: Course) -> None:
    """Doubt about who wrote what is no zero: the points so far, why they wait, and that the gradebook has none."""
    notebook = nbformat.read(course.root / "release" / "tiny" / "tiny.ipynb", as_version=4)
    for cell in [cell for cell in notebook.cells if cell.metadata.get("task") == "double"]:
        notebook.cells += [cell | {"source": f"def double(n): return n + {number}"} for number in (1, 2)]
    course.hand_in("ada", notebook)
    assert course.grade().code == 1
    said = course.autograder("explain", "ada", "tiny").said
    assert re.search(r"ada, tiny: withheld, with \d+ of 10 points so far", said), said
    assert "\nWithheld: " in said
    assert "The gradebook has no grade of this submission." in said


def test_text_of_a_submission_commands_no_terminal() -> None:
    """Escape sequences and text in brackets are shown, not obeyed."""
    console = Console(width=100, force_terminal=True)
    with console.capture() as capture:
        console.print(explain.shown("\x1b[31m[red]red\u202e"))
    assert capture.get() == "\ufffd[31m[red]red\ufffd\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["eve", "tiny"], "eve has handed in nothing for tiny"),
        (["bob", "tiny"], "bob has not been graded for tiny. Grade first: autograder grade tiny --student bob"),
        (["broken", "tiny"], "broken has no grade for tiny:"),
        (["tiny", "ada"], "There is no assignment 'ada'"),
        (["ada"], "There is no ada. Give a stored result"),
        (["results/tiny/ada/none.json"], "There is no results/tiny/ada/none.json"),
        (["submitted"], "cannot be read"),
        (["nbgrader_config.py"], "was changed after it was written, or an older version wrote it"),
    ],
)
def test_what_cannot_be_explained_says_why(once: Course, arguments: list[str], says: str) -> None:
    """Unknown students, submissions without a result and files that are none are sentences."""
    ran = once.autograder("explain", *arguments)
    assert ran.code == 1
    assert ran.said.startswith("autograder: ")
    assert says in ran.said


def test_a_changed_result_is_not_explained(graded: Course) -> None:
    """Points that somebody wrote into a stored result are refused, not explained."""
    (file,) = graded.results("ada")
    file.write_bytes(file.read_bytes().replace(b'"FAILED"', b'"PASSED"', 1))
    for arguments in ([str(file)], ["ada", "tiny"]):
        ran = graded.autograder("explain", *arguments)
        assert ran.code == 1
        assert "was changed after it was written: its digest" in ran.said


def test_a_submission_after_the_graded_one_is_told(graded: Course) -> None:
    """What the gradebook shows is explained even when something newer lies there, ungraded."""
    (old,) = graded.results("ada")
    graded.solve("ada")
    said = graded.autograder("explain", "ada", "tiny").said
    assert "8 of 10 points" in said
    assert "Note: What is handed in now is another version" in said
    graded.grade("--no-import")
    (new,) = set(graded.results("ada")) - {old}
    said = graded.autograder("explain", str(new)).said
    assert "10 of 10 points" in said
    assert f"The gradebook shows another result than this one ({old.stem}):" in said
    shutil.rmtree(graded.root / "autograded")
    assert "10 of 10 points" in graded.autograder("explain", "ada", "tiny").said
