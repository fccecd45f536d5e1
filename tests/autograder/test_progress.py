"""Progress of long commands: what a terminal shows while a class is graded, and what a log gets."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from autograder.finding import Finding, Outcome
from autograder.runs import progress
from autograder.runs.progress import Activity, Steps

if TYPE_CHECKING:
    from conftest import Course

SLOW = "import time\ndef double(n):\n    time.sleep(1.0)\n    return n + n"


def finding(check: str, outcome: Outcome, seconds: float) -> Finding:
    """What one check established."""
    return Finding(check=check, task="task", outcome=outcome, hidden=False, sentence="", seconds=seconds)


def steps(*, plain: bool, height: int = 25) -> tuple[Steps, io.StringIO]:
    """Steps on a screen, and what they write."""
    screen = io.StringIO()
    console = Console(file=screen, width=100, height=height, force_terminal=not plain, no_color=True)
    return Steps(console, plain=plain), screen


FINDINGS = [finding("test_a", Outcome.PASSED, 0.5), finding("test_b", Outcome.FAILED, 2.34)]
SUMMARY = "checks: 1 PASSED, 1 FAILED; slowest: test_b, 2.3 s (ada)"


def test_a_log_has_a_line_per_item_and_a_summary() -> None:
    """Without a terminal each item is a line; at the end stand the counts per outcome and the slowest check."""
    made, screen = steps(plain=True)
    with made.step("grading", 2) as step:
        step.advance("ada: 1/2", FINDINGS, "ada")
        step.tick()
        step.advance("bob: withheld")
    said = screen.getvalue().splitlines()
    assert said[:3] == ["grading ...", "  1/2 ada: 1/2", "  2/2 bob: withheld"]
    assert re.fullmatch(r"grading: 2 in \d+\.\d s", said[3])
    assert said[4:] == [f"  {SUMMARY}"]


def test_a_log_tells_from_time_to_time_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while a log gets the time left and what each worker does, once per while."""
    monkeypatch.setattr(progress, "LOG_S", 0.05)
    made, screen = steps(plain=True)
    with made.step("grading", 3) as step:
        step.activities = lambda: [Activity("1", "bob", "test_b", 3.2)]
        step.advance("ada: 1/2", FINDINGS, "ada")
        time.sleep(0.06)
        step.tick()
        step.tick()
    told = [line for line in screen.getvalue().splitlines() if line.startswith("  -- ")]
    assert re.fullmatch(r"  -- 1/3 after \d+ s; about \d+ s left; " + re.escape(SUMMARY), told[0])
    assert told[1:] == ["  -- 1: bob, 3 s, test_b"]


def test_a_step_that_was_stopped_says_how_far_it_came() -> None:
    """The number of items done is not the number that there were."""
    made, screen = steps(plain=True)
    with made.step("grading", 3) as step:
        step.advance("ada")
    assert "grading: 1 of 3 in " in screen.getvalue()


def test_a_terminal_shows_as_many_workers_as_it_has_lines_for() -> None:
    """What does not fit is counted; nothing that a student named their folder reaches the terminal as a command."""
    made, screen = steps(plain=False, height=6)
    with made.step("grading", 3) as step:
        step.activities = lambda: [Activity(str(number), "\x1b[31mred", "test_a", 1.0) for number in range(5)]
        made.progress.refresh()
        shown = screen.getvalue()
    assert "0: \N{REPLACEMENT CHARACTER}[31mred, 1 s, test_a" in shown
    assert "and 3 more at work" in shown
    assert "\x1b[31m" not in shown


def test_the_live_view_of_a_real_run(course: Course) -> None:
    """On a terminal one sees counts, the slowest check, who is judged and which check runs; Ctrl-C says how to go on."""
    for number in range(6):
        course.solve(f"student{number}", double=SLOW)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "autograder", "grade", "tiny", "--no-import", "--workers", "2"]
    course.output = theirs
    process = course.start(*command, COLUMNS="110", LINES="30", TERM="xterm")
    os.close(theirs)
    said, asked, end = "", False, time.monotonic() + 120
    while select.select([ours], [], [], max(0.0, end - time.monotonic()))[0]:
        try:
            said += os.read(ours, 1 << 16).decode(errors="replace")
        except OSError:  # the other end is closed
            break
        if not asked and "slowest: " in said:
            asked = True
            process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, said
    os.close(ours)
    assert re.search(r"\d+/6", said)
    assert re.search(r"checks: \d+ PASSED; slowest: test_double\w*, \d\.\d s \(student\d\)", said)
    assert re.search(r"1: student\d, \d+ s, test_", said)
    assert "2: student" in said
    assert "Either way the same command goes on from there." in said
    assert re.search(r"grading tiny: \d of 6 in", said)
    assert re.search(r"Stopped; \d submissions wait to be graded", said)
