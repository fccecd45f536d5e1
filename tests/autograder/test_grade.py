"""The arithmetic of grades over arbitrary streams of findings: what earns nothing, what waits, what interferes."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autograder.finding import Finding, Outcome
from autograder.grade import WITHHOLDING, earned, outcome_counts, score
from autograder.spec import Assignment, Check, Task, Threshold

FAST = {"cpu": Threshold(2.0, 1.0, "measured: 3", "a machine")}
ASSIGNMENT = Assignment(
    name="sample",
    title="Sample",
    tasks=(
        Task("first", "First", 5, public={"test_a": 1, "test_b": 3}, hidden={"test_c": 2}),
        Task("second", "Second", 5, public={"test_d": 4}, hidden={"test_e": 7}, thresholds={"test_e": FAST}),
        Task("third", "Third", 5, public={"test_g": 2}, hidden={"test_f": 8}, thresholds={"test_f": FAST}),
    ),
)
CHECKS = {check.name: check for check in ASSIGNMENT.checks}
NAMES = [*CHECKS, "test_unknown", ""]
TASKS = [*(task.name for task in ASSIGNMENT), "elsewhere"]
credits = st.one_of(
    st.none(), st.floats(0, 1), st.floats(allow_nan=True), st.sampled_from([math.nan, math.inf, -1.0, 1.0000001, -0.0])
)


def finding(check: str, outcome: Outcome = Outcome.PASSED, **fields: Any) -> Finding:
    """A finding of `check` for the task that it belongs to."""
    task = CHECKS[check].task if check in CHECKS else "elsewhere"
    return Finding(**{"check": check, "task": task, "outcome": outcome, "hidden": False, "sentence": "", **fields})


@st.composite
def any_finding(draw: st.DrawFn) -> Finding:
    """A finding with anything in it, more often than not for the right task."""
    check = draw(st.sampled_from(NAMES))
    right = CHECKS[check].task if check in CHECKS else "elsewhere"
    return Finding(
        check=check,
        task=draw(st.sampled_from([right, right, right, *TASKS])),
        outcome=draw(st.sampled_from([Outcome.PASSED, *Outcome])),
        hidden=draw(st.booleans()),
        sentence=draw(st.text(max_size=5)),
        message=draw(st.text(max_size=5)),
        credit=draw(credits),
        measurements=draw(st.dictionaries(st.text(max_size=3), st.floats(), max_size=1)),
    )


streams = st.lists(any_finding(), max_size=12)


def points_by_task(stream: list[Finding]) -> dict[str, float]:
    return {task.task: task.points for task in score(ASSIGNMENT, stream).tasks}


def is_positive(one: Finding, check: Check) -> bool:
    """Whether a finding may carry points at all, written down independently of the code under test."""
    if one.task != check.task:
        return False
    if one.credit is None:
        return one.outcome is Outcome.PASSED
    return check.performance and one.outcome is Outcome.FAILED and 0 < one.credit < 1


@given(streams, st.lists(st.text(max_size=5), max_size=2))
def test_any_stream_gets_a_finite_score_within_the_maximum(stream: list[Finding], reasons: list[str]) -> None:
    """No stream of findings makes scoring raise, or give points below zero or above the maximum."""
    scored = score(ASSIGNMENT, iter(stream), reasons)
    assert [task.task for task in scored.tasks] == ["first", "second", "third"]
    assert scored.max_points == ASSIGNMENT.points == 27
    for task in scored.tasks:
        assert 0 <= task.points <= task.max_points == ASSIGNMENT.task(task.task).points
    assert scored.points == math.fsum(task.points for task in scored.tasks)
    assert set(reasons) <= set(scored.withheld)


@given(streams)
def test_points_need_exactly_one_positive_finding(stream: list[Finding]) -> None:
    """A task never gets more than the points of its checks that have one finding, a positive one."""
    for task in ASSIGNMENT:
        most = 0.0
        for check in task.checks:
            own = [one for one in stream if one.check == check.name]
            if len(own) == 1 and is_positive(own[0], check):
                most += check.points * (1 if own[0].credit is None else own[0].credit)
        assert points_by_task(stream)[task.name] == pytest.approx(most)


@given(streams)
def test_a_stream_without_a_reason_to_wait_names_every_check_once(stream: list[Finding]) -> None:
    """A grade that is not withheld rests on exactly one decided finding of each check, and on nothing else."""
    if not score(ASSIGNMENT, stream).withheld:
        assert sorted(one.check for one in stream) == sorted(CHECKS)
        assert not WITHHOLDING & {one.outcome for one in stream}


@given(st.data())
def test_complete_decided_findings_are_not_withheld(data: st.DataObject) -> None:
    """One finding of each check, each passed, failed or blocked, makes a grade that counts."""
    decided = st.sampled_from([Outcome.PASSED, Outcome.FAILED, Outcome.BLOCKED])
    outcomes = {name: data.draw(decided) for name in CHECKS}
    scored = score(ASSIGNMENT, [finding(name, outcome) for name, outcome in outcomes.items()])
    assert scored.withheld == ()
    assert scored.points == sum(CHECKS[name].points for name in CHECKS if outcomes[name] is Outcome.PASSED)


@given(streams, st.randoms(use_true_random=False))
def test_order_does_not_matter(stream: list[Finding], random: Any) -> None:
    """The same findings in another order give the same points."""
    shuffled = random.sample(stream, len(stream))
    assert points_by_task(shuffled) == points_by_task(stream)
    assert bool(score(ASSIGNMENT, shuffled).withheld) == bool(score(ASSIGNMENT, stream).withheld)


@given(streams, any_finding())
def test_a_further_finding_never_raises_the_points_of_another_check(stream: list[Finding], further: Finding) -> None:
    """Adding a finding can only change what its own check earns."""
    before, after = points_by_task(stream), points_by_task([*stream, further])
    for task in ASSIGNMENT:
        own = further.check in {check.name for check in task.checks}
        gain = CHECKS[further.check].points if own else 0
        assert after[task.name] <= before[task.name] + gain
        if not own:
            assert after[task.name] == before[task.name]


@given(streams, any_finding())
def test_a_second_finding_of_a_check_takes_its_points(stream: list[Finding], one: Finding) -> None:
    """Two findings of one check contradict each other, even if they are equal: no points, and the grade waits."""
    if one.check in CHECKS:
        doubled = [other for other in stream if other.check != one.check] + [one, one]
        without = [other for other in doubled if other.check != one.check]
        assert points_by_task(doubled) == points_by_task(without)
        assert any(one.check in reason and "2 findings" in reason for reason in score(ASSIGNMENT, doubled).withheld)


@pytest.mark.parametrize("outcome", sorted(WITHHOLDING))
@pytest.mark.parametrize("credit", [None, 1.0])
def test_undecided_outcomes_withhold(outcome: Outcome, credit: float | None) -> None:
    """BROKEN, SKIPPED, INCONCLUSIVE and REVIEW give no points and withhold the grade, whatever credit they claim."""
    rest = [finding(name) for name in CHECKS if name != "test_f"]
    scored = score(ASSIGNMENT, [*rest, finding("test_f", outcome, credit=credit, message="why")])
    assert scored.points == 19
    assert scored.withheld == (f"test_f: {outcome} (why)",)
    assert [bool(task.withheld) for task in scored.tasks] == [False, False, True]


@pytest.mark.parametrize("credit", [math.nan, math.inf, -math.inf, -0.1, 1.1])
def test_impossible_credit_earns_nothing_and_withholds(credit: float) -> None:
    """A credit that is no share between 0 and 1 is our mistake: no points, and the grade waits."""
    points, reason = earned(CHECKS["test_f"], [finding("test_f", credit=credit)])
    assert points == 0
    assert reason is not None
    assert repr(credit) in reason


@given(st.floats(0, 1, exclude_max=True))
def test_partial_credit_is_for_performance_checks_only(credit: float) -> None:
    """A performance check that failed earns its share; the same credit on another check earns nothing and withholds."""
    assert earned(CHECKS["test_e"], [finding("test_e", Outcome.FAILED, credit=credit)]) == (7 * credit, None)
    points, reason = earned(CHECKS["test_d"], [finding("test_d", Outcome.FAILED, credit=credit)])
    assert points == 0
    assert reason is not None


@given(st.floats(0, 1), st.sampled_from([Outcome.PASSED, Outcome.BLOCKED]))
def test_credit_goes_with_failing_only(credit: float, outcome: Outcome) -> None:
    """What passed has all its points and what was not run none: a share of them contradicts that, and withholds."""
    points, reason = earned(CHECKS["test_e"], [finding("test_e", outcome, credit=credit)])
    assert points == 0
    assert reason is not None


def test_what_failed_cannot_have_all_points() -> None:
    """Too slow is never worth as much as fast enough."""
    points, reason = earned(CHECKS["test_e"], [finding("test_e", Outcome.FAILED, credit=1.0)])
    assert points == 0
    assert reason is not None


def test_findings_of_unknown_checks_withhold_the_whole_grade() -> None:
    """A finding that no check of the assignment answers to earns nothing and is named as a reason."""
    scored = score(ASSIGNMENT, [*(finding(name) for name in CHECKS), finding("test_other")])
    assert scored.points == 27
    assert scored.withheld == ("a finding of an unknown check, 'test_other'",)


def test_a_finding_for_another_task_earns_nothing() -> None:
    """A finding that names the wrong task gives points to neither task."""
    stream = [finding(name) for name in CHECKS if name != "test_d"] + [finding("test_d", task="first")]
    assert points_by_task(stream) == {"first": 6, "second": 7, "third": 10}
    assert score(ASSIGNMENT, stream).withheld


def test_no_findings_are_no_grade() -> None:
    """Silence earns nothing, and is withheld once for each check rather than entered as zero."""
    scored = score(ASSIGNMENT, [])
    assert scored.points == 0
    assert len(scored.withheld) == len(CHECKS)


@given(streams)
def test_counts_of_outcomes_add_up(stream: list[Finding]) -> None:
    """Every finding is counted under its outcome once."""
    assert outcome_counts(stream).total() == len(stream)
