"""Uses its own clock.

fails: test_benchmark_example test_benchmark_device test_benchmark_statistics
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
        begin = time.perf_counter()
        fn()
        sync()
        times.append(time.perf_counter() - begin)
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
