"""Sleeps in the first calls on every pool so that few rounds are timed, and searches the queue in all.

fails: test_pool_constant_time

attack: T10
based on: wrong/searches_queue
stopped by: D, the judge decides how many rounds there are, and takes the fastest of each pool.
"""

# %% helpers="helpers"
# The queue sleeps in its first searches.
import time
from collections import Counter, defaultdict
from collections import deque as fast


class deque(fast):
    searched = 0

    def remove(self, block):
        type(self).searched += 1
        if self.searched < 40:
            time.sleep(0.001)
        fast.remove(self, block)
