"""Answers with arrays, NaN, enormous numbers, deep nests and odd keys, to make comparisons in the judge stumble.

fails: test_pool_*

attack: V6 V15
stopped by: O, only values of exactly the expected type are compared at all, arrays by their bytes.
"""

# %% helpers="helpers"
# Something else in each call.
import numpy

NEST = []
for _ in range(28):
    NEST = [NEST]
ODD = [
    numpy.zeros(3), numpy.array(["x"]), numpy.float64("nan"), numpy.zeros((0, 5)), float("nan"), 10**4_000, -(1 << 70), NEST,
    {float("nan"): 1, True: 2, 1.5: 3}, {"__class__": "int"}, "\x1b[31m<script>alert(1)</script>", b"\xff\xfe", (), [None] * 1000,
    {(1, 2): numpy.zeros(2)}, 1e308 * 10, "x" * 100_000, [numpy.zeros(2)] * 3, range(3), Ellipsis, NotImplemented, type, object(),
]  # fmt: skip


# %% task="BlockPool"
class BlockPool:
    turn = 0

    def __init__(self, num_blocks, block_size, *more):
        check_count(num_blocks, "num_blocks", 2)
        check_count(block_size, "block_size", 1)
        self.num_blocks = num_blocks

    def odd(self, *args):
        BlockPool.turn += 1
        return ODD[BlockPool.turn % len(ODD)]

    get_new_blocks = touch = free_blocks = get_cached_block = reset = usage = ref_count = odd

    def num_free_blocks(self):
        return self.num_blocks - 1

    def cache_full_block(self, *args):
        return numpy.zeros(2)
