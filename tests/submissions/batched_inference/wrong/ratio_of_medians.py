"""The ratio of the medians.

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
    ratios, all_a, all_b = [], [], []
    for pair in range(pairs):
        if pair % 2 == 0:
            time_a = seconds(a)
            time_b = seconds(b)
        else:
            time_b = seconds(b)
            time_a = seconds(a)
        all_a.append(time_a)
        all_b.append(time_b)
        ratios.append(time_a / time_b)
    return {"ratio_median": statistics.median(all_a) / statistics.median(all_b), "ratios": ratios}
