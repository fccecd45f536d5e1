"""Logs to stderr and to a file, in debug mode, with tracebacks of exceptions that it handled.

twin of: V4 V10
"""

# %% helpers="helpers"
# The root logger, configured.
import logging
import sys
from bisect import bisect_left

logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, force=True)
log = logging.getLogger("student")
log.addHandler(logging.FileHandler("student.log"))
try:
    check_count(-1, "test")
except ValueError:
    log.exception("as expected")
sys.excepthook = lambda *error: log.error("uncaught", exc_info=error)


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(limit, "limit", 1)

    def too_long(length):
        try:
            return max_concurrency(spec, budget, length, block_size, tp) < concurrency
        except InfeasibleError:
            return True

    log.debug('searching up to %d', limit); return bisect_left(range(1, limit + 1), True, key=too_long)
