"""Mutation of the reference: does some check notice when one operator, number or keyword of it is another?

The mutants are cosmic-ray's, of its operators those that a student's slip resembles. What survives is a hole in the suite or
equivalent to the reference; the equivalent ones stand in `tests/submissions/<assignment>/equivalent.txt`, each with its
reason, as lines of the form

    task: original line -> mutated line  # reason

Covered: every task cell of the reference, each mutant judged by the checks of its own task.
Not covered: the cell of helpers, text in strings, deleted statements; mutants that only a later task's checks would notice.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from autograder import suite, temporary
from autograder.authoring import corpus
from autograder.errors import AutograderError
from autograder.finding import Outcome
from autograder.grade import Graded
from autograder.runs.grading import Grader, Job
from autograder.runs.progress import Steps
from autograder.sandboxing.sandbox import Sandbox

__all__ = ["Mutant", "MutationRun", "mutants", "run_mutants"]

SWAPS = {
    "Comparison": (
        "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt", "Eq_NotEq", "NotEq_Eq",
        "Is_IsNot", "IsNot_Is",
    ),
    "Binary": (
        "Add_Sub", "Sub_Add", "Mul_FloorDiv", "Mul_Add", "Div_Mul", "Div_FloorDiv", "FloorDiv_Mul", "FloorDiv_Div",
        "Mod_FloorDiv", "Pow_Mul", "LShift_RShift", "RShift_LShift", "BitAnd_BitOr", "BitOr_BitAnd", "BitXor_BitAnd",
    ),
}  # fmt: skip
OTHERS = (
    "NumberReplacer", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd", "AddNot",
    "ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop", "ExceptionReplacer",
    "RemoveDecorator", "ReplaceUnaryOperator_USub_UAdd", "ReplaceUnaryOperator_Delete_Not",
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """The reference's cell of one task with one change. `before` and `after` are the lines that differ."""

    task: str
    source: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.task}: {self.before} -> {self.after}"


@dataclass(frozen=True)
class MutationRun:
    """How a suite did. `survivors` were noticed by no check and are not known to be equivalent."""

    tried: int
    equivalent: int
    survivors: tuple[Mutant, ...]
    ungraded: tuple[str, ...]
    """Mutants that got no verdict: our fault, or the machine's."""

    @property
    def killed(self) -> int:
        return self.tried - self.equivalent - len(self.survivors) - len(self.ungraded)


def mutants(name: str) -> list[Mutant]:
    """All mutants of the reference of `name`, in the order of its tasks, none twice. Needs cosmic-ray (extra `dev`)."""
    answers = corpus.reference(name).answers
    found: dict[str, Mutant] = {}
    for task in suite.load_assignment(name):
        for source in _mutate(answers[task.name]):
            before, after = _difference(answers[task.name], source)
            made = Mutant(task.name, source, before, after)
            found.setdefault(source, made)
    return list(found.values())


def run_mutants(
    name: str, sandbox: Sandbox, steps: Steps, *, workers: int, most: int | None = None, seed: int = 0
) -> MutationRun:
    """Judge the mutants of the reference; only `most` of them, drawn with `seed`, if that is given."""
    loaded = suite.load(name)
    every = mutants(name)
    known = _equivalent(name, {str(mutant) for mutant in every})
    chosen = every if most is None or most >= len(every) else random.Random(seed).sample(every, most)
    equivalent = [mutant for mutant in chosen if str(mutant) in known]
    tried = {f"mutant-{number}": mutant for number, mutant in enumerate(chosen) if str(mutant) not in known}
    reference = corpus.reference(name)
    survivors, ungraded = [], []

    def job(key: str, mutant: Mutant) -> Job:
        entry = corpus.Entry("wrong", key, "", frozenset(), {**reference.answers, mutant.task: mutant.source})
        return Job(key, entry.submission(loaded.manifest), only=mutant.task)

    with (
        temporary.folder("autograder-mutants-") as folder,
        steps.step(f"judging mutants of {name}", len(tried)) as progress,
    ):
        grader = Grader(loaded, sandbox, folder, workers=workers)
        grader.warm_up()
        progress.activities = grader.activities
        grader.watch(progress.tick)

        def done(each: Graded) -> None:
            mutant = tried[each.student]
            outcomes = [finding.outcome for finding in each.result.findings] if each.result else []
            if Outcome.FAILED in outcomes:
                state = "killed"
            elif outcomes and set(outcomes) == {Outcome.PASSED}:
                survivors.append(mutant)
                state = "SURVIVED"
            else:
                ungraded.append(f"{mutant}: {each.problem or 'withheld'}")
                state = "no verdict"
            progress.advance(f"{state} {mutant}")

        grader.grade([job(key, mutant) for key, mutant in tried.items()], done)
    return MutationRun(len(chosen), len(equivalent), tuple(survivors), tuple(ungraded))


def _mutate(source: str) -> Iterator[str]:
    """`source` with each single change that there is."""
    try:
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator
    except ImportError:
        raise AutograderError(
            "Mutants are made by cosmic-ray, which is not installed: pip install 'inference-autograder[dev]'."
        ) from None
    names = [f"Replace{kind}Operator_{swap}" for kind, swaps in SWAPS.items() for swap in swaps]
    for name in (*names, *OTHERS):
        operator = get_operator(f"core/{name}")()
        for occurrence in range(10_000):
            mutated = mutate_code(source, operator, occurrence)
            if mutated is None:
                break
            if mutated != source and _compiles(mutated):
                yield mutated


def _compiles(source: str) -> bool:
    with contextlib.suppress(SyntaxError, ValueError):
        compile(source, "<mutant>", "exec")
        return True
    return False


def _difference(before: str, after: str) -> tuple[str, str]:
    """The first lines that differ, without blank space around them."""
    ours, theirs = before.splitlines(), after.splitlines()
    for one, other in zip(ours, theirs, strict=False):
        if one != other:
            return one.strip(), other.strip()
    return "(end)", "(end)"


def _equivalent(name: str, known: set[str]) -> set[str]:
    """Mutants that are known to be equivalent. Raises `AutograderError` for a line without reason or without mutant."""
    path = suite.repository() / "tests" / "submissions" / name / "equivalent.txt"
    if not path.is_file():
        return set()
    found: set[str] = set()
    complaints: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        text, mark, reason = line.rpartition("  # ")
        if not (mark and reason.strip()):
            complaints.append(f"no reason (two spaces, #): {line}")
        elif text not in known:
            complaints.append(f"no such mutant any more: {text}")
        found.add(text)
    if complaints:
        raise AutograderError(f"{path.name} of {name}:\n" + "\n".join(complaints))
    return found
