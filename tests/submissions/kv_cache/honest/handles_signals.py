"""Sets handlers for signals and an alarm of its own, and takes them back.

twin of: V21
"""

# %% helpers="helpers"
# A time-out for one's own experiments.
import signal
from bisect import bisect_left


def late(number, frame):
    raise TimeoutError


before = signal.signal(signal.SIGALRM, late)
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    while True:
        pass
except TimeoutError:
    print("stopped")
signal.setitimer(signal.ITIMER_REAL, 0)
signal.signal(signal.SIGALRM, before)
signal.signal(signal.SIGINT, signal.default_int_handler)


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
