"""Starts programs, of which some are not there, and copes with whatever happens.

twin of: V13 V18
"""

# %% helpers="helpers"
# As one does in notebooks: which GPU is here?
import os
import shutil
import subprocess
import sys
from bisect import bisect_left

for command in (["nvidia-smi"], ["git", "rev-parse", "HEAD"], [sys.executable, "-c", "print(1 + 1)"], ["/bin/true"]):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        print(command[0], done.returncode, done.stdout.strip()[:20])
    except (OSError, subprocess.SubprocessError) as error:
        print(command[0], error)
print(shutil.which("nvcc"), os.system("exit 0"))


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
