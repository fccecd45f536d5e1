"""Takes events in any order.

fails: test_stream_arguments
"""


# %% task="measure_stream"
def measure_stream(sent_s: float, events: Sequence[tuple[float, int]]) -> dict[str, object]:
    before = sent_s
    for time_s, n_tokens in events:
        if n_tokens < 0:
            raise ValueError(
                f"events must be in order, with counts of at least 0, not {(time_s, n_tokens)} after {before}"
            )
        before = time_s
    times = [time_s for time_s, n_tokens in events if n_tokens]
    total = sum(n_tokens for _, n_tokens in events)
    return {
        "ttft_s": times[0] - sent_s if times else None,
        "tpot_s": (times[-1] - times[0]) / (total - 1) if total > 1 else None,
        "itl_s": [late - early for early, late in pairwise(times)],
    }
