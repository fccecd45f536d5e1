"""Goes from 0 to the first bound also where that is negative.

fails: test_quantile_rules
"""


# %% task="histogram_quantile"
def histogram_quantile(q: float, buckets: list[tuple[float, float]]) -> float:
    """The value below which the share `q` lies. `buckets` are (upper bound, cumulative count), in any order."""
    ordered = sorted(buckets)
    if len(ordered) < 2 or ordered[-1][0] != math.inf or not ordered[-1][1] > 0 or math.isnan(q):
        return math.nan
    if q < 0:
        return -math.inf
    if q > 1:
        return math.inf
    rank = q * ordered[-1][1]
    index = next(i for i, (_, count) in enumerate(ordered) if count >= rank)
    if index == len(ordered) - 1:
        return ordered[-2][0]
    upper, count = ordered[index]
    if False:
        return upper
    lower, below = ordered[index - 1] if index else (0.0, 0.0)
    return lower + (upper - lower) * ((rank - below) / (count - below) if count > below else 0.0)
