"""How often a verdict depends on luck: the same submissions graded again and again, each time with other hidden inputs.

    python tests/benchmarks/flips.py [--regrades 100] [--submissions 20] [--seed N] [--json]
    python tests/benchmarks/flips.py --assignment quantization --only right-reference right-plain_loops --regrades 50

Right, wrong and honest-looking submissions, of kv_cache and chosen by the seed where nothing else is said, are graded in
random order, two or more at the same time where there are cores for it. A flip is an outcome of a check, or a total, that
is not the one which the same submission has in most of its gradings. There must be none: who fails, fails for a reason, and
always.

Submissions and hidden seeds follow from the seed; which one runs beside which does not.
Not covered: attacks (`autograder corpus`), submissions that fail by a time limit (`SLOW`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

import autograder.cli  # noqa: F401 - sets an environment in which judges can be forked, before torch is imported
from autograder import suite
from autograder.authoring import corpus
from autograder.grade import Graded
from autograder.runs import run
from autograder.runs.grading import Grader, Job
from autograder.runs.progress import Steps
from autograder.sandboxing.isolation import LEVELS

__all__ = ["FlipFigures", "regrade"]

NAME = "kv_cache"
SHARES = {"right": 0.2, "wrong": 0.5, "honest": 0.3}
SLOW = "test_length_of_huge_limit"
"""Who fails this check waits for time limits."""
Verdict = dict[str, str]
"""Check → outcome; "total" → points, or why there are none."""


@dataclass(frozen=True)
class FlipFigures:
    """What was graded and what came of it."""

    seed: int
    submissions: tuple[str, ...]
    regrades: int
    """Of each submission."""
    flips: tuple[str, ...]
    isolation: str
    seconds: float


def chosen(name: str, only: Sequence[str], count: int, chance: random.Random) -> list[corpus.Entry]:
    """`count` submissions of the corpus, mixed as `SHARES` says, or those of `only`. ValueError: there is none such."""
    entries = [entry for entry in corpus.load(name) if SLOW not in entry.fails]
    if only:
        known = {entry.key: entry for entry in entries}
        if strangers := [key for key in only if key not in known]:
            raise ValueError(f"The corpus of {name} has no {', '.join(strangers)}; it has {', '.join(known)}.")
        return [known[key] for key in only]
    picked: list[corpus.Entry] = []
    for kind, share in SHARES.items():
        group = [entry for entry in entries if entry.kind == kind]
        picked += chance.sample(group, min(len(group), max(1, round(share * count))))
    rest = [entry for entry in entries if entry.kind in SHARES and entry not in picked]
    return (picked + chance.sample(rest, max(0, count - len(picked))))[:count]


def regrade(
    submissions: int, regrades: int, seed: int, steps: Steps, name: str = NAME, only: Sequence[str] = ()
) -> FlipFigures:
    """Grade each of `submissions` of them, or all of `only`, `regrades` times, and compare. Raises SandboxUnavailable."""
    began = time.monotonic()
    chance = random.Random(seed)
    loaded = suite.load(name)
    entries = chosen(name, only, submissions, chance)
    jobs = [
        Job(entry.key, entry.submission(loaded.manifest), seed=chance.getrandbits(63))
        for entry in entries
        for _ in range(regrades)
    ]
    chance.shuffle(jobs)
    found: dict[str, list[tuple[Verdict, int]]] = defaultdict(list)
    with (
        tempfile.TemporaryDirectory(prefix="flips-") as folder,
        run.sandbox_for(loaded, LEVELS["sandbox"]) as sandbox,
    ):
        grader = Grader(loaded, sandbox, Path(folder))
        grader.warm_up()
        with steps.step(f"grading {len(entries)} submissions {regrades} times", len(jobs)) as progress:

            def done(each: Graded) -> None:
                found[each.student].append((verdict(each), each.result.seed if each.result else 0))
                progress.advance(f"{each.student}: {found[each.student][-1][0]['total']}")

            grader.grade(jobs, done)
        isolation = f"{sandbox.isolation.name} (level {sandbox.isolation.level})"
    flips = [flip for name, verdicts in sorted(found.items()) for flip in flips_of(name, verdicts)]
    flips += [f"{entry.key}: was not graded {regrades} times" for entry in entries if len(found[entry.key]) != regrades]
    return FlipFigures(
        seed=seed,
        submissions=tuple(sorted(found)),
        regrades=regrades,
        flips=tuple(flips),
        isolation=isolation,
        seconds=round(time.monotonic() - began, 1),
    )


def verdict(graded: Graded) -> Verdict:
    """All that must be the same whenever this submission is graded."""
    if graded.result is None or graded.score is None:
        return {"total": f"none: {graded.problem}"}
    total = f"withheld: {graded.score.withheld}" if graded.score.withheld else f"{graded.score.points:g}"
    return {finding.check: finding.outcome.value for finding in graded.result.findings} | {"total": total}


def flips_of(name: str, verdicts: list[tuple[Verdict, int]]) -> list[str]:
    """What is otherwise in one of the gradings than in most, with the hidden seed of that one."""
    flips = []
    for what in sorted({what for each, _ in verdicts for what in each}):
        usual, _ = Counter(each.get(what, "missing") for each, _ in verdicts).most_common(1)[0]
        for each, seed in verdicts:
            if (other := each.get(what, "missing")) != usual:
                flips.append(f"{name}: {what} is {other}, not {usual}, with the hidden seed {seed}")
    return flips


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--regrades", type=int, default=100, help="of each submission")
    parser.add_argument("--submissions", type=int, default=20)
    parser.add_argument("--assignment", default=NAME)
    parser.add_argument("--only", nargs="+", default=(), metavar="KEY", help="these of its corpus, as right-reference")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--json", action="store_true", help="the figures as one object on the last line")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    steps = Steps(Console(), plain=False)
    figures = regrade(
        arguments.submissions, arguments.regrades, arguments.seed, steps, arguments.assignment, arguments.only
    )
    for flip in figures.flips:
        print(f"! {flip}")
    print(
        f"{len(figures.flips)} flips in {figures.regrades} gradings of {len(figures.submissions)} submissions, "
        f"{figures.seconds:.0f} s, isolation {figures.isolation}"
    )
    if arguments.json:
        print(json.dumps(dataclasses.asdict(figures)))
    sys.exit(bool(figures.flips))


if __name__ == "__main__":
    main()
