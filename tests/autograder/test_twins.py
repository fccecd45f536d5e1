"""Identical submissions: judged once, and nobody's fault is another's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from autograder import results, suite
from autograder.finding import Finding, Outcome
from autograder.grade import Graded
from autograder.results import IsolationRecord, Result
from autograder.runs import twins
from autograder.runs.grading import Job, graded_as
from autograder.runs.progress import Activity
from autograder.submission import Submission

if TYPE_CHECKING:
    from conftest import Course

LOADED = suite.load("kv_cache")
SOURCES = st.sampled_from(["a", "b"])
TEXTS = st.lists(st.sampled_from(["one", "two"]), max_size=1).map(tuple)
SUBMISSIONS = st.builds(
    Submission,
    source=st.sampled_from(["kv_cache.ipynb", "kv_cache.py"]),
    answers=st.dictionaries(st.just("task"), SOURCES, min_size=1),
    missing=st.dictionaries(st.just("other"), st.just("deleted"), max_size=1),
    review=TEXTS,
    remarks=TEXTS,
    elsewhere=st.dictionaries(st.just("np"), st.sampled_from(["cell 1", "cell 2"]), max_size=1),
    rest=SOURCES,
)


def judged(job: Job, outcomes: Iterable[Outcome]) -> Result:
    """The result of judging `job` itself, with a finding of each outcome."""
    content = job.submission
    assert content is not None
    findings = [
        Finding(check=f"test_{number}", task="task", outcome=outcome, hidden=False, sentence="", message=str(content.answers))
        for number, outcome in enumerate(outcomes)
    ]  # fmt: skip
    return Result(
        assignment="kv_cache", student=job.student, source=content.source, submission_hash=content.hash,
        submission_copy=results.copy_of(content)[0], suite_hash=LOADED.hash, release="", framework="", tier="cpu",
        seed=7 if job.seed is None else job.seed, machine={}, models={}, seconds=0.0, withheld=content.review,
        isolation=IsolationRecord(name="", level=3, walls=(), refused=()), remarks=content.remarks, findings=tuple(findings),
        spec=LOADED.assignment,
    )  # fmt: skip


class Recorder:
    """An executor that judges by a function and remembers whom."""

    stopping = False
    isolation = ""

    def __init__(self, judge: Callable[[Job], Result | None]) -> None:
        self.judge = judge
        self.students: list[str] = []

    def warm_up(self) -> None:
        """Nothing to do."""

    def activities(self) -> list[Activity]:
        """Nothing goes on beside."""
        return []

    def watch(self, tick: Callable[[], None]) -> None:
        """Nobody looks."""

    def grade(self, jobs: Iterable[Job], done: Callable[[Graded], None]) -> None:
        """Judge one after the other."""
        for job in jobs:
            self.students.append(job.student)
            result = self.judge(job)
            done(graded_as(LOADED, result, fresh=True) if result else Graded(job.student, None, None, "failed"))


def graded_once(jobs: list[Job], executor: Recorder, folder: Path) -> dict[str, Graded]:
    """What became of each job."""
    found: dict[str, Graded] = {}

    def done(each: Graded) -> None:
        assert each.student not in found, "told twice"
        found[each.student] = each

    twins.grade_once(executor, LOADED, folder, jobs, done)
    return found


@given(
    contents=st.lists(SUBMISSIONS, min_size=1, max_size=6),
    outcomes=st.lists(st.lists(st.sampled_from(Outcome), max_size=2), min_size=6, max_size=6),
    fails=st.sets(st.integers(0, 5)),
)
def test_nobodys_fault_reaches_another(
    contents: list[Submission], outcomes: list[list[Outcome]], fails: set[int], tmp_path_factory: Any
) -> None:
    """Whatever is identical and whatever goes wrong, each result is what judging that student alone would allow."""
    jobs = [Job(f"s{number}", content) for number, content in enumerate(contents)]

    def judge(job: Job) -> Result | None:
        number = int(job.student[1:])
        return None if number in fails else judged(job, outcomes[number])

    executor = Recorder(judge)
    found = graded_once(jobs, executor, tmp_path_factory.mktemp("results", numbered=True))
    assert sorted(found) == sorted(job.student for job in jobs)
    assert len(set(executor.students)) == len(executor.students), "judged twice"
    for job in jobs:
        each, content = found[job.student], job.submission
        assert content is not None
        if job.student in executor.students:
            assert each.result == judge(job)
            continue
        own = each.result
        assert own is not None, "only a judge can fail, and nobody else bears it"
        assert (own.student, own.source) == (job.student, content.source)
        assert (own.withheld, own.remarks) == (content.review, content.remarks)
        assert own.submission_copy == results.copy_of(content)[0]
        assert all(finding.outcome in twins.FINAL for finding in own.findings)
        other = found[own.judged_with].result
        assert other is not None
        assert (own.findings, own.seed) == (other.findings, other.seed)
        seen = jobs[int(own.judged_with[1:])].submission
        assert seen is not None
        assert (seen.answers, seen.missing, seen.elsewhere) == (content.answers, content.missing, content.elsewhere)


@given(st.lists(SUBMISSIONS, max_size=8))
def test_groups_are_a_partition_by_what_a_judge_sees(contents: list[Submission]) -> None:
    """Every job is in one group; two are in the same one exactly if nothing that is judged differs."""
    jobs = [Job(str(number), content) for number, content in enumerate(contents)]
    groups = twins.twins(jobs)
    assert sorted(job.student for group in groups for job in group) == sorted(job.student for job in jobs)
    where = {job.student: number for number, group in enumerate(groups) for job in group}
    fields = ("answers", "missing", "review", "elsewhere")
    for one in jobs:
        for other in jobs:
            same = all(getattr(one.submission, name) == getattr(other.submission, name) for name in fields)
            assert (where[one.student] == where[other.student]) == same


def test_a_stored_result_of_other_content_is_nobodys(tmp_path: Path) -> None:
    """What was judged for one content is never given to another one."""
    content = Submission("kv_cache.ipynb", {"task": "a"})
    result = judged(Job("ada", content), [Outcome.PASSED])
    assert twins.result_of_twin(result, Job("bob", dataclasses.replace(content, answers={"task": "b"}))) is None
    assert twins.result_of_twin(result, Job("bob", None, "unreadable")) is None


def test_a_class_with_copies_is_judged_once_and_replayed(course: Course) -> None:
    """Three identical submissions and one of their own: two judgings, four results, each entered and each replayable."""
    wrong = "import random\ndef double(n): return random.random()"
    for student in ("abigail", "bob", "eve"):
        course.solve(student, double=wrong, helpers="")
    course.solve("tim")
    ran = course.grade("--plain")
    assert ran.code == 0, ran.said
    assert "4 graded now" in ran.said
    found = {file.parent.name: json.loads(file.read_bytes()) for file in course.results()}
    assert [found[student]["judged_with"] for student in ("abigail", "bob", "eve", "tim")] == [
        "",
        "abigail",
        "abigail",
        "",
    ]
    assert found["abigail"]["findings"] == found["bob"]["findings"] == found["eve"]["findings"]
    assert found["abigail"]["seed"] == found["bob"]["seed"] != found["tim"]["seed"]
    assert {student: course.total(student) for student in found} == {"abigail": 5, "bob": 5, "eve": 5, "tim": 10}
    page = (course.root / "autograded" / "eve" / "tiny" / "tiny.ipynb").read_text()
    assert "abigail" not in page, "students do not learn whose work theirs equals"
    again = course.autograder("replay", *map(str, course.results()))
    assert again.code == 0, again.said
    assert again.said.count("4 of 4 correctness findings reproduced") == 4
    assert "Nothing to do" in course.grade().said
    verified = course.autograder("verify", "tiny")
    assert verified.code == 0, verified.said
