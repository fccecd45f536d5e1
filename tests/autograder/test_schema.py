"""What other tools read: JSON against the published schemas, by a validator that is not ours; JUnit XML by its readers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import junitparser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from autograder import grade, results, schema
from autograder.errors import AutograderError
from autograder.finding import Finding, Outcome
from autograder.reports import explain, junit
from autograder.reports.explain import Explanation
from autograder.results import IsolationRecord, Result
from autograder.spec import Assignment, Task

if TYPE_CHECKING:
    from conftest import Course

ASSIGNMENT = Assignment("sample", "Sample", (Task("first", "First", 1, {"test_a": 3}, {"test_b": 4}),))
wild = st.text(st.characters(codec=None), max_size=6)
findings = st.builds(
    Finding,
    check=st.sampled_from(["test_a", "test_b"]),
    task=st.just("first"),
    outcome=st.sampled_from(Outcome),
    hidden=st.booleans(),
    sentence=wild,
    message=wild,
    hint=wild,
    value=st.none() | wild,
    expected=st.none() | wild,
    printed=wild,
    credit=st.none() | st.floats(),
    seconds=st.floats(),
    measurements=st.dictionaries(st.text(max_size=3), st.floats(), max_size=2),
)
streams = st.lists(findings, max_size=4)


def validator(name: str) -> jsonschema.Draft202012Validator:
    """A validator of the committed schema, which must itself be one."""
    content = json.loads((schema.FOLDER / f"{name}.schema.json").read_bytes())
    jsonschema.Draft202012Validator.check_schema(content)
    return jsonschema.Draft202012Validator(content)


def result(stream: list[Finding], **more: Any) -> Result:
    """A result with these findings."""
    isolation = IsolationRecord(name="namespaces", level=3, walls=(), refused=())
    fields = {
        "assignment": "sample", "student": "ada", "source": "x.ipynb", "submission_hash": "a" * 64,
        "submission_copy": "c" * 64, "suite_hash": "b" * 64, "release": "1", "framework": "0", "tier": "cpu", "seed": 1,
        "isolation": isolation, "machine": {"cores": 2}, "models": {}, "seconds": 1.5, "withheld": (), "remarks": (),
        "spec": ASSIGNMENT, "findings": stream,
    }  # fmt: skip
    return Result.model_validate(fields | more)


def explanation(made: Result) -> Explanation:
    """What `explain` says of it, without a course."""
    scored = grade.score(ASSIGNMENT, made.findings, made.withheld)
    return Explanation(Path("x.json"), made, explain.explain_checks(made), scored, True, None, None)


# ------------------------------------------------------------------------------------------------ the schemas


def test_the_committed_schemas_are_what_the_models_give() -> None:
    """A change of a model that other tools would notice shows in a committed file; `python -m autograder.schema` writes it."""
    committed = {path.name: path.read_text(encoding="utf-8") for path in schema.FOLDER.iterdir()}
    assert committed == schema.schemas(), "run: python -m autograder.schema"


def test_writing_gives_the_committed_files(tmp_path: Path) -> None:
    """What the command writes is what the test above compares with."""
    schema.write(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == schema.schemas()


@settings(deadline=None)
@given(streams)
def test_every_stored_result_fits_the_schema(tmp_path_factory: pytest.TempPathFactory, stream: list[Finding]) -> None:
    """Whatever a submission says and whatever is measured, NaN and infinity included."""
    file = tmp_path_factory.mktemp("store") / "x.json"
    results.save(file, result(stream))
    validator("result").validate(json.loads(file.read_bytes(), parse_constant=pytest.fail))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema_version", 2), ("tier", "tpu"), ("digest", "x"), ("unknown", 1), ("findings", None), ("seed", 1.5),
        ("submission_copy", "../x"), ("seconds", "fast"), ("spec", {"name": "sample"}),
        ("findings", [{"check": "test_a", "outcome": "GOOD"}]),
    ],
)  # fmt: skip
def test_the_schema_refuses_what_is_no_result(tmp_path: Path, field: str, value: object) -> None:
    """A wrong type, an unknown member and a word that is not on the list are told apart from a result."""
    results.save(tmp_path / "x.json", result([]))
    content = json.loads((tmp_path / "x.json").read_bytes())
    validator("result").validate(content)
    assert not validator("result").is_valid(content | {field: value})
    content.pop("digest")
    assert not validator("result").is_valid(content)


def test_grade_json_is_one_object_that_fits_the_schema(course: Course, tmp_path: Path) -> None:
    """`grade --json` prints nothing else on stdout, for grades, withheld grades and errors; so do results and gradebook."""
    course.autograder("keys", "new", str(tmp_path / "key"))
    course.solve("ada", double="def double(n): return 0")
    course.solve("bob")
    course.hand_in("eve", b"{")
    command = [sys.executable, "-m", "autograder", "grade", "tiny", "--json", "--sign", str(tmp_path / "key")]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "TMPDIR": str(course.tmp)} | course.environment
    ran = subprocess.run(command, cwd=course.root, env=environment, capture_output=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert b"grading tiny" in ran.stderr
    said = json.loads(ran.stdout, parse_constant=pytest.fail)
    validator("grades").validate(said)
    assert ran.stdout.isascii()
    students = {each["student"]: each for each in said["students"]}
    assert [(each["student"], each["status"], each["points"]) for each in said["students"]] == [
        ("ada", "graded", 5.0), ("bob", "graded", 10.0), ("eve", "withheld", None)
    ]  # fmt: skip
    assert students["ada"]["tasks"][0] == {"task": "double", "points": 0.0, "max_points": 5}
    assert students["ada"]["gradebook"]["points"] == 5.0
    assert students["eve"]["tasks"] == []
    assert students["eve"]["gradebook"] is None
    assert students["eve"]["withheld"]
    for file in course.results():
        content = json.loads(file.read_bytes())
        validator("result").validate(content)
        assert content["signature"]
        assert file.name == students[file.parent.name]["result"]
    for name, code in (("nothing", 1), ("tiny", 2)):
        wrong = [*command[:4], name, *command[5:], *(["--workers=-1"] if code == 2 else [])]
        ran = subprocess.run(wrong, cwd=course.root, env=environment, capture_output=True, check=False)
        assert (ran.returncode, ran.stdout) == (code, b"")
        assert ran.stderr


# ------------------------------------------------------------------------------------------------ JUnit XML


@settings(deadline=None)
@given(streams, st.lists(wild, max_size=2), wild)
def test_any_result_is_well_formed_junit(stream: list[Finding], withheld: list[str], student: str) -> None:
    """Text of any kind, numbers that are none: two readers take it, and what is no pass does not look like one."""
    made = explanation(result(stream, withheld=[each.encode(errors="replace").decode() for each in withheld]))
    text = junit.report("sample", {"ada": made, student: AutograderError(student)})
    root = etree.fromstring(text)
    read = junitparser.JUnitXml.fromstring(text)
    (suite,) = [suite for suite in read if suite.name == "ada"][:1]
    cases = {case.name: case for case in suite if case.name != "grade"}
    for each in made.checks:
        passed = each.decision.rule is grade.Rule.PASSED
        assert cases[each.check.name].is_passed == passed
    failed = suite.failures + suite.errors + suite.skipped
    assert (failed == 0) == (made.score.points == made.score.max_points and not made.score.withheld)
    assert root.get("tests") == str(sum(int(each.get("tests", "")) for each in root))
    assert suite.tests == len(list(suite))
    for element in root.iter():
        if seconds := element.get("time"):
            assert seconds.replace(".", "", 1).isdigit()


def test_a_course_is_exported_as_junit(course: Course) -> None:
    """A suite for each submission, failures with what happened, an error for what could not be read."""
    course.solve("ada", double="def double(n): return 0")
    course.hand_in("eve", b"{")
    course.grade("--no-import")
    course.solve("new")
    target = course.root / "report.xml"
    target.write_text("old")
    ran = course.autograder("export", "tiny", "--format", "junit", "--output", "report.xml")
    assert (ran.code, ran.said) == (0, "report.xml: findings of 3 submissions, 2 of them without a result.\n")
    read = {suite.name: suite for suite in junitparser.JUnitXml.fromfile(str(target))}
    assert {name: (suite.tests, suite.failures, suite.errors) for name, suite in read.items()} == {
        "ada": (4, 2, 0), "eve": (1, 0, 1), "new": (1, 0, 1)
    }  # fmt: skip
    (failure,) = next(case for case in read["ada"] if case.name == "test_double").result
    assert failure.type == "FAILED"
    assert "Twice 1" in failure.message
    assert {each.get("name"): each.get("value") for each in etree.parse(target).iter("property")}["points"] == "5"
    assert grade.Rule.FAILED in target.read_text()
    nowhere = course.autograder("export", "tiny", "--format", "junit", "--output", "none/report.xml")
    assert nowhere.code == 1
    assert "none/report.xml cannot be written: No such file or directory." in nowhere.said
    assert sorted(path.name for path in course.root.glob("*report*")) == ["report.xml"]
