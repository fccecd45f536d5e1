"""Draws gaps evenly between 0 and twice the mean.

fails: test_arrivals_are_poisson
"""


# %% task="poisson_arrivals"
def poisson_arrivals(n: int, rate: float, seed: int) -> list[float]:
    """`n` times of arrival at `rate` requests per second, as Python floats.

    Raises:
        ValueError: `n` is negative or `rate` is not above 0. The text names the argument.
    """
    if n < 0:
        raise ValueError("n must not be negative")
    if not rate > 0:
        raise ValueError("rate must be above 0")
    draw = random.Random(seed)
    times, now = [], 0.0
    for _ in range(n):
        now += 0.0 if math.isinf(rate) else draw.uniform(0, 2 / rate)
        times.append(now)
    return times
