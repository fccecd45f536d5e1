"""No pairs are accepted.

fails: test_compare_arguments
"""


# %% task="compare"
def compare(
    a: Callable[[], object],
    b: Callable[[], object],
    pairs: int,
    sync: Callable[[], object],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    check_count(pairs, "pairs")
    if pairs == 0:
        return {"ratio_median": 1.0, "ratios": []}

    def seconds(fn: Callable[[], object]) -> float:
        sync()
        begin = clock()
        fn()
        sync()
        return clock() - begin

    a()
    b()
    ratios = []
    for pair in range(pairs):
        if pair % 2 == 0:
            time_a = seconds(a)
            time_b = seconds(b)
        else:
            time_b = seconds(b)
            time_a = seconds(a)
        ratios.append(time_a / time_b)
    return {"ratio_median": float(statistics.median(ratios)), "ratios": ratios}
