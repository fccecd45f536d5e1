"""Mutants of the reference: made without repetition, judged for real, and excused only with a reason."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest
from rich.console import Console

from autograder import suite
from autograder.authoring import corpus, mutation
from autograder.authoring.mutation import Mutant
from autograder.errors import AutograderError
from autograder.runs.progress import Steps
from autograder.sandboxing.sandbox import ProcessSandbox

NAME, TASK = "kv_cache", "kv_bytes_per_token"


@pytest.fixture(scope="module")
def every() -> list[Mutant]:
    return mutation.mutants(NAME)


@pytest.fixture
def excuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the list of equivalent mutants would stand in an otherwise empty repository."""
    monkeypatch.setattr(suite, "repository", lambda: tmp_path)
    path = tmp_path / "tests" / "submissions" / NAME / "equivalent.txt"
    path.parent.mkdir(parents=True)
    return path


def test_every_mutant_is_another_program_that_compiles(every: list[Mutant]) -> None:
    """No mutant is made twice, none is the reference itself, and each is valid Python."""
    sources = [mutant.source for mutant in every]
    assert len(set(sources)) == len(sources)
    assert not set(sources) & set(corpus.reference(NAME).answers.values())
    for source in sources:
        ast.parse(source)


def test_every_task_has_mutants_of_several_kinds(every: list[Mutant]) -> None:
    """Numbers, operators and comparisons of each task are changed, one at a time."""
    for task in suite.load_assignment(NAME):
        assert sum(mutant.task == task.name for mutant in every) > 10
    shown = [str(mutant) for mutant in every]
    assert any("continue -> break" in text for text in shown)
    assert any(" -= 1 -> " in text for text in shown)


def test_a_mutant_that_behaves_like_the_reference_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant that no check notices is told by name; one that a check notices counts as killed."""
    source = corpus.reference(NAME).answers[TASK]
    same = Mutant(TASK, source + "\n# the same\n", "(end)", "# the same")
    wrong = Mutant(TASK, source + f"\ndef {TASK}(*args, **kwargs): return 1\n", "(end)", "return 1")
    monkeypatch.setattr(mutation, "mutants", lambda name: [same, wrong])
    monkeypatch.setattr(mutation, "_equivalent", lambda name, known: set())
    steps = Steps(Console(file=io.StringIO()), plain=True)
    with ProcessSandbox() as sandbox:
        run = mutation.run_mutants(NAME, sandbox, steps, workers=2)
    assert run.survivors == (same,)
    assert (run.tried, run.killed, run.equivalent, run.ungraded) == (2, 1, 0, ())


def test_an_equivalent_mutant_is_excused_with_a_reason(excuses: Path) -> None:
    """A line with mutant and reason excuses exactly that mutant."""
    excuses.write_text("a_task: x -> y  # both are the same number\n\n")
    assert mutation._equivalent(NAME, {"a_task: x -> y", "other"}) == {"a_task: x -> y"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a_task: x -> y", "no reason"),
        ("a_task: x -> y  # ", "no reason"),
        ("a_task: gone -> y  # both are the same number", "no such mutant any more"),
    ],
)
def test_an_excuse_without_reason_or_mutant_is_an_error(excuses: Path, line: str, says: str) -> None:
    """The list of excuses cannot grow stale, and says why for each."""
    excuses.write_text(line + "\n")
    with pytest.raises(AutograderError, match=says):
        mutation._equivalent(NAME, {"a_task: x -> y"})


def test_no_list_excuses_nothing(excuses: Path) -> None:
    """Without the file every survivor counts."""
    assert not excuses.exists()
    assert mutation._equivalent(NAME, {"a_task: x -> y"}) == set()


@pytest.mark.parametrize("name", suite.names())
def test_the_excuses_of_every_assignment_are_up_to_date(name: str) -> None:
    """Each line names a mutant that the reference of today has."""
    mutation._equivalent(name, {str(mutant) for mutant in mutation.mutants(name)})
