"""Arrays wherever there is more than one number."""

# %% helpers="helpers"
import asyncio
import itertools
import json
import math
import random
import re

import numpy as np

# %% task="poisson_arrivals"
def poisson_arrivals(n, rate, seed):
    if n < 0:
        raise ValueError(f"n must be 0 or more, not {n}")
    if not rate > 0:
        raise ValueError(f"rate must be above 0, not {rate}")
    gaps = np.zeros(n) if np.isinf(rate) else np.random.default_rng(seed).exponential(1 / rate, n)
    return np.cumsum(gaps).tolist()


# %% task="summarize"
def summarize(records, duration_s, slo):
    if duration_s <= 0:
        raise ValueError("duration_s must be positive")
    good = [r for r in records if r.error is None]
    start = np.array([r.scheduled_s for r in good])
    ttft = np.array([r.first_token_s for r in good]) - start
    e2el = np.array([r.finished_s for r in good]) - start
    tokens = np.array([r.output_tokens for r in good], dtype=int)
    many = tokens > 1
    tpot = np.where(many, (e2el - ttft) / np.maximum(tokens - 1, 1), 0.0)

    def describe(values):
        if values.size == 0:
            return {"mean": float("nan"), "p50": float("nan"), "p99": float("nan")}
        return {
            "mean": float(values.mean()),
            "p50": float(np.percentile(values, 50)),
            "p99": float(np.percentile(values, 99)),
        }

    kept = (ttft <= slo.ttft_s) & (tpot <= slo.tpot_s) & (e2el <= slo.e2el_s)
    return Summary(
        completed=len(good),
        failed=len(records) - len(good),
        request_throughput=len(good) / duration_s,
        output_throughput=float(tokens.sum() / duration_s),
        goodput=float(kept.sum() / duration_s),
        ttft_s=describe(ttft),
        tpot_s=describe(tpot[many]),
        e2el_s=describe(e2el),
    )


# %% task="counter_rate"
def counter_rate(samples):
    if len(samples) < 2:
        raise ValueError("samples: two or more")
    times, values = np.array(samples, dtype=float).T
    if (np.diff(times) <= 0).any():
        raise ValueError("samples: times must grow")
    grown = np.where(np.diff(values) < 0, values[1:], np.diff(values))
    return float(grown.sum() / (times[-1] - times[0]))


# %% task="histogram_quantile"
def histogram_quantile(q, buckets):
    if len(buckets) < 2:
        return math.nan
    bounds, counts = np.array(sorted(buckets), dtype=float).T
    if not np.isinf(bounds[-1]) or counts[-1] == 0:
        return math.nan
    if not 0 <= q <= 1:
        return math.copysign(math.inf, q)
    rank = q * counts[-1]
    at = int(np.searchsorted(counts, rank))
    if at == len(bounds) - 1:
        return float(bounds[-2])
    if at == 0 and bounds[0] <= 0:
        return float(bounds[0])
    lower, below = (bounds[at - 1], counts[at - 1]) if at else (0.0, 0.0)
    return float(lower + (bounds[at] - lower) * (rank - below) / (counts[at] - below))
