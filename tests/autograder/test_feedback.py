"""Findings as people read them: student text is shown, never interpreted; hidden checks show author text only."""

from __future__ import annotations

import html
import io
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from autograder.finding import Finding, Outcome
from autograder.grade import TaskScore, score
from autograder.pages import feedback
from autograder.pages.feedback import Row, rows
from autograder.results import Result
from autograder.spec import Assignment
from autograder.suite import load_assignment

ASSIGNMENT: Assignment = load_assignment("kv_cache")
TASK = ASSIGNMENT.tasks[0]
PUBLIC, HIDDEN = TASK.checks[0], next(check for check in TASK.checks if check.hidden)
HOSTILE = [
    "<script>alert(1)</script>",
    "</td></tr></table><h1>100 points</h1>",
    '" onmouseover="alert(1)" x="',
    "' style='display:none",
    "<!-- ",
    "]]>&lt;b&gt;",
    "{{ 7 * 7 }}{% for x in y %}",
    "<img src=x onerror=alert(1)>",
]
MARKUP = [
    "[red]x",
    "[/]",
    "[/red]",
    "[bold",
    "\\[red]",
    "x\\",
    ":bomb:",
    "[link=file:///etc/passwd]x[/link]",
    "[@click=quit]x[/]",
]


def finding(check: str = PUBLIC.name, outcome: Outcome = Outcome.FAILED, **fields: Any) -> Finding:
    hidden = next((each.hidden for each in TASK.checks if each.name == check), False)
    known: dict[str, Any] = {
        "check": check,
        "task": TASK.name,
        "outcome": outcome,
        "hidden": hidden,
        "sentence": "It works.",
    }
    return Finding.model_validate(known | fields)


def result(findings: list[Finding], **fields: Any) -> Result:
    known: dict[str, Any] = {
        "assignment": ASSIGNMENT.name,
        "student": "ada",
        "source": "kv_cache.ipynb",
        "submission_hash": "a" * 64,
        "submission_copy": "c" * 64,
        "suite_hash": "b" * 64,
        "release": "1",
        "framework": "0",
        "tier": "cpu",
        "seed": 7,
        "isolation": {"name": "namespaces", "level": 3, "walls": [], "refused": []},
        "machine": {},
        "models": {},
        "seconds": 1,
        "withheld": [],
        "remarks": [],
        "spec": ASSIGNMENT,
        "findings": findings,
    }
    return Result.model_validate(known | fields)


class _Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.comments = 0
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(sorted(name for name, _ in attrs))))

    def handle_comment(self, data: str) -> None:
        self.comments += 1

    def handle_data(self, data: str) -> None:
        self.text += data


def page(text: str) -> _Page:
    parser = _Page()
    parser.feed(text)
    parser.close()
    return parser


def page_of(text: str) -> _Page:
    """The page of a finding with `text` in every field that a submission can reach."""
    findings = [finding(message=text, value=text, expected=text, printed=text, hint=text, sentence=text)]
    task = TaskScore(TASK.name, 0, TASK.points)
    return page(feedback.task_html(result(findings, remarks=[text]), task))


HARMLESS = page_of("harmless")


def shown(title: str, made: list[Row], width: int = 200) -> str:
    """What a colour terminal is sent."""
    console = Console(
        file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor", legacy_windows=False
    )
    console.print(feedback.table(title, made))
    return str(console.file.getvalue())  # type: ignore[attr-defined]  # it is the StringIO


def plain(sent: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", sent)


class TestHtml:
    """The page."""

    @pytest.mark.parametrize("text", HOSTILE)
    def test_student_text_makes_no_markup(self, text: str) -> None:
        """Script tags, attributes, comments and templates appear as text, in a page of unchanged structure."""
        found = page_of(text)
        assert (found.tags, found.comments) == (HARMLESS.tags, HARMLESS.comments)
        assert found.text.count(text) == HARMLESS.text.count("harmless") == 7

    @given(st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1))
    def test_any_student_text_leaves_the_structure_alone(self, text: str) -> None:
        """No text at all changes the tags of the page."""
        assert page_of(text).tags == HARMLESS.tags

    def test_remarks_on_self_checks_are_escaped(self) -> None:
        """The fragment for notebooks escapes like the page."""
        made = feedback.findings_html(TaskScore("<b>", 0, 1), [], ["<b>"], "<b>")
        assert "<b>" not in made
        assert html.escape("<b>") in made

    def test_points_and_outcomes_are_told_without_colour(self) -> None:
        """Each outcome is a word and a mark, so that nobody has to see the colour."""
        made = feedback.task_html(
            result([finding(outcome=Outcome.PASSED), finding(TASK.checks[1].name, outcome=Outcome.BLOCKED)]),
            TaskScore(TASK.name, 1.5, TASK.points),
        )
        assert f"{TASK.name}: 1.5 of {TASK.points} points" in page(made).text
        assert "✓ PASSED" in page(made).text
        assert "– BLOCKED" in page(made).text


class TestTerminal:
    """The table."""

    @pytest.mark.parametrize("text", MARKUP)
    def test_markup_in_student_text_is_shown_as_it_is(self, text: str) -> None:
        """Rich's markup, links and emoji names neither crash the table nor take effect."""
        stream = [finding(message=text, value=text, expected=text, printed=text, hint=text, sentence=text)]
        made = rows(ASSIGNMENT, stream)
        sent = shown(text, made)
        assert plain(sent).count(text) == 7
        assert "\x1b]8" not in sent
        assert "\N{BOMB}" not in sent

    @given(st.text())
    def test_no_student_text_commands_the_terminal(self, text: str) -> None:
        """Escape sequences, bells, carriage returns and reordering characters never reach the terminal."""
        sent = plain(shown("title", rows(ASSIGNMENT, [finding(message=text, value="\x1b]0;title\x07" + text)])))
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", sent)
        sent.encode()

    def test_long_values_are_folded_not_cut(self) -> None:
        """A narrow terminal shows the whole value."""
        value = "".join(str(number % 10) for number in range(300))
        sent = plain(shown("title", rows(ASSIGNMENT, [finding(value=value)]), width=60))
        assert value in re.sub(r"[^0-9]", "", sent.split("your value:")[1])


class TestRows:
    """What is shown of which finding."""

    @pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.PASSED])
    def test_hidden_checks_show_author_text_only(self, outcome: Outcome) -> None:
        """Sentence and hint are the author's; message, value, expected and prints could tell the hidden input."""
        secret = finding(
            HIDDEN.name,
            outcome,
            message="secret1",
            value="secret2",
            expected="secret3",
            printed="secret4",
            hint="Look at GQA.",
        )
        made = rows(ASSIGNMENT, [secret])
        assert made[0].details == (("next:", "Look at GQA."),)
        text = feedback.task_html(result([secret]), TaskScore(TASK.name, 0, TASK.points)) + shown("title", made)
        assert "It works." in text
        assert "Look at GQA." in text
        assert "secret" not in text

    def test_public_checks_show_everything(self) -> None:
        """Message, value, expected, prints and hint, in this order."""
        (row,) = rows(ASSIGNMENT, [finding(message="m", value="v", expected="e", printed="p", hint="h")])
        labels = ("what happened:", "your value:", "expected:", "printed:", "next:")
        assert row.details == tuple(zip(labels, "mveph", strict=True))

    @pytest.mark.parametrize("outcome", [Outcome.PASSED, Outcome.FAILED])
    def test_figures_beside_a_verdict_are_shown(self, outcome: Outcome) -> None:
        """What a check measured without resting on it is the judge's word: shown of hidden checks and of passed ones."""
        figures = {"held_mb": 220.177408, "tokens_per_s": 7.0}
        (row,) = rows(ASSIGNMENT, [finding(HIDDEN.name, outcome, measurements=figures)])
        assert row.details == (("measured:", "held_mb 220.2, tokens_per_s 7"),)

    def test_failed_rows_come_first(self) -> None:
        """What is to be mended stands on top; within the groups the order of the assignment stays."""
        outcomes = [Outcome.PASSED, Outcome.FAILED, Outcome.PASSED, Outcome.BROKEN, Outcome.PASSED, Outcome.BLOCKED]
        stream = [finding(check.name, outcome) for check, outcome in zip(TASK.checks, outcomes, strict=True)]
        made = rows(ASSIGNMENT, stream)
        assert [row.outcome for row in made] == [Outcome.FAILED, Outcome.BROKEN, Outcome.BLOCKED, *[Outcome.PASSED] * 3]

    def test_other_tasks_and_unknown_checks_are_left_out(self) -> None:
        """A row needs a check of the assignment and, where one is asked for, of the task."""
        stream = [finding(), finding("test_unknown"), finding("test_cache_paged", task="kv_cache_bytes")]
        assert len(rows(ASSIGNMENT, stream)) == 2
        assert len(rows(ASSIGNMENT, stream, TASK.name)) == 1

    @given(
        st.lists(
            st.builds(
                finding,
                st.sampled_from([check.name for check in TASK.checks]),
                st.sampled_from(Outcome),
                credit=st.none() | st.floats(),
                task=st.sampled_from([TASK.name, "elsewhere"]),
            ),
            max_size=8,
        )
    )
    def test_rows_show_the_points_that_are_given(self, stream: list[Finding]) -> None:
        """The points of the rows add up to those of the task: display and grade use one arithmetic."""
        given_points = score(ASSIGNMENT, stream).tasks[0].points
        assert sum(row.earned for row in rows(ASSIGNMENT, stream, TASK.name)) == pytest.approx(given_points)


@pytest.mark.parametrize(("points", "text"), [(3.0, "3"), (2.5, "2.5"), (0.0, "0"), (1 / 3, "0.333333")])
def test_points_are_told_without_needless_digits(points: float, text: str) -> None:
    """Whole points have no fraction."""
    assert feedback.points_text(points) == text
