"""Verdicts on objectives: the statistics against exact fractions and theory, and who is to blame for what."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_env.load import Fault, LoadResult, Record, Request, percentile
from gpu_env.sequential import Verdict
from gpu_env.slo import Audit, Slo, at_most, audit, judge_slo, repeat_test, requests_needed, wilson

SLO = Slo(ttft_s=1.0, tpot_s=0.1)
LATENCY = st.floats(0.001, 3)


def record(
    index: int = 0,
    ttft_s: float = 0.5,
    tpot_s: float = 0.05,
    fault: Fault | None = None,
    lag_s: float = 0.0,
    **more: Any,
) -> Record:
    """A request at second `index`, answered with ten tokens."""
    first_s = index + ttft_s
    times = () if fault else (first_s, first_s + 9 * tpot_s)
    request = Request({}, min_tokens=2, repeat=more.get("repeat", False))
    return Record(
        index=index,
        request=request,
        warmup=more.get("warmup", False),
        scheduled_s=index,
        started_s=index + lag_s,
        sent_s=index + lag_s,
        chunk_times_s=times,
        ended_s=times[-1] if times else index + 1.0,
        text=more.get("text", "text"),
        tokens=0 if fault else 10,
        fault=fault,
        detail="",
    )


def result(records: list[Record], lag_p99_s: float = 0.0) -> LoadResult:
    return LoadResult(tuple(records), 0.0, lag_p99_s)


def run(met: int, missed: int, **miss: Any) -> LoadResult:
    """So many requests that meet `SLO` and that miss it, the latter with these properties."""
    miss = miss or {"ttft_s": 2.0}
    return result([record(i) for i in range(met)] + [record(met + i, **miss) for i in range(missed)])


# ------------------------------------------------------------------------------------------------- arithmetic


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 99))
def test_binomial_chances_equal_exact_fractions(total: int, misses: int, percent: int) -> None:
    """Against whole numbers, to a billionth."""
    misses = min(misses, total)
    rate = Fraction(percent, 100)
    exact = sum(math.comb(total, k) * rate**k * (1 - rate) ** (total - k) for k in range(misses + 1))
    assert at_most(misses, total, percent / 100) == pytest.approx(float(exact), rel=1e-9)


def test_binomial_chances_of_large_runs_do_not_overflow() -> None:
    """MLPerf's run of 270,336 requests: half of it is within the median's reach."""
    assert at_most(2703, 270_336, 0.01) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("share", "needed"), [(0.90, [29, 46, 61, 76]), (0.95, [59, 93, 124, 153]), (0.99, [299, 473, 628, 773])]
)
def test_sizes_of_runs_are_those_of_the_binomial_table(share: float, needed: list[int]) -> None:
    """With 0, 1, 2 and 3 misses at 95 % confidence, as exact fractions give them as well."""
    assert [requests_needed(share, misses=misses) for misses in range(4)] == needed
    p = Fraction(str(share))
    for misses, total in enumerate(needed):
        for size, shown in ((total, True), (total - 1, False)):
            tail = sum(math.comb(size, k) * (1 - p) ** k * p ** (size - k) for k in range(misses + 1))
            assert (tail <= Fraction(5, 100)) is shown


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_a_server_at_the_border_gets_a_verdict_as_rarely_as_promised(
    total: int, share: float, confidence: float
) -> None:
    """If exactly `share` meet the objective, PASS and FAIL have a chance of 1 - confidence each, at most."""
    chance = dict.fromkeys(Verdict, 0.0)
    for misses in range(total + 1):
        verdict = judge_slo(run(total - misses, misses), SLO, audit=None, share=share, confidence=confidence).verdict
        chance[verdict] += math.comb(total, misses) * (1 - share) ** misses * share ** (total - misses)
    assert chance[Verdict.PASS] <= 1 - confidence + 1e-9
    assert chance[Verdict.FAIL] <= 1 - confidence + 1e-9
    assert sum(chance.values()) == pytest.approx(1)


@settings(deadline=None)
@given(st.integers(1, 200), st.data())
def test_more_misses_never_make_a_better_verdict(total: int, data: st.DataObject) -> None:
    """PASS, then INCONCLUSIVE, then FAIL."""
    order = [Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL]
    fewer, more = sorted((data.draw(st.integers(0, total)), data.draw(st.integers(0, total))))
    a, b = (judge_slo(run(total - misses, misses), SLO, audit=None).verdict for misses in (fewer, more))
    assert order.index(a) <= order.index(b)


@settings(deadline=None)
@given(st.integers(1, 500), st.data(), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_ends_of_wilsons_interval_are_where_the_score_test_turns(
    total: int, data: st.DataObject, confidence: float
) -> None:
    """(share - p)^2 = z^2 p (1 - p) / n at both ends p, the share lies between, and counting misses mirrors it."""
    met = data.draw(st.integers(0, total))
    low, high = wilson(met, total, confidence)
    z = {0.5: 0.6744897501960817, 0.9: 1.6448536269514722, 0.95: 1.959963984540054, 0.99: 2.5758293035489004}[
        confidence
    ]
    assert 0 <= low <= met / total <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert (met / total - end) ** 2 == pytest.approx(z * z * end * (1 - end) / total, rel=1e-6, abs=1e-12)
    mirrored = wilson(total - met, total, confidence)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
def test_percentiles_are_values_that_were_measured(values: list[float], percent: int) -> None:
    """The inverse of the empirical distribution, as in numpy."""
    expected = np.percentile(values, percent, method="inverted_cdf")
    assert percentile(values, percent / 100) == expected


@settings(deadline=None)
@given(
    st.lists(st.tuples(LATENCY, LATENCY, st.sampled_from([None, *Fault])), min_size=1, max_size=40), LATENCY, LATENCY
)
def test_goodput_counts_requests_that_meet_every_bound(
    latencies: list[tuple[float, float, Fault | None]], ttft_s: float, tpot_s: float
) -> None:
    """At most the requests without fault per second, and as many as a plain loop counts."""
    made = result([record(i, ttft, tpot, fault) for i, (ttft, tpot, fault) in enumerate(latencies)])
    verdict = judge_slo(made, Slo(ttft_s=ttft_s, tpot_s=tpot_s), audit=None)
    met = 0
    for r in made.records:
        met += (
            r.fault is None
            and r.ttft_s is not None
            and r.ttft_s <= ttft_s
            and r.tpot_s is not None
            and r.tpot_s <= tpot_s
        )
    assert verdict.met == met
    assert verdict.goodput_per_s == pytest.approx(met / max(r.ended_s for r in made.records))
    assert verdict.goodput_per_s <= made.summary()["requests_per_s"] + 1e-9
    looser = judge_slo(made, Slo(ttft_s=2 * ttft_s, tpot_s=2 * tpot_s), audit=None)
    assert looser.met >= met


# ------------------------------------------------------------------------------------------------ who is to blame


def test_a_late_client_withholds_both_verdicts() -> None:
    """What a client that was late measured is its own doing."""
    for made in (run(40, 0), run(0, 40)):
        late = result(list(made.records), lag_p99_s=0.0051)
        assert judge_slo(made, SLO, audit=None).verdict is not Verdict.INCONCLUSIVE
        assert judge_slo(late, SLO, audit=None).verdict is Verdict.INCONCLUSIVE


def test_a_late_client_does_not_excuse_what_it_cannot_have_caused() -> None:
    """Wrong formats, short answers and wrong texts fail whatever the client's lag; a time-out does not."""
    for fault, expected in (
        (Fault.SHORT, Verdict.FAIL),
        (Fault.STATUS, Verdict.FAIL),
        (Fault.TIME, Verdict.INCONCLUSIVE),
    ):
        late = result(list(run(10, 20, fault=fault).records), lag_p99_s=1.0)
        assert judge_slo(late, SLO, audit=None).verdict is expected
    late = result(list(run(40, 0).records), lag_p99_s=1.0)
    assert judge_slo(late, SLO, audit=Audit((1, 2), (2,))).verdict is Verdict.FAIL


def test_no_verdict_fails_because_of_the_clients_own_lag() -> None:
    """Misses that would have met the objective from the moment they were really sent make it INCONCLUSIVE."""
    assert judge_slo(run(10, 20, ttft_s=1.002, lag_s=0.001), SLO, audit=None).verdict is Verdict.FAIL
    assert judge_slo(run(10, 20, ttft_s=1.002, lag_s=0.004), SLO, audit=None).verdict is Verdict.INCONCLUSIVE


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.randoms(use_true_random=False))
def test_an_audit_draws_from_good_counted_answers_only(good: int, bad: int, rng: random.Random) -> None:
    """A tenth of them, at least twenty, each at most once; wrong ones are among those looked at."""
    made = result(
        [record(i) for i in range(good)]
        + [record(good + i, fault=Fault.CUT) for i in range(bad)]
        + [record(999, warmup=True), record(1000, repeat=True)]
    )
    found = audit(made, lambda request, text: rng.random() < 0.5, rng)
    assert len(found.checked) == len(set(found.checked)) == min(good, max(20, math.ceil(good / 10)))
    assert set(found.checked) <= set(range(good))
    assert set(found.wrong) <= set(found.checked)


def test_an_audit_looks_at_a_tenth_of_a_large_run() -> None:
    """Different ones for different seeds, and each as likely as the others."""
    made = result([record(i) for i in range(400)])
    looks = [audit(made, lambda request, text: True, random.Random(seed)).checked for seed in range(50)]
    assert {len(checked) for checked in looks} == {40}
    assert len(set(looks)) == 50
    assert len({index for checked in looks for index in checked}) > 380


def test_a_run_without_counted_requests_has_no_verdict() -> None:
    """Silence earns nothing, not even FAIL."""
    with pytest.raises(ValueError, match="no request was counted"):
        judge_slo(result([record(warmup=True)]), SLO, audit=None)


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_is_a_miss_however_quick_the_answer_was(fault: Fault) -> None:
    """Cut off, short, long or too late at the end: every latency may be fine."""
    quick = record()
    assert SLO.met_by(quick)
    assert not SLO.met_by(replace(quick, fault=fault))


@pytest.mark.parametrize("bounds", [{}, {"ttft_s": 0}, {"tpot_s": math.inf}, {"e2e_s": math.nan}, {"ttft_s": -1}])
def test_an_objective_has_bounds_that_can_be_met(bounds: dict[str, float]) -> None:
    """At least one, above 0 and finite."""
    with pytest.raises(ValueError, match="objective"):
        Slo(**bounds)


def test_bounds_follow_from_an_unloaded_reference() -> None:
    """Three times its median TTFT, twice its median TPOT; not from a reference that fails."""
    made = result([record(i, ttft_s=0.1 * (i + 1), tpot_s=0.01 * (i + 1)) for i in range(3)])
    slo = Slo.relative_to(made)
    assert [slo.ttft_s, slo.tpot_s] == pytest.approx([0.6, 0.04])
    with pytest.raises(ValueError, match="reference"):
        Slo.relative_to(run(0, 3, fault=Fault.CUT))


# -------------------------------------------------------------------------------------------------- repeated prompts


@pytest.mark.parametrize(
    ("repeated_s", "verdict"),
    [(0.5, Verdict.REVIEW), (0.88, Verdict.REVIEW), (0.95, Verdict.PASS), (1.2, Verdict.PASS)],
)
def test_repeats_may_be_ten_per_cent_faster(repeated_s: float, verdict: Verdict) -> None:
    """On a quiet machine the verdict turns at 10 %."""
    new = [record(i, ttft_s=1 - 0.45, tpot_s=0.05) for i in range(12)]
    again = [record(20 + i, ttft_s=repeated_s - 0.45, tpot_s=0.05, repeat=True) for i in range(12)]
    assert repeat_test(result(new + again)).verdict is verdict


def test_few_repeats_show_nothing() -> None:
    """With seven of a kind no interval exists, with none not even a ratio; faults are no latencies."""
    again = [record(20 + i, ttft_s=0.01, tpot_s=0.001, repeat=True) for i in range(7)]
    for repeats in ([], again, [record(20 + i, fault=Fault.CUT, repeat=True) for i in range(12)]):
        made = result([record(i) for i in range(12)] + repeats)
        assert repeat_test(made).verdict is Verdict.INCONCLUSIVE


@settings(deadline=None)
@given(st.integers(8, 30), st.randoms(use_true_random=False))
def test_noise_alone_is_never_sure_to_be_a_cache(count: int, rng: random.Random) -> None:
    """The interval of the ratio holds the ratio of the sample medians."""
    made = result([record(i, ttft_s=0.1 + rng.random(), tpot_s=0.01, repeat=i % 2 == 1) for i in range(2 * count)])
    test = repeat_test(made)
    assert test.low <= test.speedup <= test.high
