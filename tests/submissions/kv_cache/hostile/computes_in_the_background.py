"""Leaves searches through the queue of a large pool to a thread, and lets a small one wait for it every other time.

fails: test_pool_constant_time

attack: T6 T10
based on: wrong/searches_queue
stopped by: D, a timed turn ends with an answer that needs all the work of that turn, whoever does it.
"""

# %% helpers="helpers"
# A queue with a servant, and one that is quick and waits for it.
import time
from collections import Counter, OrderedDict, defaultdict
from collections import deque as slow
from concurrent.futures import ThreadPoolExecutor

servants = ThreadPoolExecutor(1)
turn = 1


class Served(slow):
    last = None
    search = None

    def remove(self, block):
        if self.search is None:
            self.owed = []
            self.search = servants.submit(self.serve, self.owed)
            Served.last = self
        self.owed.append(block)

    def serve(self, owed):
        time.sleep(0.003)  # the answer goes out first
        for block in owed:
            super().remove(block)

    def __len__(self):  # asked before blocks are taken
        global turn
        if self.search:
            turn += 1
            self.search.result()
            self.search = None
        return super().__len__()


class Quick(OrderedDict):
    def __len__(self):
        global turn
        if turn % 2 and Served.last and Served.last.search:
            turn += 1
            Served.last.search.result()
            Served.last.search = None
        return super().__len__()

    remove = OrderedDict.__delitem__
    append = OrderedDict.setdefault

    def popleft(self):
        return self.popitem(last=False)[0]


def deque(blocks):
    return Served(blocks) if len(blocks) > 10_000 else Quick.fromkeys(blocks)
