"""What an assignment may consist of."""

from __future__ import annotations

import pytest

from autograder.remote import RunningSubmission
from autograder.spec import RESERVED, Assignment, SpecError, Task


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
        (lambda: Task("task", "Title", 1, {"test_a": 1}, performance=frozenset({"test_b"})), "not among its checks"),
        (lambda: Assignment("a", "A", (Task("t", "T", 1, {"x": 1}), Task("u", "U", 1, {"x": 1}))), "more than once"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(task: object, words: str) -> None:
    """Each contradiction gets a sentence that names it."""
    with pytest.raises(SpecError, match=words):
        task()  # type: ignore[operator]
