"""The paired test of speed: its statistics against theory and brute force, and its behaviour on simulated machines."""

from __future__ import annotations

import importlib.util
import math
import os
import random
import statistics
import sys
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_env import sequential
from gpu_env.paired import MAX_CALLS, Measurement, Rule, Verdict, compare, credit, decide, interval

RULE = Rule()
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    """A module of the benchmarks, which are no package."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


model: Any = load("verdict_model")

EXACT = Rule(favour=1 / 32)
"""With numbers of few binary digits, sums and differences with it are exact, and so are comparisons."""
GRID = st.integers(-256, 256).map(lambda number: number / 512 + 1 / 4096)
"""Log ratios that never equal a boundary of `EXACT` when the log threshold is a multiple of 1/512."""


def at_a_look(
    values: st.SearchStrategy[float], looks: tuple[int, ...] = (10, 20, 40)
) -> st.SearchStrategy[list[float]]:
    return st.sampled_from(looks).flatmap(lambda count: st.lists(values, min_size=count, max_size=count))


# ------------------------------------------------------------------------------------------------ order statistics


@pytest.mark.parametrize("n", range(1, 15))
@pytest.mark.parametrize("level", [0.3, 0.1, 0.05, 0.004])
def test_intervals_miss_the_median_as_rarely_as_promised(n: int, level: float) -> None:
    """Of all 2**n ways in which values can lie around their median, at most `level` leave it outside; a rank more would not."""

    def missed(r: int) -> Fraction:
        ways = sum(sum(signs) < r or n - sum(signs) < r for signs in product((0, 1), repeat=n))
        return Fraction(ways, 2**n)

    r = sequential.rank(n, level)
    assert r == 0 or missed(r) <= level
    assert r + 1 > n + 1 - (r + 1) or missed(r + 1) > level


def test_ranks_are_those_of_the_published_tables() -> None:
    """Four looks at 0.02 in all take the ranks that tables of the sign test give."""
    assert Rule(pairs=(10, 20, 40, 80)).looks == ((10, 1, 10), (20, 4, 17), (40, 11, 30), (80, 28, 53))


def test_the_interval_of_few_values_is_everything() -> None:
    """Where not even the extremes are rare enough, nothing is claimed."""
    assert interval([1.0, 2.0, 3.0], 0.004) == (-math.inf, math.inf)
    assert interval([], 0.1) == (-math.inf, math.inf)


@given(at_a_look(GRID), st.randoms(use_true_random=False))
def test_the_interval_does_not_depend_on_the_order(values: list[float], rng: random.Random) -> None:
    """The ends are two of the values, around the median, in whatever order the values came."""
    low, high = interval(values, RULE.level)
    assert low in values
    assert high in values
    assert low <= statistics.median(values) <= high
    rng.shuffle(values)
    assert interval(values, RULE.level) == (low, high)


# --------------------------------------------------------------------------------------------------------- decisions


def brute_force(log_ratios: list[float], log_threshold: float, rule: Rule) -> Verdict | None:
    """`decide` by two sign tests: is a median so far from the boundary compatible with so few values beyond it?"""

    def rejected(beyond: int) -> bool:
        chance = sum(Fraction(math.comb(len(log_ratios), k), 2 ** len(log_ratios)) for k in range(beyond + 1))
        return 2 * chance <= rule.alpha / len(rule.pairs)

    ordered = sorted(log_ratios)
    half = len(ordered) // 2
    enough = (ordered[half - 1] + ordered[half]) / 2 >= log_threshold - rule.favour
    if enough and rejected(sum(value < log_threshold - 2 * rule.favour for value in log_ratios)):
        return Verdict.PASS
    if not enough and rejected(sum(value >= log_threshold for value in log_ratios)):
        return Verdict.FAIL
    return Verdict.INCONCLUSIVE if len(log_ratios) == max(rule.pairs) else None


CENTRED = st.integers(-128, 128).flatmap(
    lambda centre: at_a_look(st.integers(-24, 24).map(lambda number: (centre + number) / 512), (10, 20, 40, 80, 160))
)
"""Log ratios around a common value, so that all verdicts occur."""


@given(CENTRED, st.sampled_from([-1 / 8, 0.0, 1 / 16, 1 / 4]))
@settings(max_examples=300)
def test_decisions_equal_brute_force(values: list[float], log_threshold: float) -> None:
    """Order statistics and sign tests say the same, also where values equal a boundary."""
    assert decide(values, log_threshold, EXACT) is brute_force(values, log_threshold, EXACT)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.0] * 10, Verdict.PASS),
        ([-0.024] * 10, Verdict.PASS),
        ([-0.026] * 10, Verdict.FAIL),
        ([-0.2] * 4 + [0.2] * 6, None),
        ([-0.1] * 4 + [-0.01] * 6, None),
        ([-0.04] * 6 + [0.1] * 4, None),
        ([-0.2, 0.2] * 80, Verdict.INCONCLUSIVE),
    ],
)
def test_each_verdict_occurs(values: list[float], verdict: Verdict | None) -> None:
    """Clear data decide at the first look, with the favour; unclear ones ask for more until the last look."""
    assert decide(values, 0.0) is verdict


ORDER = {Verdict.FAIL: 0, None: 1, Verdict.INCONCLUSIVE: 1, Verdict.PASS: 2}


@given(CENTRED, st.lists(st.integers(0, 64), min_size=160, max_size=160))
def test_a_faster_candidate_never_gets_a_worse_verdict(values: list[float], gains: list[int]) -> None:
    """Raising any of the log ratios moves the verdict towards PASS or leaves it."""
    faster = [value + gain / 512 for value, gain in zip(values, gains, strict=False)]
    assert ORDER[decide(faster, 0.0, EXACT)] >= ORDER[decide(values, 0.0, EXACT)]


@given(CENTRED, st.integers(-64, 64))
def test_the_sides_are_treated_alike(values: list[float], threshold: int) -> None:
    """Exchanging the sides, and mirroring the threshold at the point where verdicts turn, exchanges PASS and FAIL."""
    values = [value + 1 / 4096 for value in values]  # never right on a boundary, which belongs to PASS
    log_threshold = threshold / 512
    mirrored = decide([-value for value in values], 2 * EXACT.favour - log_threshold, EXACT)
    exchanged = {Verdict.PASS: Verdict.FAIL, Verdict.FAIL: Verdict.PASS}
    verdict = decide(values, log_threshold, EXACT)
    assert mirrored is (exchanged.get(verdict, verdict) if verdict else None)


@given(CENTRED, st.integers(-64, 64))
def test_only_the_distance_from_the_threshold_counts(values: list[float], shift: int) -> None:
    """A candidate and a threshold that are both k times as high give the same verdict."""
    moved = [value + shift / 512 for value in values]
    assert decide(moved, shift / 512, EXACT) is decide(values, 0.0, EXACT)


def test_a_reference_that_differs_from_itself_decides_nothing() -> None:
    """A difference must be shown before it stops a verdict: five of five, not three of five."""
    clear = [0.5] * 10
    assert decide(clear, 0.0, aa=[0.04] * 5) is None
    assert decide(clear, 0.0, aa=[-0.04] * 5) is None
    assert decide(clear, 0.0, aa=[0.02] * 5) is Verdict.PASS
    assert decide(clear, 0.0, aa=[0.3, 0.3, 0.3, 0.0, -0.3]) is Verdict.PASS
    assert decide([0.5] * 160, 0.0, aa=[0.04] * 80) is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("count", [0, 9, 11, 161])
def test_there_is_no_decision_between_looks(count: int) -> None:
    """Looking more often than planned would spend more than alpha."""
    with pytest.raises(ValueError, match="looks are at"):
        decide([0.0] * count, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_ratio_that_is_no_number_is_refused(value: float) -> None:
    """NaN sorts anywhere; no verdict may rest on it."""
    with pytest.raises(ValueError, match="finite"):
        decide([0.0] * 9 + [value], 0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"pairs": ()}, {"pairs": (11, 20)}, {"pairs": (20, 10)}, {"pairs": (10, 10)}, {"pairs": (6, 20)}, {"alpha": 0.0},
        {"alpha": 1.0}, {"favour": 0.0}, {"favour": math.nan}, {"block_s": 0.0}, {"processes": 0}, {"noise": 0.0},
        {"floor_slack": 0.9}, {"repeats": -1},
    ],
)  # fmt: skip
def test_a_rule_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    """A rule is checked when it is written down, not when a student waits."""
    with pytest.raises(ValueError):  # noqa: PT011 (each message names its own fields)
        Rule(**wrong)


# ------------------------------------------------------------------------------------------------------------ credit

RATIOS = st.floats(0.01, 100)


@given(RATIOS, st.floats(0.1, 3), st.floats(1.01, 50))
def test_credit_is_in_steps_and_never_full_for_a_failure(ratio: float, naive: float, gain: float) -> None:
    """Partial credit is a multiple of 5 % from 0 to 95 %, at most one step above the formula."""
    share = credit(ratio, naive, naive * gain)
    formula = min(max(math.log(ratio / naive) / math.log(gain), 0.0), 0.95)
    assert share in [step / 20 for step in range(20)]
    assert formula - 1e-6 <= share < formula + 0.05 + 1e-6


@given(RATIOS, RATIOS, st.floats(0.1, 3), st.floats(1.01, 50))
def test_faster_never_has_less_credit(one: float, other: float, naive: float, gain: float) -> None:
    """Credit grows with the ratio."""
    slow, fast = sorted((one, other))
    assert credit(slow, naive, naive * gain) <= credit(fast, naive, naive * gain)


def test_credit_of_known_cases() -> None:
    """On the way from 1 to 2 the square root of 2 is half-way; what earns nothing has 0; PASS alone has 1."""
    assert credit(math.sqrt(2), 1.0, 2.0) == 0.5
    assert credit(2**0.75, 1.0, 2.0) == 0.75
    assert credit(2**0.76, 1.0, 2.0) == 0.8
    assert credit(0.5, 1.0, 2.0) == credit(1.0, 1.0, 2.0) == 0.0
    assert credit(1.99, 1.0, 2.0) == credit(5.0, 1.0, 2.0) == 0.95
    assert credit(1.96, 1.0, 2.0, Verdict.PASS) == 1.0


@pytest.mark.parametrize("verdict", [Verdict.INCONCLUSIVE, Verdict.REVIEW])
def test_a_withheld_verdict_has_no_credit(verdict: Verdict) -> None:
    """Neither 0 nor 1 may be read from what was not established."""
    with pytest.raises(ValueError, match="withhold"):
        credit(1.5, 1.0, 2.0, verdict)


@pytest.mark.parametrize(
    ("ratio", "naive", "threshold"), [(1, 0, 2), (1, 2, 2), (1, 3, 2), (0, 1, 2), (math.nan, 1, 2)]
)
def test_credit_without_a_scale_is_refused(ratio: float, naive: float, threshold: float) -> None:
    """A naive level at or above the threshold gives no way from 0 to 1."""
    with pytest.raises(ValueError, match="naive"):
        credit(ratio, naive, threshold)


# ------------------------------------------------------------------------------------------------ simulated machines

Noise = Callable[["FakeSide"], float]


class Machine:
    """A clock that only blocks move on, and who ran in them."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.rng = random.Random(seed)
        self.blocks: list[tuple[FakeSide, int, float]] = []
        self.operations = 0
        self.fail_at = 0

    def clock(self) -> float:
        return self.now

    def count(self) -> None:
        self.operations += 1
        if self.operations == self.fail_at:
            raise ConnectionError("the worker died")


class FakeSide:
    """A `Side` on a `Machine`: `call_s` seconds a call and `cost_s` a block, times what `noise` makes of it."""

    def __init__(self, machine: Machine, call_s: float, noise: Noise | None = None, cost_s: float = 0.0) -> None:
        self.machine, self.call_s, self.noise, self.cost_s = machine, call_s, noise or (lambda side: 1.0), cost_s
        self.other: FakeSide | None = None
        self.paused = 0
        self.processes = 0

    def time_block(self, calls: int) -> float:
        self.machine.count()
        assert self.processes, "no process yet"
        assert not self.paused
        assert self.other is None or self.other.paused == 1
        seconds = (self.cost_s + calls * self.call_s) * self.noise(self)
        self.machine.now += seconds
        self.machine.blocks.append((self, calls, seconds))
        return seconds

    def pause(self) -> None:
        self.machine.count()
        assert not self.paused
        self.paused = 1

    def resume(self) -> None:
        assert self.paused
        self.paused = 0

    def fresh(self) -> None:
        self.machine.count()
        assert not self.paused
        self.machine.now += 0.05
        self.processes += 1


def lognormal(sd: float) -> Noise:
    return lambda side: math.exp(side.machine.rng.gauss(0, sd))


def sides(
    ratio: float, noise: Noise | None = None, call_s: float = 0.001, seed: int = 3, **more: Any
) -> tuple[FakeSide, FakeSide]:
    """A reference and a candidate that is `ratio` times as fast. Of 300 seeds, 4 decide what is pure noise; not 3."""
    machine = Machine(seed)
    reference, candidate = FakeSide(machine, ratio * call_s, noise, **more), FakeSide(machine, call_s, noise, **more)
    reference.other, candidate.other = candidate, reference
    return reference, candidate


def measure(pair: tuple[FakeSide, FakeSide], threshold: float = 1.5, seed: int = 1, **options: Any) -> Measurement:
    return compare(*pair, threshold, random.Random(seed), clock=pair[0].machine.clock, **options)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [(3.0, "PASS"), (1.65, "PASS"), (1.5, "PASS"), (1.48, "PASS"), (1.45, "FAIL"), (1.35, "FAIL"), (0.1, "FAIL")],
)
def test_a_steady_machine_tells_after_ten_pairs(ratio: float, verdict: str) -> None:
    """Without noise the true ratio comes out, the first look decides, and two per cent short is let pass."""
    measured = measure(sides(ratio, lognormal(0.0005)))
    assert measured.verdict == verdict
    assert measured.ratio == pytest.approx(ratio, rel=0.002)
    assert measured.low <= measured.ratio <= measured.high
    assert (measured.pairs, len(measured.samples), measured.repeats) == (10, 10, 0)
    assert measured.reference_s == pytest.approx(ratio * 0.001, rel=0.01)
    assert measured.candidate_s == pytest.approx(0.001, rel=0.01)
    assert f"{measured.ratio:.3g} times" in measured.reason
    assert "1.5 is asked" in measured.reason


@pytest.mark.parametrize("ratio", [0.01, 0.9, 100.0])
def test_blocks_of_both_sides_are_long_enough_and_no_longer_than_needed(ratio: float) -> None:
    """However much faster one side is, a block of either lasts 20 to 25 ms."""
    pair = sides(ratio, call_s=1e-6 / min(ratio, 1.0))
    measured = measure(pair, threshold=ratio)
    for side in pair:
        timed = [seconds for who, _, seconds in pair[0].machine.blocks if who is side][-10:]
        assert all(0.020 <= seconds <= 0.025 for seconds in timed)
    assert 0.020 <= measured.block_s <= 0.025
    assert measured.calls[1] / measured.calls[0] == pytest.approx(ratio, rel=0.01)


def test_the_fixed_cost_of_a_block_cancels() -> None:
    """A start of 1 ms in every block of 20 ms would pull a ratio of 3 down to 2.9 if both sides had the same calls."""
    measured = measure(sides(3.0, call_s=1e-5, cost_s=0.001))
    assert measured.ratio == pytest.approx(3.0, rel=0.003)


def test_the_fixed_cost_of_a_block_cancels_where_blocks_have_few_calls() -> None:
    """Two calls of 13.5 ms fill a block, and two of 9 ms; three of these last as long, so that both cost as much a call."""
    measured = measure(sides(1.5, call_s=0.009, cost_s=0.005))
    assert measured.calls == (2, 3)
    assert measured.ratio == pytest.approx(1.5, rel=0.003)


def test_either_side_may_be_started_first() -> None:
    """Who is started first gets other memory than who comes second, so chance decides, in every generation of processes."""
    first = []

    class Told(FakeSide):
        def fresh(self) -> None:
            first.append(self)
            super().fresh()

    machine = sides(2.0)[0].machine
    pair = Told(machine, 0.002), Told(machine, 0.001)
    for seed in range(20):
        compare(*pair, 1.5, random.Random(seed), clock=machine.clock)
    share = sum(side is pair[0] for side in first[::2]) / len(first[::2])
    assert 0.3 < share < 0.7


def test_the_first_blocks_of_a_process_are_not_measured() -> None:
    """What a new process does once (lazy imports, compilation) does not count."""
    seen = {"processes": 0}

    def slow_start(side: FakeSide) -> float:
        first, seen["processes"] = side.processes != seen["processes"], side.processes
        return 50.0 if first else 1.0

    reference, candidate = sides(2.0)
    candidate.noise = slow_start
    measured = measure((reference, candidate))
    assert measured.verdict is Verdict.PASS
    assert max(pair.candidate_s for pair in measured.samples) == pytest.approx(0.001)
    assert measured.calls[1] * 0.001 >= 0.020


def test_pairs_are_spread_over_processes() -> None:
    """Five new processes of each side come before each look, and share its pairs almost equally."""
    pair = sides(1.46, lognormal(0.05))
    measured = measure(pair)
    assert measured.pairs > 10
    looks = RULE.pairs.index(measured.pairs) + 1
    assert pair[0].processes == pair[1].processes == 5 * looks
    assert [sample.process for sample in measured.samples[:10]] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert [sample.process for sample in measured.samples] == sorted(sample.process for sample in measured.samples)


def test_orders_are_random_and_balanced() -> None:
    """In half of the pairs the candidate goes first, in an order that the seed decides."""
    orders = []
    for seed in (1, 1, 2):
        pair = sides(2.0)
        measured = measure(pair, seed=seed)
        orders.append([sample.again_s is not None for sample in measured.samples])
        assert sum(orders[-1]) == 5
    assert orders[0] == orders[1] != orders[2]


def test_the_same_seed_on_the_same_machine_gives_the_same_measurement() -> None:
    """Nothing but the seed and the sides decides."""
    assert measure(sides(1.5, lognormal(0.05))) == measure(sides(1.5, lognormal(0.05)))


def test_a_time_below_the_floor_is_for_review() -> None:
    """Faster than physics allows is not PASS, whatever the ratio; 5 % are left to the floor's own error."""
    assert measure(sides(2.0), floor_s=0.00106).verdict is Verdict.REVIEW
    assert measure(sides(2.0), floor_s=0.00104).verdict is Verdict.PASS
    assert measure(sides(1.0), floor_s=0.00106).verdict is Verdict.REVIEW
    assert "cannot do the work in less than 0.002 s" in measure(sides(2.0), floor_s=0.002).reason


def test_a_candidate_that_takes_no_time_gets_no_endless_inputs() -> None:
    """The number of calls has an upper end; what comes of it is for review where a floor is given."""
    pair = sides(1e6, call_s=1e-12)
    measured = measure(pair, floor_s=1e-7)
    assert measured.verdict is Verdict.REVIEW
    assert max(calls for _, calls, _ in pair[0].machine.blocks) == MAX_CALLS


def test_a_machine_that_is_too_noisy_is_inconclusive_after_one_repeat() -> None:
    """Too noisy to tell at the last look: all over again, and if that does not help either, no verdict."""
    pair = sides(1.46, lognormal(0.5))
    measured = measure(pair, time_s=1e9)
    assert measured.verdict is Verdict.INCONCLUSIVE
    assert measured.repeats == 1
    assert measured.pairs == 160
    assert pair[0].processes == 2 * 5 * len(RULE.pairs)
    assert "too noisy" in measured.reason


def test_a_burst_of_noise_is_survived_by_the_repeat() -> None:
    """The second pass decides once the neighbour has gone."""

    def burst(side: FakeSide) -> float:
        return math.exp(side.machine.rng.gauss(0, 0.6 if side.processes <= 15 else 0.001))

    measured = measure(sides(1.46, burst), rule=Rule(pairs=(10, 20, 40)))
    assert (measured.verdict, measured.repeats, measured.pairs) == (Verdict.FAIL, 1, 10)


def test_an_erratic_candidate_on_a_steady_machine_is_told_so() -> None:
    """Whose times vary is said, since only the student can mend their own."""
    reference, candidate = sides(1.46)
    candidate.noise = lognormal(0.5)
    measured = measure((reference, candidate), time_s=1e9)
    assert measured.verdict is Verdict.INCONCLUSIVE
    assert "machine is steady" in measured.reason


def test_work_that_outlasts_the_candidates_block_decides_nothing() -> None:
    """A reference that is 10 % slower right after the candidate than after itself: no verdict, and the reason says so."""

    def disturbed(side: FakeSide) -> float:
        blocks = side.machine.blocks
        return 1.1 if blocks and blocks[-1][0] is not side else 1.0

    reference, candidate = sides(1.6)
    reference.noise = disturbed
    measured = measure((reference, candidate))
    assert measured.verdict is Verdict.INCONCLUSIVE
    assert measured.noise == pytest.approx(math.log(1.1))
    assert "+10.0%" in measured.reason
    assert "outlasts" in measured.reason


@pytest.mark.parametrize("call_s", [0.001, 0.1, 2.0])
@pytest.mark.parametrize("time_s", [0.0, 5.0, 40.0])
def test_the_time_is_bounded(call_s: float, time_s: float) -> None:
    """No pair begins after the limit; what follows is at most the start of new processes and the pair that was going on."""
    pair = sides(1.46, lognormal(0.4), call_s=call_s)
    measured = measure(pair, time_s=time_s)
    block = max(seconds for _, _, seconds in pair[0].machine.blocks)
    assert measured.seconds == pair[0].machine.now <= time_s + 7 * block + 0.1
    assert measured.pairs == len(measured.samples) >= 1
    if measured.pairs < 10:
        assert measured.verdict is Verdict.INCONCLUSIVE
        assert "The time was over" in measured.reason


def test_a_repeat_without_time_does_not_hide_the_first_pass() -> None:
    """If time ends just after the first pass, its figures are reported, not those of one pair."""
    pair = sides(1.46, lognormal(0.5))
    whole = measure(pair, time_s=1e9, rule=Rule(repeats=0))
    again = measure(sides(1.46, lognormal(0.5)), time_s=whole.seconds + 0.3)
    assert (again.pairs, again.repeats) == (160, 0)


@given(st.integers(1, 250))
@settings(max_examples=60, deadline=None)
def test_both_sides_run_on_whatever_goes_wrong(fail_at: int) -> None:
    """An error at any point reaches the caller, and nobody stays paused."""
    pair = sides(1.46, lognormal(0.03))
    pair[0].machine.fail_at = fail_at
    with pytest.raises(ConnectionError, match="died"):
        measure(pair, rule=Rule(repeats=9), time_s=1e9, threshold=1.46 * math.exp(0.025))
    assert [side.paused for side in pair] == [0, 0]


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_a_block_that_took_no_time_is_our_fault(seconds: float) -> None:
    """A clock that stands still or runs backwards is an error of the caller's, not a verdict."""
    pair = sides(2.0)
    pair[1].noise = lambda side: seconds
    with pytest.raises(ValueError, match="time above 0"):
        measure(pair)
    assert [side.paused for side in pair] == [0, 0]


@pytest.mark.parametrize("wrong", [{"threshold": 0.0}, {"threshold": math.nan}, {"floor_s": 0.0}, {"floor_s": -1.0}])
def test_thresholds_and_floors_must_be_above_zero(wrong: dict[str, Any]) -> None:
    """A mistake in a suite is found before anything runs."""
    pair = sides(2.0)
    with pytest.raises(ValueError, match="above 0"):
        measure(pair, **wrong)
    assert pair[0].processes == 0


# --------------------------------------------------------------------------------------------------- the benchmarks


@given(st.integers(0, 2**32), st.sampled_from(RULE.pairs), st.floats(-0.15, 0.15), st.floats(0.001, 0.3))
@settings(deadline=None)
def test_the_simulation_decides_as_we_do(seed: int, pairs: int, centre: float, sd: float) -> None:
    """The rule for many trials at once, which the error rates come from, equals `decide` on each of them."""
    rng = np.random.default_rng(seed)
    log_ratios = centre + sd * rng.standard_normal((20, pairs))
    aa = rng.choice([0.0, 0.05, -0.1]) + sd * rng.standard_normal((20, pairs // 2))
    names = {None: model.UNDECIDED, "FAIL": model.FAIL, "PASS": model.PASS, "INCONCLUSIVE": model.INCONCLUSIVE}
    singly = [names[decide(list(d), 0.0, RULE, list(a))] for d, a in zip(log_ratios, aa, strict=True)]
    assert model.decide_many(log_ratios, 0.0, RULE, aa).tolist() == singly


def modelled(name: str) -> Noise:
    """The benchmark's noise, block by block."""
    noise = model.NOISE[name]
    state = {"drift": 0.0}
    effects: dict[tuple[int, int], float] = {}

    def factor(side: FakeSide) -> float:
        rng = side.machine.rng
        state["drift"] = model.DRIFT_MEMORY * state["drift"] + rng.gauss(0, noise.drift)
        spike = rng.expovariate(1 / model.SPIKE) if rng.random() < noise.spikes else 0.0
        effect = effects.setdefault((id(side), side.processes), rng.gauss(0, model.PROCESS))
        return math.exp(state["drift"] + rng.gauss(0, noise.own) + effect) * (1 + spike)

    return factor


def test_the_simulation_describes_the_real_comparison() -> None:
    """`compare`, block by block on the bad machine, gives the simulation's rates within their errors."""
    trials = 150
    rule = Rule(pairs=(10, 20, 40, 80), repeats=0)
    measured = []
    for seed in range(trials):
        pair = sides(1.5 * 0.95, modelled("bad"), call_s=0.02, seed=seed)
        measured.append(measure(pair, seed=seed, rule=rule, time_s=1e9).verdict)
    verdicts, _ = model.simulate(model.NOISE["bad"], math.log(0.95), 20_000, np.random.default_rng(1), rule)
    for name, code in (("FAIL", model.FAIL), ("INCONCLUSIVE", model.INCONCLUSIVE)):
        rate = float((verdicts == code).mean())
        assert 0.1 < rate < 0.9
        assert abs(measured.count(Verdict(name)) - trials * rate) < 4 * math.sqrt(trials * rate * (1 - rate))


def test_processes_of_the_simulation_differ() -> None:
    """On a machine without any other noise, only what is peculiar to processes can turn a verdict right at the border."""
    silent, log_ratio = model.Noise(own=0, spikes=0, drift=0, day=0), -RULE.favour + 0.001
    same, _ = model.simulate(silent, log_ratio, 200, np.random.default_rng(1), RULE, process=0.0)
    other, _ = model.simulate(silent, log_ratio, 200, np.random.default_rng(1), RULE)
    assert set(same) == {model.PASS}
    assert set(other) == {model.PASS, model.FAIL}


def test_clear_cases_are_decided_right_on_a_shared_machine() -> None:
    """Ten per cent from the threshold, forty comparisons of forty are right."""
    for seed in range(20):
        for percent, verdict in ((-10, Verdict.FAIL), (10, Verdict.PASS)):
            pair = sides(1.5 * (1 + percent / 100), modelled("shared"), call_s=0.02, seed=seed)
            assert measure(pair, seed=seed).verdict is verdict


@pytest.mark.parametrize(("events", "trials"), [(0, 200), (2, 200), (40, 4000)])
def test_upper_bounds_are_exact(events: int, trials: int) -> None:
    """At the bound, so few events have a chance of exactly 5 %."""
    rate = model.upper(events, trials)
    chance = sum(math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(events + 1))
    assert chance == pytest.approx(0.05, rel=1e-6)


# ----------------------------------------------------------------------------------------------------- real processes


@pytest.mark.skipif(sys.platform != "linux", reason="the field test's workers are pinned and stopped as Linux does it")
def test_real_processes_are_stopped_in_turn_and_told_apart() -> None:
    """With real workers, one of them four times as fast: PASS at 1.5, FAIL at 10; whoever is not measured stands still."""
    field: Any = load("verdict_field")
    core = max(os.sched_getaffinity(0))
    states = []

    class Watched(field.Worker):  # type: ignore[misc]
        def time_block(self, calls: int) -> float:
            states.append([Path(f"/proc/{side.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] for side in both])
            seconds: float = super().time_block(calls)
            return seconds

    for threshold, verdict in ((1.5, Verdict.PASS), (10.0, Verdict.FAIL)):
        both = [Watched("compute", 80, core), Watched("compute", 20, core)]
        try:
            measured = compare(both[0], both[1], threshold, random.Random(1), time_s=300)
        finally:
            for side in both:
                side.close()
        assert measured.verdict is verdict, measured.reason
    assert {tuple(state).count("T") for state in states} == {1}
