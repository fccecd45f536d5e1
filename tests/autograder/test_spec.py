"""What an assignment may consist of."""

from __future__ import annotations

import math

import pytest

from autograder.judging.remote import RunningSubmission
from autograder.spec import RESERVED, Assignment, SpecError, Task, Threshold

FAST = {"cpu": Threshold(2.0, 1.0, "measured: 3", "a machine")}


def test_names_that_a_running_submission_has_for_itself_are_reserved() -> None:
    """A task of such a name could never be called by a check."""
    running = RunningSubmission([], None)  # type: ignore[arg-type]
    own = {name for name in dir(running) if not name.startswith("_")}
    assert own == RESERVED
    with pytest.raises(SpecError, match="Choose another"):
        Task("describe", "Title", 1, {"test_a": 1})


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (lambda: Task("no identifier", "Title", 1, {"test_a": 1}), "not a Python identifier"),
        (lambda: Task("task", "Title", 1, {}), "no public check"),
        (lambda: Task("task", "Title", 1, {"test_a": 0}), "at least 1"),
        (lambda: Task("task", "Title", 1, {"test_a": True}), "at least 1"),
        (lambda: Task("task", "Title", 1, {"test_a": 1}, {"test_a": 1}), "both public and hidden"),
        (lambda: Task("task", "Title", 1, {"test_a": 1}, thresholds={"test_b": FAST}), "not among its hidden checks"),
        (lambda: Task("task", "Title", 1, {"test_a": 1}, thresholds={"test_a": FAST}), "not among its hidden checks"),
        (lambda: Task("task", "T", 1, {"x": 1}, {"y": 1}, thresholds={"y": {}}), "has thresholds for"),
        (lambda: Task("task", "T", 1, {"x": 1}, {"y": 1}, thresholds={"y": {"tpu": FAST["cpu"]}}), r"\['tpu'\]"),
        (lambda: Threshold(1.0, 1.0, "1", "x"), "0 < naive < ratio"),
        (lambda: Threshold(1.0, 2.0, "1", "x"), "0 < naive < ratio"),
        (lambda: Threshold(1.0, 0.0, "1", "x"), "0 < naive < ratio"),
        (lambda: Threshold(math.inf, 1.0, "1", "x"), "0 < naive < ratio"),
        (lambda: Threshold(math.nan, 1.0, "1", "x"), "0 < naive < ratio"),
        (lambda: Threshold(2.0, 1.0, "it seemed right", "x"), "must give figures"),
        (lambda: Threshold(2.0, 1.0, "measured: 3", " "), "on which machine"),
        (lambda: Assignment("a", "A", (Task("t", "T", 1, {"x": 1}), Task("u", "U", 1, {"x": 1}))), "more than once"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(task: object, words: str) -> None:
    """Each contradiction gets a sentence that names it."""
    with pytest.raises(SpecError, match=words):
        task()  # type: ignore[operator]


def test_a_check_with_thresholds_is_a_performance_check() -> None:
    """Every check carries its thresholds by tier; one without any is measured by nobody."""
    task = Task(
        "task", "T", 1, {"x": 1}, {"y": 1, "z": 2}, thresholds={"z": FAST | {"gpu": Threshold(9, 3, "9.1", "H100")}}
    )
    assert [(check.name, check.performance) for check in task.checks] == [("x", False), ("y", False), ("z", True)]
    assert task.checks[2].thresholds["gpu"].ratio == 9
