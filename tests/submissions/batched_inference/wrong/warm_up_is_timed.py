"""The warm-up is timed too.

fails: test_benchmark_example test_benchmark_device
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
    times = []
    for _ in range(warmup + repeats):
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
        "p95_s": ordered[low] + (rank - low) * (ordered[high] - ordered[low]),
        "times_s": times,
    }
