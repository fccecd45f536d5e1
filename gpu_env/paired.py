"""Whether a candidate is fast enough: two implementations on one machine, timed in turn until the answer is clear.

    result = compare(reference, candidate, threshold=1.5, rng=random.Random(seed))
    result.verdict, result.ratio, result.reason

A block is a number of calls that lasts at least 20 ms. Pairs of blocks, one of each side, are taken in balanced random
order, the other side paused, in fresh processes again and again; `gpu_env.sequential` looks at their log ratios after
10, 20, 40, 80 and 160 pairs. Where the candidate went first, the reference is timed a second time: if it is slower
right after the candidate than after itself, the machine is unfit or the candidate's work outlasts its own block (A/A).

Each side has a number of calls of its own that fills a block. With the same number, the slower side of a pair that
differs 100-fold would need two seconds a block, and the fixed cost of a block would pull every ratio towards 1; with
blocks of the same length that cost is the same share of both sides and cancels.

Not covered: starting, confining, pausing and feeding the processes (the caller's `Side`), whether outputs are right,
clocks and throttling of GPUs, a candidate that slows the reference all the time, and calls of more than about half a
second, for which `time_s` has to grow.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Protocol

from gpu_env.sequential import AA_LEVEL, DEFAULT, Rule, Verdict, credit, decide, differs_from_itself, interval

__all__ = ["Measurement", "Pair", "Rule", "Side", "Verdict", "compare", "credit", "decide", "interval"]

MAX_CALLS = 2**20
"""No block is filled with more calls: an implementation that takes no time must not ask for endless inputs."""
MANY_CALLS = 2**15
"""A block has no more than this only to be as long as one of the other side."""
CHOICES = 32
"""Numbers of calls that are looked at, to have blocks of both sides equally long."""


class Side(Protocol):
    """One implementation. Whatever a method raises ends the comparison and reaches the caller of `compare`."""

    def time_block(self, calls: int) -> float:
        """Seconds, by the caller's clock, that `calls` calls took, each with inputs it has not seen; above 0."""

    def pause(self) -> None:
        """Stop the process and everything it started, and return when it stands still. `resume` always follows."""

    def resume(self) -> None:
        """Let it run again."""

    def fresh(self) -> None:
        """Put a new, running process in the place of the one there is, if any. Comes before the first block."""


@dataclass(frozen=True)
class Pair:
    """One pair of blocks, in seconds per call. `again_s`: the reference once more, right after itself."""

    reference_s: float
    candidate_s: float
    again_s: float | None
    process: int

    @property
    def log_ratio(self) -> float:
        """ln(t_reference / t_candidate): above 0 where the candidate was the faster one."""
        return math.log(self.reference_s / self.candidate_s)


@dataclass(frozen=True)
class Measurement:
    """A verdict and what it rests on. Ratios are t_reference / t_candidate, times are seconds per call."""

    verdict: Verdict
    reason: str
    """A sentence for people."""
    threshold: float
    ratio: float
    """The median over all pairs; `low` and `high` enclose it (0 and inf where there are too few pairs to tell)."""
    low: float
    high: float
    noise: float
    """|median log ratio| of the reference against itself."""
    pairs: int
    calls: tuple[int, int]
    """Calls in a block: of the reference, of the candidate."""
    block_s: float
    """Length of a typical block."""
    reference_s: float
    candidate_s: float
    repeats: int
    """How many inconclusive passes came before this one."""
    seconds: float
    """What the comparison took, with everything."""
    samples: tuple[Pair, ...]


def compare(
    reference: Side,
    candidate: Side,
    threshold: float,
    rng: random.Random,
    *,
    rule: Rule = DEFAULT,
    floor_s: float | None = None,
    time_s: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
) -> Measurement:
    """Measure whether `candidate` is `threshold` times as fast as `reference`.

    `floor_s` is the shortest time that physics allows one call of the candidate: less, by more than the rule's slack, is
    REVIEW. After `time_s` seconds no pair is begun. Ten pairs take about 50 blocks and five processes of each side.
    Both sides are running when this returns or raises. Raises ValueError where a threshold, a floor or a block's time is
    not above 0.
    """
    if not 0 < threshold < math.inf or (floor_s is not None and not 0 < floor_s < math.inf):
        raise ValueError(f"threshold and floor_s must be above 0, not {threshold} and {floor_s}")
    start = clock()

    def time_left() -> bool:
        return clock() - start < time_s

    result = None
    for repeats in range(rule.repeats + 1):
        run = _Run(reference, candidate, rng, rule, time_left)
        verdict = run.verdict(math.log(threshold), floor_s)
        if result is None or verdict is not Verdict.INCONCLUSIVE or len(run.samples) >= rule.pairs[0]:
            # A repeat that time cut off before its first look says less than the pass before it.
            result = replace(run.measurement(verdict, threshold, floor_s), repeats=repeats)
        if verdict is not Verdict.INCONCLUSIVE or not time_left():
            break
    assert result is not None
    return replace(result, seconds=clock() - start)


class _Run:
    """One pass through the looks."""

    def __init__(
        self, reference: Side, candidate: Side, rng: random.Random, rule: Rule, time_left: Callable[[], bool]
    ) -> None:
        self.reference, self.candidate = _Timed(reference), _Timed(candidate)
        self.rng, self.rule, self.time_left = rng, rule, time_left
        self.samples: list[Pair] = []
        self.process = 0

    def verdict(self, log_threshold: float, floor_s: float | None) -> Verdict:
        done = 0
        for pairs in self.rule.pairs:
            in_time = self._measure(pairs - done)
            done = pairs
            if floor_s is not None and median(p.candidate_s for p in self.samples) < floor_s / self.rule.floor_slack:
                return Verdict.REVIEW
            if not in_time:
                break
            verdict = decide([pair.log_ratio for pair in self.samples], log_threshold, self.rule, self._aa())
            if verdict is not None:
                return verdict
        return Verdict.INCONCLUSIVE

    def _measure(self, pairs: int) -> bool:
        """Take that many pairs; False if the time was over before."""
        orders = [True, False] * (pairs // 2)
        self.rng.shuffle(orders)
        for number, candidate_first in enumerate(orders):
            if self.samples and not self.time_left():
                return False
            if number * self.rule.processes // pairs != (number - 1) * self.rule.processes // pairs:
                self._renew()
            self.samples.append(self._pair(candidate_first))
        return True

    def _renew(self) -> None:
        """New processes for both sides, warmed up, and calls enough for a block."""
        self.process += 1
        # In random order: who is started and warmed up first gets other memory, and keeps it.
        for timed in (order := self.rng.sample([self.reference, self.candidate], 2)):
            timed.side.fresh()
        seconds = {
            timed: timed.fill_block(other, self.rule.block_s, self.time_left) for timed, other in (order, order[::-1])
        }
        reference_s, candidate_s = seconds[self.reference], seconds[self.candidate]
        if self.samples:  # many blocks tell better than the last two
            reference_s = median(pair.reference_s for pair in self.samples)
            candidate_s = median(pair.candidate_s for pair in self.samples)
        balance(self.reference, self.candidate, reference_s / candidate_s)

    def _pair(self, candidate_first: bool) -> Pair:
        again_s = None
        if candidate_first:
            candidate_s = self.candidate.per_call(self.reference)
            reference_s = self.reference.per_call(self.candidate)
            again_s = self.reference.per_call(self.candidate)
        else:
            reference_s = self.reference.per_call(self.candidate)
            candidate_s = self.candidate.per_call(self.reference)
        return Pair(reference_s, candidate_s, again_s, self.process)

    def _aa(self) -> list[float]:
        return [math.log(pair.reference_s / pair.again_s) for pair in self.samples if pair.again_s is not None]

    def measurement(self, verdict: Verdict, threshold: float, floor_s: float | None) -> Measurement:
        log_ratios, aa = [pair.log_ratio for pair in self.samples], self._aa()
        low, high = map(_exp, interval(log_ratios, self.rule.level))
        reference_s = median(pair.reference_s for pair in self.samples)
        candidate_s = median(pair.candidate_s for pair in self.samples)
        calls = (self.reference.calls, self.candidate.calls)
        ratio = math.exp(median(log_ratios))
        speed = f"{ratio:.3g} times as fast as the reference ({low:.3g} to {high:.3g}, {len(log_ratios)} pairs)"
        let_pass = threshold * math.exp(-self.rule.favour)
        asked = f"{threshold:.3g} is asked for, {let_pass:.3g} is let pass"
        if verdict is Verdict.REVIEW:
            why = f"A call took {candidate_s:.3g} s; this machine cannot do the work in less than {floor_s:.3g} s."
        elif verdict is not Verdict.INCONCLUSIVE:
            why = f"{speed}; {asked}."
        elif differs_from_itself(aa, self.rule):
            why = "The reference took another time after the candidate than after itself: "
            why += f"{math.expm1(median(aa)):+.1%}. Something outlasts its block, or the machine is too noisy."
        elif len(log_ratios) < self.rule.pairs[-1]:
            why = f"The time was over before it was clear: {speed}; {asked}."
        elif max(map(abs, interval(aa, AA_LEVEL))) < self.rule.favour:
            why = f"The machine is steady, but the candidate's times vary too much to tell: {speed}; {asked}."
        else:
            why = f"The machine is too noisy to tell: {speed}; {asked}."
        return Measurement(
            verdict=verdict,
            reason=why,
            threshold=threshold,
            ratio=ratio,
            low=low,
            high=high,
            noise=abs(median(aa)) if aa else 0.0,
            pairs=len(self.samples),
            calls=calls,
            block_s=(reference_s * calls[0] + candidate_s * calls[1]) / 2,
            reference_s=reference_s,
            candidate_s=candidate_s,
            repeats=0,
            seconds=0.0,
            samples=tuple(self.samples),
        )


class _Timed:
    """A side, the number of calls that fills a block of it, and the number that is taken."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.calls = self.filled = 1

    def per_call(self, other: _Timed) -> float:
        """Seconds per call in one block, with the other side paused."""
        other.side.pause()
        try:
            seconds = self.side.time_block(self.calls)
        finally:
            other.side.resume()
        if not 0 < seconds < math.inf:
            raise ValueError(f"a block of {self.calls} calls took {seconds} s; a Side must return a time above 0")
        return seconds / self.calls

    def fill_block(self, other: _Timed, block_s: float, time_left: Callable[[], bool]) -> float:
        """Warm up, and take more calls until a block lasts `block_s` twice running (one could be an interruption).

        Gives the seconds of a call.
        """
        self.calls = self.filled
        while True:
            per_call = min(self.per_call(other), self.per_call(other))
            if per_call * self.calls >= block_s or self.calls >= MAX_CALLS or not time_left():
                self.filled = self.calls
                return per_call
            wanted = math.ceil(1.1 * block_s / per_call)  # 10 % more, so that the next try suffices
            self.calls = min(wanted, 10 * self.calls, MAX_CALLS)


def balance(reference: _Timed, candidate: _Timed, ratio: float) -> None:
    """Take up to half as many calls again, so that blocks of both sides last as long; `ratio` is that of their calls' times.

    A block begins after a pause, beside busy neighbours with a time slice of its own. What that gains or costs is the same
    for each block, so of two the shorter one has more of it per call.
    """
    most = _more(candidate.filled)
    step = max(1, reference.filled // (2 * CHOICES))
    choices = []
    for calls in range(reference.filled, _more(reference.filled) + 1, step):
        others = max(candidate.filled, min(round(calls * ratio), most))
        choices.append((round(abs(math.log(calls * ratio / others)), 2), calls, others))
    _, reference.calls, candidate.calls = min(choices)


def _more(filled: int) -> int:
    return max(filled, min(filled * 3 // 2, MANY_CALLS))


def _exp(value: float) -> float:
    return math.exp(value) if value < math.inf else math.inf
