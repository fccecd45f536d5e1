"""Counts nothing at a restart.

fails: test_rate_example test_rate_restarts
"""


# %% task="counter_rate"
def counter_rate(samples: list[tuple[float, float]]) -> float:
    """Average growth per second of a counter, given as (time, value), times ascending.

    Raises:
        ValueError: there are fewer than two samples, or a time is not after the one before it.
    """
    if len(samples) < 2:
        raise ValueError("samples must be at least two")
    grown = 0.0
    for (before_s, before), (after_s, after) in itertools.pairwise(samples):
        if not after_s > before_s:
            raise ValueError("samples must be in the order of their times")
        grown += max(0.0, after - before)
    return grown / (samples[-1][0] - samples[0][0])
