"""A group-sequential exact test of a median ratio: from log ratios to a verdict, and from a verdict to points.

The data are looked at after 10, 20, 40, 80 and 160 pairs, d = ln(t_reference / t_candidate) each. At every look stands
the exact interval of the median of d; with `favour` = 0.025 and a threshold T the verdict is

    PASS  where the median is no more than 2.5 % below ln T and the interval excludes 5 % below it
    FAIL  where the median is more than 2.5 % below ln T and the interval excludes ln T
    else  more pairs; INCONCLUSIVE after the last look

So whoever meets T fails, and whoever is 5 % short passes, with a chance of at most alpha / 2 each time this is done,
whatever the distribution of the noise, if pairs are independent. What remains when they are not was simulated: README.md.

Not covered: taking the data (`gpu_env.paired`). Needs the standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from statistics import median

__all__ = ["Rule", "Verdict", "credit", "decide", "differs_from_itself", "interval"]

STEPS = 20
"""Partial credit comes in steps of 1/20."""
AA_LEVEL = 0.1
"""Level of the A/A interval: the first look has five A/A pairs, which cannot show anything at a smaller level than 1/16."""


class Verdict(StrEnum):
    """What a comparison can establish. INCONCLUSIVE and REVIEW withhold points, they never cost any."""

    PASS = "PASS"  # noqa: S105 (a verdict, no password)
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    """Too noisy to tell; measure again, perhaps elsewhere."""
    REVIEW = "REVIEW"
    """Faster than physics allows; a person must look."""


@dataclass(frozen=True)
class Rule:
    """How much is measured, and when it is enough. Differences are logarithmic: 0.025 is 2.5 %."""

    pairs: tuple[int, ...] = (10, 20, 40, 80, 160)
    """Numbers of pairs at which the data are looked at; even, increasing."""
    alpha: float = 0.02
    """Chance that the interval of any look misses the true median; each look has an equal share."""
    favour: float = 0.025
    """Doubt favours the student: verdicts turn this far below ln T; between ln T and twice as far below either is right."""
    block_s: float = 0.020
    """Shortest block in seconds; a round trip to a worker (about 40 us) is then 0.2 % of it."""
    processes: int = 5
    """Fresh processes of each side before each look: pairs of the same processes share what is peculiar to these."""
    noise: float = 0.03
    """By how much more the reference must be seen to differ from itself before the machine is called unfit."""
    floor_slack: float = 1.05
    """A time may lie below the physical floor by this factor, because the floor was measured too."""
    repeats: int = 1
    """How often an inconclusive comparison starts again."""

    def __post_init__(self) -> None:
        if not self.pairs or any(n % 2 for n in self.pairs) or list(self.pairs) != sorted(set(self.pairs)):
            raise ValueError(f"pairs must be even and increasing, not {self.pairs}")
        if not (0 < self.alpha < 1 and 0 < self.favour < math.inf and 0 < self.block_s < math.inf):
            raise ValueError("alpha must lie between 0 and 1; favour and block_s must be above 0")
        if not (self.processes >= 1 and self.noise > 0 and self.floor_slack >= 1 and self.repeats >= 0):
            raise ValueError("processes and floor_slack must be at least 1, noise above 0, repeats at least 0")
        if not rank(self.pairs[0], self.level):
            raise ValueError(
                f"{self.pairs[0]} pairs give no interval at level {self.level:g}; take more, or more alpha"
            )

    @property
    def level(self) -> float:
        """The share of `alpha` that one look has."""
        return self.alpha / len(self.pairs)

    @property
    def looks(self) -> tuple[tuple[int, int, int], ...]:
        """(pairs, rank of the interval's lower end, rank of its upper end) for each look; ranks count from 1."""
        return tuple((n, rank(n, self.level), n + 1 - rank(n, self.level)) for n in self.pairs)


@lru_cache(maxsize=256)
def rank(n: int, level: float) -> int:
    """The largest r for which order statistics r and n + 1 - r of n values miss their median with chance <= level.

    The chance is 2 P(Binomial(n, 1/2) < r), for any continuous distribution (David and Nagaraja, Order Statistics,
    section 7.1); computed in whole numbers. 0: not even the smallest and the largest value will do.
    """
    r, ways = 0, 1  # ways: outcomes of n coins with at most r heads
    while 2 * ways <= level * 2**n:
        r += 1
        ways += math.comb(n, r)
    return r


DEFAULT = Rule()


def interval(log_ratios: Sequence[float], level: float) -> tuple[float, float]:
    """The exact interval of the median at `level`; from -inf to inf where there are too few values for one.

    Raises ValueError if a log ratio is not finite.
    """
    if not all(map(math.isfinite, log_ratios)):
        raise ValueError("a log ratio is not finite: block times must be finite and above 0")
    r = rank(len(log_ratios), level)
    ordered = sorted(log_ratios)
    return (ordered[r - 1], ordered[-r]) if r else (-math.inf, math.inf)


def decide(
    log_ratios: Sequence[float], log_threshold: float, rule: Rule = DEFAULT, aa: Sequence[float] = ()
) -> Verdict | None:
    """The verdict at a look: PASS, FAIL, INCONCLUSIVE at the last look, or None: more pairs are needed.

    `aa` are log ratios of the reference against itself. Raises ValueError where there is no look at this number of
    pairs, or a log ratio is not finite.
    """
    if len(log_ratios) not in rule.pairs:
        raise ValueError(f"looks are at {rule.pairs} pairs, not at {len(log_ratios)}")
    low, high = interval(log_ratios, rule.level)
    turn = log_threshold - rule.favour
    if not differs_from_itself(aa, rule):
        if median(log_ratios) >= turn and low >= turn - rule.favour:
            return Verdict.PASS
        if median(log_ratios) < turn and high < turn + rule.favour:
            return Verdict.FAIL
    return Verdict.INCONCLUSIVE if len(log_ratios) == rule.pairs[-1] else None


def differs_from_itself(aa: Sequence[float], rule: Rule = DEFAULT) -> bool:
    """Whether A/A pairs show that equal work takes times that differ by more than `rule.noise`.

    Shown by their interval. A median beyond `rule.noise` alone says no more than that there are few pairs and much
    noise, which the interval of the real pairs knows better; what that rule would cost: README.md.
    """
    low, high = interval(aa, AA_LEVEL)
    return low > rule.noise or high < -rule.noise


def credit(ratio: float, naive: float, threshold: float, verdict: Verdict = Verdict.FAIL) -> float:
    """The share of a performance check's points: clip(ln(ratio / naive) / ln(threshold / naive)), rounded up to 5 %.

    `ratio` is the measured speed-up, `naive` the one that earns nothing. Exactly 1 with PASS, and at most 0.95 with
    FAIL: what was shown to be too slow never has all. Raises ValueError with the other verdicts, which withhold points,
    and unless 0 < naive < threshold.
    """
    if not (0 < naive < threshold < math.inf and 0 < ratio < math.inf):
        raise ValueError(f"need 0 < naive < threshold and 0 < ratio, not {naive=}, {threshold=}, {ratio=}")
    if verdict is Verdict.PASS:
        return 1.0
    if verdict is not Verdict.FAIL:
        raise ValueError(f"{verdict} says nothing about points; withhold them")
    share = math.log(ratio / naive) / math.log(threshold / naive)
    return min(max(math.ceil(share * STEPS - 1e-9), 0), STEPS - 1) / STEPS  # 1e-9: 3 / 4 must not become 16 / 20
