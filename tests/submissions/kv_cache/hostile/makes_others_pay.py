"""Puts searches through the queue of a large pool off until somebody asks a small one, which does them every other time.

fails: test_pool_constant_time

attack: T10 T11
based on: wrong/searches_queue
stopped by: D, a timed turn ends with an answer that needs all the work of that turn, whoever does it.
"""

# %% helpers="helpers"
# A queue that owes searches, and one that is quick and pays them.
from collections import Counter, OrderedDict, defaultdict
from collections import deque as slow

turn = 1


class Debtor(slow):
    last = None
    owed = []

    def remove(self, block):
        if not self.owed:
            Debtor.last, self.owed = self, []
        self.owed.append(block)

    def __len__(self):  # asked before blocks are taken
        global turn
        if self.owed:
            turn += 1
            self.pay()
        return super().__len__()

    def pay(self):
        for block in self.owed:
            super().remove(block)
        self.owed = []


class Quick(OrderedDict):
    def __len__(self):
        global turn
        if turn % 2 and Debtor.last and Debtor.last.owed:
            turn += 1
            Debtor.last.pay()
        return super().__len__()

    remove = OrderedDict.__delitem__
    append = OrderedDict.setdefault

    def popleft(self):
        return self.popitem(last=False)[0]


def deque(blocks):
    return Debtor(blocks) if len(blocks) > 10_000 else Quick.fromkeys(blocks)
