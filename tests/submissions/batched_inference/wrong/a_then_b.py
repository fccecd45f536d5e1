"""All of a, then all of b.

fails: test_compare_example test_compare_drift
"""


# %% task="compare"
def compare(
    a: Callable[[], object],
    b: Callable[[], object],
    pairs: int,
    sync: Callable[[], object],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    check_count(pairs, "pairs", 1)

    def seconds(fn: Callable[[], object]) -> float:
        sync()
        begin = clock()
        fn()
        sync()
        return clock() - begin

    a()
    b()
    times_a = [seconds(a) for _ in range(pairs)]
    times_b = [seconds(b) for _ in range(pairs)]
    ratios = [x / y for x, y in zip(times_a, times_b)]
    return {"ratio_median": float(statistics.median(ratios)), "ratios": ratios}
