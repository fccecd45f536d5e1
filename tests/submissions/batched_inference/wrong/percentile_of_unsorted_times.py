"""Percentile without sorting.

fails: test_benchmark_example test_benchmark_statistics
"""


# %% task="benchmark"
def benchmark(
    fn: Callable[[], object],
    warmup: int,
    repeats: int,
    sync: Callable[[], object],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    check_count(warmup, "warmup")
    check_count(repeats, "repeats", 1)
    for _ in range(warmup):
        fn()
    times = []
    for _ in range(repeats):
        sync()
        begin = clock()
        fn()
        sync()
        times.append(clock() - begin)
    ordered = sorted(times)
    rank = 0.95 * (repeats - 1)
    low = int(rank)
    high = min(low + 1, repeats - 1)
    return {
        "min_s": ordered[0],
        "median_s": float(statistics.median(times)),
        "p95_s": times[low] + (rank - low) * (times[high] - times[low]),
        "times_s": times,
    }
