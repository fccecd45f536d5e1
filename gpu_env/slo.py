"""Whether a server kept its objectives: exact binomial verdicts, goodput, the audit of answers, the test for caches.

A request meets a service level objective (SLO) when it was answered without fault and every latency that the objective
names is within its bound; everything else is a miss. With m misses of n requests, share p and confidence c,

    PASS  where P(at most m misses of n) <= 1 - c if a share of p met the objective: it was shown that p or more do
    FAIL  where P(at least m misses of n) <= 1 - c under the same: it was shown that fewer do
    else  INCONCLUSIVE

So 29, 46, 61, 76 requests with 0, 1, 2, 3 misses show "90 % meet it" at 95 % confidence (`requests_needed`). MLPerf's
early stopping is the same idea. The size of a run must be chosen before it: measuring again until it passes voids c.

Not covered: requests that are not independent, as when one stall makes many of them late (MLPerf neglects that too);
taking the data (`gpu_env.load`); a bound's number, which comes from a reference server in the same session.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

from gpu_env.load import Fault, LoadResult, Record, Request
from gpu_env.sequential import Verdict, interval

__all__ = ["Audit", "RepeatTest", "Slo", "SloVerdict", "audit", "judge_slo", "repeat_test", "requests_needed", "wilson"]

MAX_LAG_S = 0.005
"""A client whose own lag has a higher 99th percentile measured itself, not the server."""
PERHAPS_OURS = {Fault.TIME, Fault.CROWDED, Fault.REFUSED}
"""Faults that a late client could have had a part in; no lag of ours makes a server's answer wrong."""
AUDIT_SHARE, AUDIT_LEAST = 0.1, 20
"""MLPerf's TEST01 looks at a share of the answers; 20 find a server that garbles every tenth with a chance of 88 %."""
REPEAT_GAIN = 1.10
"""A repeated prompt may be 10 % faster: MLPerf inference, compliance TEST04."""


@dataclass(frozen=True)
class Slo:
    """Upper bounds in seconds; None: no bound."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def __post_init__(self) -> None:
        given = [bound for bound in (self.ttft_s, self.tpot_s, self.e2e_s) if bound is not None]
        if not given or not all(0 < bound < math.inf for bound in given):
            raise ValueError(f"an objective needs at least one bound, each above 0 and finite, not {self}")

    @classmethod
    def relative_to(cls, unloaded: LoadResult, ttft: float = 3.0, tpot: float = 2.0) -> Slo:
        """So many times the median TTFT and TPOT of a reference server that was asked one thing at a time."""
        good = [record for record in unloaded.counted if record.fault is None]
        ttfts = [record.ttft_s for record in good if record.ttft_s is not None]
        tpots = [record.tpot_s for record in good if record.tpot_s is not None]
        if not ttfts or not tpots:
            raise ValueError("the reference server answered nothing in full: it has no latency to be relative to")
        return cls(ttft_s=ttft * median(ttfts), tpot_s=tpot * median(tpots))

    def met_by(self, record: Record, lag_s: float = 0.0) -> bool:
        """Whether all bounds hold, with `lag_s` taken off the latencies that count from the scheduled time."""
        within = (
            _within(record.ttft_s, self.ttft_s, lag_s),
            _within(record.tpot_s, self.tpot_s, 0.0),
            _within(record.e2e_s, self.e2e_s, lag_s),
        )
        return record.fault is None and all(within)


def _within(latency_s: float | None, bound_s: float | None, lag_s: float) -> bool:
    return bound_s is None or (latency_s is not None and latency_s - lag_s <= bound_s)


@dataclass(frozen=True)
class Audit:
    """Which answers of a run were looked at, and which of these were wrong; indices into `LoadResult.records`."""

    checked: tuple[int, ...]
    wrong: tuple[int, ...]


def audit(
    result: LoadResult,
    right: Callable[[Request, str], bool],
    rng: random.Random,
    share: float = AUDIT_SHARE,
    least: int = AUDIT_LEAST,
) -> Audit:
    """Have a random `share` of the counted answers without fault, at least `least`, looked at by `right(request, text)`.

    `text` is verbatim: leading blanks and whatever else came first are part of it. Drawn here, so after the run.
    """
    good = [record for record in result.counted if record.fault is None]
    count = min(len(good), max(math.ceil(share * len(good)), least))
    checked = sorted(rng.sample(good, count), key=lambda record: record.index)
    wrong = [record for record in checked if not right(record.request, record.text)]
    return Audit(tuple(record.index for record in checked), tuple(record.index for record in wrong))


@dataclass(frozen=True)
class SloVerdict:
    """A verdict and what it rests on."""

    verdict: Verdict
    reason: str
    """A sentence for people."""
    met: int
    total: int
    low: float
    high: float
    """Wilson's interval of the share that meets the objective; for people, the verdict is exact."""
    goodput_per_s: float
    """Requests per second that met all bounds."""


def judge_slo(
    result: LoadResult, slo: Slo, *, audit: Audit | None, share: float = 0.90, confidence: float = 0.95
) -> SloVerdict:
    """Whether a share of `share` of the requests meets the objective; `audit=None` says that nobody looked at answers.

    FAIL for one wrong answer in the audit, and whenever faults alone are enough for it. Otherwise INCONCLUSIVE where
    the client was late (our fault), or where the verdict would not be FAIL without the client's own lag.
    Raises ValueError without counted requests, or with a bound on TPOT where an answer of one token would do.
    """
    records = result.counted
    if not records:
        raise ValueError("no request was counted: all were warm-up or repeats")
    if slo.tpot_s is not None and min(record.request.min_tokens for record in records) < 2:
        raise ValueError("TPOT needs answers of two tokens: give every request min_tokens of at least 2")
    total, met = len(records), sum(slo.met_by(record) for record in records)
    verdict = _decide(total - met, total, share, confidence)
    reason = f"{met} of {total} requests met the objective; {share:.0%} must, at {confidence:.0%} confidence."
    surely_theirs = sum(record.fault is not None and record.fault not in PERHAPS_OURS for record in records)
    if audit is not None and audit.wrong:
        verdict, reason = Verdict.FAIL, f"{len(audit.wrong)} of {len(audit.checked)} audited answers were wrong."
    elif _decide(surely_theirs, total, share, confidence) is Verdict.FAIL:
        verdict = Verdict.FAIL
    elif result.client_lag_p99_s > MAX_LAG_S:
        verdict = Verdict.INCONCLUSIVE
        reason = f"The client itself was late by {result.client_lag_p99_s * 1e3:.1f} ms (99th percentile): nobody's "
        reason += "fault but the machine's. Measure again, with a core for the client."
    elif verdict is Verdict.FAIL:
        without_lag = sum(slo.met_by(record, record.lag_s) for record in records)
        if _decide(total - without_lag, total, share, confidence) is not Verdict.FAIL:
            verdict, reason = Verdict.INCONCLUSIVE, reason + " Without the client's own lag it would not be FAIL."
    low, high = wilson(met, total, confidence)
    return SloVerdict(verdict, reason, met, total, low, high, result.per_s(met))


def _decide(misses: int, total: int, share: float, confidence: float) -> Verdict:
    level = 1 - confidence + 1e-12  # 1e-12: rounding must not undo an exact equality
    if at_most(misses, total, 1 - share) <= level:
        return Verdict.PASS
    if misses and 1 - at_most(misses - 1, total, 1 - share) <= level:
        return Verdict.FAIL
    return Verdict.INCONCLUSIVE


def at_most(misses: int, total: int, rate: float) -> float:
    """P(Binomial(total, rate) <= misses). Raises ValueError unless 0 <= misses <= total and 0 < rate < 1."""
    if not (0 <= misses <= total and 0 < rate < 1):
        raise ValueError(f"need 0 <= misses <= total and 0 < rate < 1, not {misses}, {total} and {rate}")
    if misses == total:
        return 1.0
    log_rate, log_rest, ways = math.log(rate), math.log1p(-rate), math.lgamma(total + 1)
    terms = (
        ways - math.lgamma(k + 1) - math.lgamma(total - k + 1) + k * log_rate + (total - k) * log_rest
        for k in range(misses + 1)
    )
    return min(1.0, math.fsum(map(math.exp, terms)))


def requests_needed(share: float, confidence: float = 0.95, misses: int = 0) -> int:
    """The smallest run that passes with that many misses; a run must be planned with some, for no server is perfect."""
    total = misses + 1
    while _decide(misses, total, share, confidence) is not Verdict.PASS:
        total += 1
    return total


def wilson(met: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of a share (Wilson, J. Am. Stat. Assoc. 22 (1927), 209). Raises ValueError unless met <= total."""
    if not (0 <= met <= total and total > 0 and 0 < confidence < 1):
        raise ValueError(f"need 0 <= met <= total and 0 < confidence < 1, not {met}, {total} and {confidence}")
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    centre = (met + z2 / 2) / (total + z2)
    half = math.sqrt(z2 * (met * (total - met) / total + z2 / 4)) / (total + z2)
    return (0.0 if met == 0 else max(0.0, centre - half)), (1.0 if met == total else min(1.0, centre + half))


@dataclass(frozen=True)
class RepeatTest:
    """Whether repeated prompts are answered faster than new ones: PASS, REVIEW (a cache), INCONCLUSIVE."""

    verdict: Verdict
    speedup: float
    """Median end-to-end latency of new prompts over that of repeated ones."""
    low: float
    high: float
    """Between these lies the true ratio, with a chance of at least 98 %."""


def repeat_test(result: LoadResult, level: float = 0.01) -> RepeatTest:
    """MLPerf's TEST04 with an interval: REVIEW where repeated prompts are surely more than 10 % faster, PASS where surely not.

    Mix requests with `repeat=True` into a run, with prompts and answers as long as the others'. Each median has its
    exact interval, missed with a chance of `level` at most; below 8 requests of either kind it says INCONCLUSIVE.
    """
    new, again = (_log_e2e(result, repeat) for repeat in (False, True))
    (new_low, new_high), (again_low, again_high) = interval(new, level), interval(again, level)
    low, high = _exp(new_low - again_high), _exp(new_high - again_low)
    if not new or not again:
        return RepeatTest(Verdict.INCONCLUSIVE, math.nan, 0.0, math.inf)
    speedup = math.exp(median(new) - median(again))
    if low > REPEAT_GAIN:
        return RepeatTest(Verdict.REVIEW, speedup, low, high)
    return RepeatTest(Verdict.PASS if high <= REPEAT_GAIN else Verdict.INCONCLUSIVE, speedup, low, high)


def _log_e2e(result: LoadResult, repeat: bool) -> Sequence[float]:
    found = [r.e2e_s for r in result.records if not r.warmup and r.request.repeat is repeat and r.fault is None]
    return [math.log(e2e_s) for e2e_s in found if e2e_s is not None]


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
