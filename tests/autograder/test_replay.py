"""Results judged again with their seeds: the same findings, whatever became of the submission, and what is told if not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autograder import results, suite
from autograder.authoring import corpus
from autograder.checks import SubmissionFault
from autograder.finding import Finding, Outcome
from autograder.judging.remote import RunningSubmission
from autograder.results import Result
from autograder.runs import replay
from autograder.sandboxing.sandbox import ProcessSandbox
from autograder.worker.wire import Deadline

if TYPE_CHECKING:
    from conftest import Course, Ran

REPRODUCED = "Every correctness finding is reproduced"
REPLAYED = {
    "right": ("reference", "chatty", "functional", "linked_list"),
    "wrong": (
        "stub", "accepts_bools", "always_caches", "double_free", "floor_blocks", "gigabytes", "hash_without_parent",
        "latent_split", "no_rollback", "raises_when_nothing_fits", "searches_queue", "swallows_errors", "window_frees",
    ),
    "hostile": (
        "equal_to_everything", "echoes_its_input", "lies_about_types", "nan_and_infinity", "odd_values", "patches_harness",
        "raises_every_error", "sends_broken_frames", "traces_the_judge",
    ),
    "honest": ("draws_random_numbers", "looks_at_itself"),
}  # fmt: skip
"""Submissions of the corpus that neither wait nor take memory: limits of time and memory depend on who else is at work."""


def rewrite(file: Path, **fields: Any) -> None:
    """Store the result in `file` with other fields, as a run on another machine or with another seed would have."""
    result = results.load(file)
    assert result is not None
    results.save(file, Result.model_validate(result.model_dump() | fields))


def state(course: Course) -> dict[Path, bytes]:
    """All files of a course."""
    return {path: path.read_bytes() for path in course.root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def graded(kv_cache: Course, tmp_path_factory: pytest.TempPathFactory) -> Course:
    """A course with a result of each submission in `REPLAYED`."""
    course = kv_cache.copy(tmp_path_factory.mktemp("graded") / "own")
    entries = {entry.key: entry for entry in corpus.load("kv_cache")}
    for key in (f"{kind}-{name}" for kind, names in REPLAYED.items() for name in names):
        course.hand_in(key, corpus.notebook("kv_cache", entries[key].answers))
    course.grade("--no-import", "--plain")
    assert len(course.results()) == sum(map(len, REPLAYED.values()))
    return course


def test_right_wrong_and_hostile_results_are_reproduced(graded: Course) -> None:
    """Nearly thirty submissions of the corpus, judged again in another process: no finding is different."""
    before = state(graded)
    ran = graded.autograder("replay", "--plain", *map(str, graded.results()))
    assert ran.code == 0, ran.said
    exact = sum(not check.performance for check in suite.load_assignment("kv_cache").checks)
    counts = re.findall(r"^(\S+) \w{8}: (\d+) of (\d+) correctness findings reproduced$", ran.said, re.MULTILINE)
    assert [count[0] for count in counts] == [file.parent.name for file in graded.results()]
    assert {count[1:] for count in counts} == {(str(exact), str(exact))}
    assert ran.said.rstrip().endswith(f"{REPRODUCED}.")
    assert "findings that differ" not in ran.said
    assert "different around them" not in ran.said
    assert state(graded) == before, "a replay changes nothing"


def test_measured_checks_are_shown_beside_each_other(graded: Course) -> None:
    """A check that measures is listed with both readings, and decides nothing."""
    (file,) = graded.results("wrong-searches_queue")
    ran = graded.autograder("replay", "--plain", str(file))
    assert ran.code == 0, ran.said
    rows = ran.said.partition("measured again, so that a ratio may differ")[2]
    reading = "(FAILED|INCONCLUSIVE)"  # the latter where the machine is busy
    assert re.search(rf"test_pool_constant_time +│ {reading}.*│ {reading}", rows), ran.said


def test_another_seed_gives_other_findings(graded: Course) -> None:
    """The comparison sees what a seed decides: with another one the messages of drawn inputs are different."""
    (file,) = graded.results("wrong-window_frees")
    content = file.read_bytes()
    try:
        rewrite(file, seed=json.loads(content)["seed"] ^ 1)
        ran = graded.autograder("replay", "--plain", str(file))
    finally:
        file.write_bytes(content)
    assert ran.code == 1, ran.said
    assert "findings that differ" in ran.said
    reproduced = re.search(r"^wrong-window_frees \w+: (\d+) of (\d+)", ran.said, re.MULTILINE)
    assert reproduced
    assert int(reproduced[1]) < int(reproduced[2])
    assert "1 of 1 results are not reproduced." in ran.said


# ------------------------------------------------------------------------------------------------ texts that would vary

VARYING = {
    "an address": "def double(n): return str(object())",
    "an address in an error": "def double(n): raise ValueError(double, object(), (i for i in ()))",
    "the order of a set": "def double(n): return ' '.join({'one', 'two', 'three', 'four', 'five', 'six', 'seven'})",
    "a hash": "def double(n): return hash('text')",
    "a random number": "import random\ndef double(n): return random.random()",
    "output": "import time\ndef double(n): print(time.time_ns()); return 0",
}


def test_what_varies_without_meaning_is_the_same_again(course: Course) -> None:
    """Addresses, hashes, orders of sets and numbers of the generator that nobody seeded are the same in every run."""
    students = {f"s{number}": source for number, source in enumerate(VARYING.values())}
    for student, source in students.items():
        course.solve(student, double=source)
    course.grade("--no-import")
    messages = {student: course.findings(student)["test_double"] for student in students}
    assert "at 0x…>" in messages["s0"]["value"]
    assert "<function double at 0x…>" in messages["s1"]["message"]
    ran = course.autograder("replay", *map(str, course.results()))
    assert ran.code == 0, ran.said
    assert ran.said.count("4 of 4 correctness findings reproduced") == len(VARYING)


def test_a_submission_that_draws_entropy_is_told(course: Course) -> None:
    """What a submission gets from the system's entropy is its own: both values are shown, and the exit status is 1."""
    course.solve("ada", double="import os\ndef double(n): return 'drawn ' + os.urandom(8).hex()")
    course.solve("bob")
    course.grade("--no-import")
    ran = course.autograder("replay", *map(str, course.results()))
    assert ran.code == 1, ran.said
    assert len(set(re.findall(r"drawn [0-9a-f]{16}", ran.said))) == 4, "of two checks, then and now"
    assert re.search(r"^ada \w+: 2 of 4 correctness", ran.said, re.MULTILINE)
    assert re.search(r"^bob \w+: 4 of 4 correctness", ran.said, re.MULTILINE)
    assert "1 of 2 results are not reproduced." in ran.said


def test_the_limit_of_a_check_is_told_without_a_measured_time() -> None:
    """How much of a check's time was left for its last call is in no message; it would be another number every time."""
    running = RunningSubmission([("cell", "import time\nsleep = time.sleep")], ProcessSandbox(), call_s=30.0)
    try:
        running.begin_check(Deadline(60.0))
        running.sleep(0)  # the worker is there and loaded
        running.begin_check(Deadline(0.5))
        with pytest.raises(SubmissionFault, match=r"^ran out of the 0\.5 s that the whole check has") as fault:
            running.sleep(20)
        assert fault.value.timeout
    finally:
        running.close()


# ------------------------------------------------------------------------------------------------ what changed since


@pytest.fixture
def one(course: Course) -> tuple[Course, Path]:
    """A course with one result of a submission that is half right."""
    course.solve("ada", double="def double(n): return 2 * n if n < 99 else 0")
    course.grade("--no-import")
    (file,) = course.results("ada")
    return course, file


@pytest.mark.parametrize("change", ["replaced", "removed", "broken"])
def test_the_submission_may_have_changed_since(one: tuple[Course, Path], change: str) -> None:
    """A result brings what was judged along; what lies in `submitted/` now plays no part."""
    course, file = one
    if change == "replaced":
        course.solve("ada", double="def double(n): return None")
    elif change == "broken":
        course.hand_in("ada", b"{")
    else:
        shutil.rmtree(course.root / "submitted")
    ran = course.autograder("replay", str(file))
    assert (ran.code, REPRODUCED in ran.said) == (0, True), ran.said


def changed_repository(course: Course, change: Callable[[str], str]) -> str:
    """A copy of the course's repository, with another hidden suite."""
    copy = course.root.with_name("changed")
    shutil.copytree(course.environment["AUTOGRADER_REPOSITORY"], copy)
    file = copy / "tests" / "grading" / "tiny" / "test_hidden.py"
    before = file.read_text()
    file.write_text(change(before))
    assert file.read_text() != before
    return str(copy)


def suites(ran: Ran) -> set[str]:
    """The hashes of suites in the table of differences, put together from their lines."""
    rows = [line.split("│")[1:-1] for line in ran.said.splitlines() if line.startswith("│")]
    start = next(number for number, row in enumerate(rows) if row[1].strip() == "suite")
    parts = [rows[start]]
    for row in rows[start + 1 :]:
        if row[1].strip():
            break
        parts.append(row)
    return {"".join(row[column].strip() for row in parts) for column in (2, 3)}


def test_another_suite_is_told_with_both_hashes(one: tuple[Course, Path]) -> None:
    """A suite that changed and finds the same is no reproduction, and the page says so."""
    course, file = one
    other = changed_repository(course, lambda text: f"{text}\n# another version\n")
    ran = course.autograder("replay", str(file), AUTOGRADER_REPOSITORY=other)
    assert ran.code == 0, ran.said
    assert "under another suite than then: that shows what the change does, and reproduces nothing" in ran.said
    then = json.loads(file.read_bytes())["suite_hash"]
    assert then in suites(ran)
    assert {len(each) for each in suites(ran)} == {64}
    assert len(suites(ran)) == 2


def test_what_another_suite_finds_is_shown(one: tuple[Course, Path]) -> None:
    """A changed expected value, a check that is gone and one that is new are differences, each with then and now."""
    course, file = one
    ran = course.autograder(
        "replay", str(file), AUTOGRADER_REPOSITORY=changed_repository(course, lambda text: text.replace("2**71", "0"))
    )
    assert ran.code == 1, ran.said
    assert re.search(r"test_double_big: outcome +│ FAILED +│ PASSED", ran.said), ran.said
    assert re.search(r"^ada \w+: 3 of 4 correctness", ran.said, re.MULTILINE)


def test_what_differs_around_a_result_is_listed(one: tuple[Course, Path]) -> None:
    """Packages, machine, isolation, framework and models of then stand beside those of now; the findings are the same."""
    course, file = one
    result = results.load(file)
    assert result is not None
    machine = result.machine | {"cpu": "Difference Engine No. 2", "packages": {"torch": "0.1.10", "gone": "3"}}
    rewrite(
        file,
        framework="0.0.0-then",
        machine=machine,
        models={"TinyModel": "e" * 64},
        isolation=result.isolation.model_dump() | {"name": "process only", "level": 0},
    )
    ran = course.autograder("replay", str(file))
    assert ran.code == 0, ran.said
    for what, then in (
        ("framework", r"0\.0\.0-then"),
        ("isolation", r"process only \(level 0\)"),
        ("machine: cpu", r"Difference Engine No\. 2"),
        ("package torch", r"0\.1\.10"),
        ("package gone", "3"),
        ("package nbgrader", "none"),
        ("model TinyModel", "e{20,}"),
    ):
        assert re.search(rf"│ {re.escape(what)} +│ {then}", ran.said), (what, ran.said)


def test_models_are_recorded(one: tuple[Course, Path]) -> None:
    """A result names the models that lay here, each with the hash of the manifest that names all its files."""
    models = json.loads(one[1].read_bytes())["models"]
    assert set(models) == {"SmolLM2-135M-Instruct"}
    assert re.fullmatch("[0-9a-f]{64}", models["SmolLM2-135M-Instruct"])


@pytest.mark.parametrize("damage", ["result", "copy", "no copy", "nothing there", "two assignments"])
def test_what_cannot_be_replayed_says_why(one: tuple[Course, Path], damage: str) -> None:
    """A changed result, a changed or missing copy and a wrong path are sentences."""
    course, file = one
    files = [str(file)]
    (copy,) = (course.root / "results" / ".submissions").iterdir()
    if damage == "result":
        file.write_bytes(file.read_bytes() + b"\n")
    elif damage == "copy":
        copy.write_bytes(copy.read_bytes().replace(b"return", b"retur ", 1))
    elif damage == "no copy":
        copy.unlink()
    elif damage == "two assignments":
        shutil.copy(file, file.with_name("other.json"))
        rewrite(file.with_name("other.json"), assignment="other")
        files.append(str(file.with_name("other.json")))
    else:
        files = [str(file.with_name("x.json"))]
    says = {
        "result": "was changed after it was written",
        "copy": "is not what was judged",
        "no copy": "cannot be read again",
        "nothing there": "There is no",
        "two assignments": "Replay one assignment at a time",
    }
    ran = course.autograder("replay", *files)
    assert ran.code == 1
    assert ran.said.startswith("autograder: ")
    assert says[damage] in ran.said


def test_a_result_may_lie_anywhere(one: tuple[Course, Path], tmp_path: Path) -> None:
    """A result that was sent by mail is replayed with `--course`; without it the sentence says what is missing."""
    course, file = one
    sent = tmp_path / "sent.json"
    shutil.copy(file, sent)
    ran = course.autograder("replay", str(sent), "--course", ".")
    assert (ran.code, REPRODUCED in ran.said) == (0, True), ran.said
    alone = course.autograder("replay", str(sent))
    assert alone.code == 1
    assert "is not in an nbgrader course" in alone.said


# ------------------------------------------------------------------------------------------------ the comparison itself

text = st.text(max_size=4)
findings = st.builds(
    Finding,
    check=st.sampled_from(["test_a", "test_b", "test_c"]),
    task=st.just("task"),
    outcome=st.sampled_from(Outcome),
    hidden=st.booleans(),
    sentence=text,
    message=text,
    value=st.none() | text,
    expected=st.none() | text,
    credit=st.none() | st.floats(),
    seconds=st.floats(),
    measurements=st.dictionaries(text, st.floats(), max_size=2),
)
streams = st.lists(findings, max_size=3, unique_by=lambda finding: finding.check)


@given(streams)
def test_equal_findings_do_not_differ(stream: list[Finding]) -> None:
    """Whatever a finding holds, NaN included, it is equal to itself, in any order."""
    assert not list(replay.differences(stream, stream[::-1], set()))


@given(streams, st.data())
def test_every_compared_field_counts(stream: list[Finding], data: st.DataObject) -> None:
    """Another outcome, message, value, expected value or credit of one check is a difference of that check."""
    other = [Finding.model_validate(dict(finding)) for finding in stream]
    for number, finding in enumerate(stream):
        field = data.draw(st.sampled_from(replay.COMPARED))
        changed = getattr(data.draw(findings), field)
        other[number] = finding.model_copy(update={field: changed})
        found = [each.what for each in replay.differences(stream, other, set())]
        assert (f"{finding.check}: {field}" in found) == (repr(changed) != repr(getattr(finding, field)))
    assert not list(replay.differences(stream, other, {finding.check for finding in stream}))


def test_a_finding_that_is_missing_differs() -> None:
    """A check that one side has no finding of is a difference in both directions."""
    made = Finding(check="test_a", task="task", outcome=Outcome.PASSED, hidden=False, sentence="")
    assert [(each.then, each.now) for each in replay.differences([made], [], set())] == [("PASSED", "no finding")]
    assert [(each.then, each.now) for each in replay.differences([], [made], set())] == [("no finding", "PASSED")]
