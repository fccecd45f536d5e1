"""How `verdicts.py` simulates: what noise does to blocks, our rule on many trials at once, and the rules it is compared with.

The logarithm of a block's time, less that of its noiseless time, is the sum of

    drift     of the machine, shared by all blocks that follow each other: x' = DRIFT_MEMORY x + N(0, drift), stationary
    own       N(0, own), of this block alone
    spike     ln(1 + Exponential(mean SPIKE)) with chance `spikes`, else 0: an interruption
    process   N(0, `PROCESS`), drawn anew for each process of each side
    day       N(0, day), of the machine or the day; cancels in every ratio, so only an absolute time meets it

Not covered: a neighbour that harms one kind of code more than another, bursts longer than a block that are not drift,
more than `PROCESS` between processes, clocks. The field test has what this machine has of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpu_env.sequential import AA_LEVEL, Rule, rank

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DRIFT_MEMORY = 0.95
SPIKE = 0.5
PROCESS = 0.01
WARM_UP = 4
"""Blocks that a change of processes costs: two of each side."""
UNDECIDED, FAIL, PASS, INCONCLUSIVE = -1, 0, 1, 2


@dataclass(frozen=True)
class Noise:
    """A machine; see the head of the module."""

    own: float
    spikes: float
    drift: float
    day: float


NOISE = {
    "quiet": Noise(own=0.01, spikes=0.01, drift=0.002, day=0.01),
    "shared": Noise(own=0.04, spikes=0.05, drift=0.015, day=0.08),
    "bad": Noise(own=0.10, spikes=0.15, drift=0.030, day=0.15),
}
"""The three models of the design: a laptop or server that does nothing else, one that does, and one not fit to grade on."""


def decide_many(log_ratios: Floats, log_threshold: float, rule: Rule, aa: Floats) -> Ints:
    """`gpu_env.sequential.decide` for each row at once (a test holds the two against each other)."""
    pairs = log_ratios.shape[1]
    low, high, middle = _order(log_ratios, rule.level)
    turn = log_threshold - rule.favour
    verdicts = np.full(len(log_ratios), INCONCLUSIVE if pairs == rule.pairs[-1] else UNDECIDED)
    verdicts[(middle >= turn) & (low >= turn - rule.favour)] = PASS
    verdicts[(middle < turn) & (high < turn + rule.favour)] = FAIL
    aa_low, aa_high, _ = _order(aa, AA_LEVEL)
    unfit = (aa_low > rule.noise) | (aa_high < -rule.noise)
    verdicts[unfit] = INCONCLUSIVE if pairs == rule.pairs[-1] else UNDECIDED
    return verdicts


def _order(values: Floats, level: float) -> tuple[Floats, Floats, Floats]:
    """Interval and median of each row."""
    count = values.shape[1]
    r = rank(count, level)
    wanted = sorted({r - 1, count - r, (count - 1) // 2, count // 2}) if r else [(count - 1) // 2, count // 2]
    ordered = np.partition(values, wanted, axis=1)
    middle = (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2
    if not r:
        return np.full(len(values), -math.inf), np.full(len(values), math.inf), middle
    return ordered[:, r - 1], ordered[:, count - r], middle


Decide = Callable[[Floats, float, Rule, Floats], Ints]


def simulate(
    noise: Noise,
    log_ratio: float,
    trials: int,
    rng: np.random.Generator,
    rule: Rule,
    decide: Decide = decide_many,
    process: float = PROCESS,
) -> tuple[Ints, Ints]:
    """Verdicts and numbers of blocks of that many comparisons; the true log ratio is `log_ratio` above ln T."""
    verdicts, blocks = np.full(trials, UNDECIDED), np.full(trials, WARM_UP)  # WARM_UP: finding the number of calls
    for _ in range(rule.repeats + 1):
        again = np.flatnonzero((verdicts == UNDECIDED) | (verdicts == INCONCLUSIVE))
        if len(again):
            verdicts[again], used = _one_pass(noise, log_ratio, len(again), rng, rule, decide, process)
            blocks[again] += used
    return verdicts, blocks


def _one_pass(
    noise: Noise,
    log_ratio: float,
    trials: int,
    rng: np.random.Generator,
    rule: Rule,
    decide: Decide,
    process: float,
) -> tuple[Ints, Ints]:
    verdicts, blocks = np.full(trials, UNDECIDED), np.zeros(trials, dtype=np.int64)
    drift = _stationary(noise, trials, rng)
    ratios, aa = np.empty((trials, rule.pairs[-1])), np.empty((trials, rule.pairs[-1] // 2))
    done = 0
    for pairs in rule.pairs:
        rows = np.flatnonzero(verdicts == UNDECIDED)
        if not len(rows):
            break
        new = pairs - done
        first = (
            np.argsort(np.argsort(rng.random((len(rows), new)), axis=1), axis=1) < new // 2
        )  # the candidate, in half
        times = _blocks(noise, drift, rows, 3 * new, rng).reshape(len(rows), new, 3)
        generation = np.arange(new) * min(rule.processes, new) // new
        generations = int(generation[-1]) + 1
        of_reference = process * rng.standard_normal((len(rows), generations))[:, generation]
        of_candidate = process * rng.standard_normal((len(rows), generations))[:, generation]
        reference = np.where(first, times[:, :, 1], times[:, :, 0])
        candidate = np.where(first, times[:, :, 0], times[:, :, 1])
        ratios[rows, done:pairs] = reference + of_reference - candidate - of_candidate + log_ratio
        # The reference again, from the same process; half of each row's pairs have it.
        aa[rows, done // 2 : pairs // 2] = (times[:, :, 1] - times[:, :, 2])[first].reshape(len(rows), new // 2)
        blocks[rows] += new * 5 // 2 + WARM_UP * generations
        verdicts[rows] = decide(ratios[rows, :pairs], 0.0, rule, aa[rows, : pairs // 2])
        done = pairs
    return verdicts, blocks


def _stationary(noise: Noise, trials: int, rng: np.random.Generator) -> Floats:
    return noise.drift / math.sqrt(1 - DRIFT_MEMORY**2) * rng.standard_normal(trials)


def _blocks(noise: Noise, drift: Floats, rows: Ints, count: int, rng: np.random.Generator) -> Floats:
    """The noise of `count` blocks in a row, process and day left out; takes the drift of these rows further."""
    shape = (len(rows), count)
    times = noise.own * rng.standard_normal(shape)
    times += np.log1p(np.where(rng.random(shape) < noise.spikes, rng.exponential(SPIKE, shape), 0.0))
    now = drift[rows]
    for block in range(count):
        now = DRIFT_MEMORY * now + noise.drift * rng.standard_normal(len(rows))
        times[:, block] += now
    drift[rows] = now
    return times


# ------------------------------------------------------------------------------------------- what others do


def first_design(log_ratios: Floats, log_threshold: float, rule: Rule, aa: Floats) -> Ints:
    """Our own first rule, for `FIRST`: PASS or FAIL when the interval excludes T itself, doubt passes at the end."""
    low, high, middle = _order(log_ratios, rule.level)
    verdicts = np.full(len(log_ratios), UNDECIDED)
    verdicts[low >= log_threshold] = PASS
    verdicts[high < log_threshold] = FAIL
    if log_ratios.shape[1] == rule.pairs[-1]:
        late = verdicts == UNDECIDED
        verdicts[late] = np.where(middle[late] >= log_threshold - 0.02, PASS, FAIL)
    return verdicts


FIRST = Rule(pairs=(10, 20, 40, 80), processes=3, repeats=0)


def plain_aa(log_ratios: Floats, log_threshold: float, rule: Rule, aa: Floats) -> Ints:
    """Our rule with the A/A check as it is usually stated: no verdict while |median| > `rule.noise`."""
    verdicts = decide_many(log_ratios, log_threshold, rule, aa)
    noisy = np.abs(np.median(aa, axis=1)) > rule.noise
    verdicts[noisy] = INCONCLUSIVE if log_ratios.shape[1] == rule.pairs[-1] else UNDECIDED
    return verdicts


def in_turn(noise: Noise, log_ratio: float, trials: int, rng: np.random.Generator, runs: int, best: bool) -> Ints:
    """All runs of the reference, then all of the candidate; the ratio of their best or of their mean times against T.

    Every run of `best` is a process of its own, as in courses that start a program three times; means come from one.
    """
    drift, rows = _stationary(noise, trials, rng), np.arange(trials)
    sides = []
    for _ in range(2):
        times = _blocks(noise, drift, rows, runs, rng)
        times += PROCESS * rng.standard_normal((trials, runs if best else 1))
        sides.append(times.min(axis=1) if best else np.log(np.exp(times).mean(axis=1)))
    return np.where(sides[0] - sides[1] + log_ratio >= 0, PASS, FAIL)


def absolute(noise: Noise, log_ratio: float, trials: int, rng: np.random.Generator) -> Ints:
    """One run of the candidate against a limit in seconds, set on a day without noise."""
    drift, rows = _stationary(noise, trials, rng), np.arange(trials)
    time = _blocks(noise, drift, rows, 1, rng)[:, 0]
    time += PROCESS * rng.standard_normal(trials) + noise.day * rng.standard_normal(trials)
    return np.where(time <= log_ratio, PASS, FAIL)


def upper(events: int, trials: int) -> float:
    """The largest rate at which so few events still have a chance of 5 % (Clopper and Pearson, one-sided)."""
    if events >= trials:
        return 1.0
    low, high = events / trials, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        logs = [
            math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
            + k * math.log(rate) + (trials - k) * math.log1p(-rate)
            for k in range(events + 1)
        ]  # fmt: skip
        low, high = (rate, high) if sum(map(math.exp, logs)) > 0.05 else (low, rate)
    return high
