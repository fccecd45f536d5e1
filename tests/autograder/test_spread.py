"""Work of ours spread over forks: each item once, failures told, nothing cut off."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autograder.courses.spread import WorkFailed, spread

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")


@given(count=st.integers(0, 40), processes=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_each_number_is_answered_once(count: int, processes: int) -> None:
    """Whatever the numbers of items and processes, every item has its own answer, long ones too."""
    answers = dict(spread(count, lambda number: f"{number} é\n" * (number * 500), processes))
    assert answers == {number: f"{number} é\n" * (number * 500) for number in range(count)}


def test_several_work_at_once(tmp_path: Path) -> None:
    """Two items wait for each other, which only two processes can do."""

    def meet(number: int) -> str:
        (tmp_path / str(number)).touch()
        end = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        return f"{len(list(tmp_path.iterdir()))} of {os.getpid()}"

    met = dict(spread(2, meet, 2))
    assert all(each.startswith("2 of ") for each in met.values())
    assert len(set(met.values()) | {f"2 of {os.getpid()}"}) == 3


def test_a_failure_ends_the_work_with_its_text() -> None:
    """What an item raises in a fork is raised here, in words; without forks it is raised as it is."""

    def work(number: int) -> str:
        if number == 3:
            raise LookupError("three is missing")
        return "done"

    with pytest.raises(WorkFailed, match="three is missing"):
        list(spread(6, work, 2))
    with pytest.raises(LookupError):
        list(spread(6, work, 1))


def test_a_process_that_is_killed_is_no_silence() -> None:
    """A fork that ends in the middle of an item is told, and the others end."""

    def work(number: int) -> str:
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    with pytest.raises(WorkFailed, match="ended in the middle"):
        list(spread(9, work, 2))


def test_who_stops_early_gets_whole_items(tmp_path: Path) -> None:
    """After the first answer nothing new is begun, and what was begun is finished when the generator is closed."""

    def work(number: int) -> str:
        (tmp_path / f"{number}-begun").touch()
        time.sleep(0.2 * number)
        (tmp_path / f"{number}-ended").touch()
        return "done"

    with contextlib.closing(spread(20, work, 2)) as found:
        next(found)
    names = [file.name for file in tmp_path.iterdir()]
    begun = {name.partition("-")[0] for name in names if name.endswith("begun")}
    assert {name.partition("-")[0] for name in names if name.endswith("ended")} == begun
    assert 2 <= len(begun) <= 3
