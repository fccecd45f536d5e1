"""Everything that must not happen to a grade, tried and counted in one run.

    python tests/benchmarks/robustness.py [--quick] [--json] [--seed N]

Attacks and honest twins of them come from the corpus of kv_cache, graded among ordinary submissions, with secrets planted
around them (`autograder corpus`). Then the same submissions are graded again and again (`flips.py`), the wire gets inputs
that nobody would send (`fuzz_wire.py`), and a grading run is killed again and again (`kills.py`); each of these can be run
alone, and its head says what it does and what it does not cover.

All choices follow from the seed. `--quick` takes a part of everything, a minute on two cores, and says which part; it
leaves out the attacks of `SLOW`. Exit status 1 if anything happened. Linux with namespaces only: without walls no attack
is tried.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from flips import FlipFigures, regrade  # type: ignore[import-not-found]
from fuzz_wire import FuzzFigures, fuzz  # type: ignore[import-not-found]
from kills import KillFigures, survive  # type: ignore[import-not-found]
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autograder.authoring import corpus
from autograder.runs.progress import Steps
from autograder.runs.run import CorpusRun, grade_corpus

NAME = "kv_cache"
SLOW = ("endless_loop", "memory_bomb", "burns_every_core", "slows_the_baseline", "disk_bomb")
"""Attacks that take 5 to 20 s each, as they last until a limit."""


@dataclass(frozen=True)
class Extent:
    """How much is tried; `None`: all of the corpus."""

    attacks: int | None
    honest: int | None
    submissions: int
    regrades: int
    fuzz_s: float
    kills: int
    class_size: int


WHOLE = Extent(attacks=None, honest=None, submissions=20, regrades=100, fuzz_s=60.0, kills=100, class_size=60)
QUICK = Extent(attacks=8, honest=4, submissions=3, regrades=3, fuzz_s=3.0, kills=1, class_size=2)


@dataclass(frozen=True)
class Run:
    """What was tried and what came of it."""

    extent: Extent
    seed: int
    corpus: CorpusRun
    available: Counter[str]
    """How many submissions of each kind the corpus has."""
    flips: FlipFigures
    fuzz: FuzzFigures
    kills: KillFigures
    seconds: float

    @property
    def figures(self) -> dict[str, Any]:
        """All that is counted, for programs."""
        return self.corpus.figures | {
            "left_behind": len(self.corpus.left) + len(self.kills.left),
            "fuzz_inputs": self.fuzz.inputs,
            "fuzz_findings": len(self.fuzz.findings),
            "kills_tried": sum(self.kills.kills.values()),
            "kills_survived": self.kills.survived,
            "kill_differences": len(self.kills.differences),
            "regraded": len(self.flips.submissions),
            "regrades": self.flips.regrades,
            "verdict_flips": len(self.flips.flips),
            "seed": self.seed,
            "quick": self.extent is QUICK,
            "seconds": round(self.seconds, 1),
        }

    @property
    def complaints(self) -> list[str]:
        """All that happened and should not have."""
        found = [each for complaints in self.corpus.complaints.values() for each in complaints]
        found += [f"no wrong submission fails {check}" for check in self.corpus.unkilled]
        found += [f"a submission got hold of a secret: {place}" for place in self.corpus.canaries]
        found += [f"left behind: {what}" for what in (*self.corpus.left, *self.kills.left)]
        found += [f"flip: {flip}" for flip in self.flips.flips]
        found += [f"fuzzing {each.target}: {each.kind} {each.what} {each.data[:200]}" for each in self.fuzz.findings]
        return found + [f"after kills: {difference}" for difference in self.kills.differences]


def patterns(extent: Extent, chance: random.Random) -> list[str]:
    """What of the corpus to grade, as patterns of `grade_corpus`; an empty list for all of it."""
    if extent.attacks is None or extent.honest is None:
        return []
    entries = corpus.load(NAME)
    attacks = [entry.key for entry in entries if entry.kind == "hostile" and entry.name not in SLOW]
    honest = [entry.key for entry in entries if entry.kind == "honest"]
    return chance.sample(attacks, extent.attacks) + chance.sample(honest, extent.honest)


def run(extent: Extent, seed: int, console: Console) -> Run:
    """Try everything. Raises SandboxUnavailable."""
    began = time.monotonic()
    steps = Steps(console, plain=False)
    chance = random.Random(seed)
    only = patterns(extent, chance)
    graded = grade_corpus(NAME, isolation="sandbox", steps=steps, order=chance.getrandbits(32), only=only)
    flips = regrade(extent.submissions, extent.regrades, chance.getrandbits(32), steps)
    console.print(f"fuzzing for {extent.fuzz_s:g} s ...", highlight=False)
    fuzzed = fuzz(extent.fuzz_s, chance.getrandbits(31))
    console.print(f"killing {extent.kills} times ...", highlight=False)
    killed = survive(
        extent.kills,
        extent.class_size,
        chance.getrandbits(32),
        lambda line: console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True),
    )
    available = Counter(entry.kind for entry in corpus.load(NAME))
    return Run(extent, seed, graded, available, flips, fuzzed, killed, time.monotonic() - began)


def table(done: Run) -> Table:
    """The figures for people."""
    figures = done.figures
    made = Table(title=f"robustness of grading {NAME}, seed {done.seed}", title_justify="left")
    for column in ("", "tried", "amiss", "what is amiss"):
        made.add_column(column, justify="left" if column in ("", "what is amiss") else "right")
    part = done.extent is QUICK
    lost = figures["kills_tried"] - figures["kills_survived"]

    def of(count: int, whole: int) -> str:
        return f"{count:,} of {whole:,}" if part else f"{count:,}"

    for what, tried, amiss, meaning in (
        ("attacks", of(figures["attacks_tried"], done.available["hostile"]), "attacks_effective", "changed a grade"),
        ("secrets planted", str(figures["canaries_planted"]), "canaries_read", "read"),
        ("processes, files, sockets, mounts", "", "left_behind", "left behind"),
        ("honest twins", of(figures["honest_tried"], done.available["honest"]), "honest_punished", "lost a point"),
        ("inputs of the fuzzers", f"{figures['fuzz_inputs']:,}", "fuzz_findings", "a crash, a hang, an uncaught error"),
        (
            "kills of a grading run",
            of(figures["kills_tried"], WHOLE.kills),
            lost,
            "left a difference or something else",
        ),
        (
            f"gradings of each of {of(figures['regraded'], WHOLE.submissions)} submissions",
            of(figures["regrades"], WHOLE.regrades),
            "verdict_flips",
            "another verdict than usual",
        ),
    ):
        made.add_row(what, tried, str(figures[amiss] if isinstance(amiss, str) else amiss), meaning)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a part of everything, about a minute on two cores")
    parser.add_argument("--json", action="store_true", help="the figures as one object on the last line")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    arguments = parser.parse_args()
    console = Console()
    console.print(f"seed {arguments.seed}", highlight=False)
    done = run(QUICK if arguments.quick else WHOLE, arguments.seed, console)
    for complaint in done.complaints:
        console.print(f"[red]✗[/red] {escape(complaint)}", highlight=False, soft_wrap=True)
    console.print(table(done))
    fine = not done.complaints and done.figures["kills_survived"] == done.figures["kills_tried"]
    console.print(
        f"{'Nothing happened that must not' if fine else f'{len(done.complaints)} things happened that must not'}; "
        f"{done.seconds:.0f} s, isolation {done.corpus.isolation}, {done.fuzz.engine}",
        highlight=False,
        soft_wrap=True,
    )
    if arguments.json:
        print(json.dumps(done.figures))
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
