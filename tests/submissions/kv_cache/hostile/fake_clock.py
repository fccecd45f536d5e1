"""Replaces every clock that Python has by one that stands still, and searches the queue for each block.

fails: test_pool_constant_time

attack: T1
based on: wrong/searches_queue
stopped by: P, the clock that counts is read in the judge; the worker's own one measures nothing.
"""

# %% helpers="helpers"
# All clocks stand still, whatever name they are called by.
import datetime
import gc
import sys
import time
from collections import Counter, defaultdict, deque

for name in ("time", "perf_counter", "monotonic", "process_time", "thread_time"):
    still = getattr(time, name)()
    frozen = lambda still=still: still
    real = getattr(time, name)
    setattr(time, name, frozen)
    setattr(time, f"{name}_ns", lambda still=still: int(still * 1e9))
    for module in list(sys.modules.values()):
        for alias, value in list(getattr(module, "__dict__", {}).items()):
            if value is real:
                setattr(module, alias, frozen)
try:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.clock_settime(0, bytes(16))
    libc.settimeofday(bytes(16), None)
except Exception as error:
    print(error)
