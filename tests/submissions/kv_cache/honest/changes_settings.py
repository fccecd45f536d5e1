"""Changes settings of its process: umask, locale, switch interval, hooks, limits, current folder.

twin of: V22 T14
"""

# %% helpers="helpers"
# All of it is the process's own.
import faulthandler
import locale
import os
import resource
import sys
import tempfile
from bisect import bisect_left

os.umask(0o077)
locale.setlocale(locale.LC_ALL, "C")
sys.setswitchinterval(0.001)
resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
os.chdir(tempfile.gettempdir())
sys.path.append(os.getcwd())
faulthandler.enable()
sys.stdout.reconfigure(line_buffering=True)
os.nice(1)


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
