"""Looks at the environment, the machine and its command line, to print them and to set defaults.

twin of: D6 T11
"""

# %% helpers="helpers"
# The header that many notebooks print.
import os
import platform
import sys
from bisect import bisect_left
from pathlib import Path

DEBUG = os.environ.get("DEBUG") == "1" or "--debug" in sys.argv
print(platform.platform(), sys.version, os.cpu_count(), len(os.sched_getaffinity(0)))
for path in ("/proc/cpuinfo", "/proc/meminfo", "/etc/os-release", "/proc/self/status", "/sys/fs/cgroup/memory.max"):
    try:
        print(path, len(Path(path).read_text()))
    except OSError as error:
        print(error)
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(limit, "limit", 1)

    def too_long(length):
        try:
            return max_concurrency(spec, budget, length, block_size, tp) < concurrency
        except InfeasibleError:
            return True

    return bisect_left(range(1, limit + 1), True, key=too_long)
