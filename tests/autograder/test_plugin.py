"""What students read about their exceptions."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from autograder.checks import CheckFailed, expect_close, expect_equal, expect_type
from autograder.judging.plugin import where

GIVEN = ("course", 59, "raise ValueError(text)")
MINE = ("speculative_generate", 12, "draft.run([])")


def test_an_exception_out_of_a_given_cell_shows_the_students_line() -> None:
    """The deepest line of the student's own cells comes first; the line of a given cell is told only where it ended there."""
    own = {"speculative_generate", "helpers"}
    text = "cell speculative_generate, line 12: draft.run([])"
    assert where((MINE, GIVEN), own) == f" ({text}; raised in the given cell course, line 59)"
    assert where((GIVEN, MINE), own) == where((("helpers", 1, "f()"), MINE), own) == f" ({text})"
    assert where((GIVEN,), own) == " (cell course, line 59: raise ValueError(text))"
    assert where((), own) == ""


@pytest.mark.parametrize("what", ["The names that f gives", "The name after f,"])
def test_what_is_wrong_is_told_in_any_number(what: str) -> None:
    """One form serves one thing and several, and a clause that ends in a comma."""
    told = []
    wrong: tuple[Callable[[], object], ...] = (
        lambda: expect_equal(1, 2, what),
        lambda: expect_close(1.0, 2.0, what),
        lambda: expect_equal(None, 2, what),
        lambda: expect_type(1, str, what),
    )
    for expect in wrong:
        with pytest.raises(CheckFailed) as caught:
            expect()
        told.append(caught.value.message.removeprefix(what.rstrip(",")))
    assert told == [": wrong value.", ": wrong value.", ": None. Is a `return` missing?", ": wrong type."]
