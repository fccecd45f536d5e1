"""Averages every request's own speed in place of the total over the wall time.

fails: test_summary_example test_summary_of_random_records test_summary_edges
"""


# %% task="summarize"
def summarize(records: list[RequestRecord], duration_s: float, slo: Slo) -> Summary:
    """The load test `records`, which took `duration_s` seconds, in numbers.

    Every record without an error has at least one piece of text, so a `first_token_s` and a `finished_s`.

    Raises:
        ValueError: `duration_s` is not above 0. The text names it.
    """
    if not duration_s > 0:
        raise ValueError("duration_s must be above 0")

    def statistic(values: list[float]) -> dict[str, float]:
        if not values:
            return dict.fromkeys(("mean", "p50", "p99"), math.nan)
        ordered = sorted(values)

        def percentile(share: float) -> float:
            place = share * (len(ordered) - 1)
            low = math.floor(place)
            high = min(low + 1, len(ordered) - 1)
            return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

        return {"mean": statistics.fmean(ordered), "p50": percentile(0.5), "p99": percentile(0.99)}

    done = [record for record in records if record.error is None]
    ttft = [record.first_token_s - record.scheduled_s for record in done]
    e2el = [record.finished_s - record.scheduled_s for record in done]
    tpot = [
        (total - first) / (record.output_tokens - 1) if record.output_tokens > 1 else None
        for record, first, total in zip(done, ttft, e2el, strict=True)
    ]
    good = sum(
        first <= slo.ttft_s and (each or 0.0) <= slo.tpot_s and total <= slo.e2el_s
        for first, each, total in zip(ttft, tpot, e2el, strict=True)
    )
    return Summary(
        len(done),
        len(records) - len(done),
        len(done) / duration_s,
        sum(record.output_tokens / total for record, total in zip(done, e2el)) / max(1, len(done)),
        good / duration_s,
        statistic(ttft),
        statistic([each for each in tpot if each is not None]),
        statistic(e2el),
    )
