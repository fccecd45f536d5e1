"""The hidden checks of `kv_cache`. They ask for nothing that the handout does not say."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from autograder.checks import expect_close, expect_equal, expect_raises, expect_type, fail
from grading.kv_cache import oracles
from grading.kv_cache.oracles import Capacity, PoolModel, build

NOT_INTS: tuple[Any, ...] = (True, 2.0, "2")
GQA = {"n_heads": 12, "n_kv_heads": 4, "head_dim": 32}


def spec_of(submission: Any, **layer: Any) -> Any:
    return build(submission, [{**GQA, **layer}] * 2)


def expect_count_checked(call: Callable[[Any], Any], name: str, minimum: int) -> None:
    """`call(value)` must refuse what is no int, and ints below `minimum`, naming the argument."""
    for value in NOT_INTS:
        expect_raises("TypeError", lambda value=value: call(value), f"{name}={value!r}", naming=name)
    for value in (minimum - 1, minimum - 20):
        expect_raises("ValueError", lambda value=value: call(value), f"{name}={value}", naming=name)


# ------------------------------------------------------------------------------------------------- kv_bytes_per_token


def test_bytes_quantized(submission, rng):
    """Quantised layers store packed bits, and a scale (and zero point) for each group, for keys and values on each KV head.

    Hint: Work out one head of one token first: its bits, then its groups. Keys and values may differ in length.
    """
    for bits, group_size, scale_bytes, zero_point_bytes in (
        (4, 64, 2, 0),
        (8, 128, 2, 0),
        (2, 32, 2, 2),
        (4, 32, 4, 1),
        (8, 16, 2, 0),
    ):
        fields = {
            "bits": bits,
            "group_size": group_size,
            "scale_bytes": scale_bytes,
            "zero_point_bytes": zero_point_bytes,
        }
        for value_head_dim in (128, 256):
            layer = {
                "n_heads": 32,
                "n_kv_heads": rng.choice([2, 4, 8]),
                "head_dim": 128,
                "value_head_dim": value_head_dim,
            }
            layer |= {"quantization": fields, "dtype_bytes": rng.choice([1, 2, 4])}
            for tp in (1, 2, 16):
                what = f"Bytes of a layer with {layer} on one of {tp} ranks"
                expect_equal(
                    submission.kv_bytes_per_token(build(submission, [layer]), tp=tp),
                    oracles.token_bytes(layer, tp),
                    what,
                )


def test_bytes_of_real_caches(submission):
    """A token costs the bytes by which transformers' own cache grows, in models of every kind of attention.

    Hint: Compare with your own count for a model that you can run: cache.layers[i].keys.nbytes, before and after a token.
    """
    for real in [oracles.smollm2_cache(), *oracles.small_caches()]:
        first, second, *_ = sorted(real.bytes_at)
        grown = (real.bytes_at[second] - real.bytes_at[first]) // (second - first)
        expect_equal(
            submission.kv_bytes_per_token(build(submission, real.layers)), grown, f"Bytes per token of {real.name}"
        )
    last = {"n_heads": 8, "n_kv_heads": 2, "head_dim": 24, "window": 5}
    expect_equal(
        submission.kv_bytes_per_token(build(submission, [last])), 192, "Bytes per token of a layer with a window"
    )


def test_bytes_impossible_tp(submission):
    """A tp that is no count, or over which the heads of some layer cannot be spread, is an error that names tp.

    Hint: Query heads are always split evenly. Look at every layer, latent ones too.
    """
    spec = spec_of(submission)
    expect_count_checked(lambda tp: submission.kv_bytes_per_token(spec, tp=tp), "tp", 1)
    latent = {"n_heads": 16, "kv_lora_rank": 64, "qk_rope_head_dim": 16}
    for layers, tp in (
        ([GQA], 6),  # 12 query heads can be split, 4 KV heads can neither be split nor repeated
        ([GQA], 8),  # 4 KV heads could be repeated, 12 query heads cannot be split
        ([{**GQA, "n_kv_heads": 3}], 2),
        ([{**GQA, "n_kv_heads": 12}], 24),
        ([latent], 3),
        ([latent], 32),
        ([latent, {**GQA, "n_heads": 18, "n_kv_heads": 3}], 2),
    ):
        made = build(submission, layers)
        what = f"kv_bytes_per_token with tp={tp} of layers with {layers}"
        expect_raises(
            "ValueError", lambda made=made, tp=tp: submission.kv_bytes_per_token(made, tp=tp), what, naming="tp"
        )
    for tp, expected in ((1, 1_024), (2, 512), (4, 256), (12, 256)):
        expect_equal(
            submission.kv_bytes_per_token(spec, tp=tp), expected, f"Bytes on one of {tp} ranks, which is possible"
        )


# ----------------------------------------------------------------------------------------------------- kv_cache_bytes


def test_cache_equals_real_caches(submission):
    """A contiguous cache has the bytes of transformers' own, below, at and beyond the window.

    Hint: Run a small model with a sliding window yourself, and print cache.layers[0].keys.shape after each token.
    """
    for real in [oracles.smollm2_cache(), *oracles.small_caches()]:
        spec = build(submission, real.layers)
        for tokens, expected in real.bytes_at.items():
            expect_equal(
                submission.kv_cache_bytes(spec, [tokens]), expected, f"Bytes of {real.name} after {tokens} tokens"
            )
        lengths = sorted(real.bytes_at) * 2
        what = f"Bytes of {real.name} for sequences of {lengths} tokens"
        expect_equal(submission.kv_cache_bytes(spec, lengths), sum(real.bytes_at[tokens] for tokens in lengths), what)


def test_cache_equals_counted_slots(submission, rng):
    """Contiguous or paged, any mixture of layers has the bytes that counting tokens and blocks one by one gives.

    Hint: Decide the tokens of each layer and each sequence on its own; a layer's window is its own business.
    """
    for trial in range(40):
        layers = oracles.random_layers(rng)
        block_size = rng.choice([None, 1, 2, 3, 16, 17])
        edges = [
            edge + step
            for edge in (block_size or 16, *(layer.get("window") or 16 for layer in layers))
            for step in (-1, 0, 1)
        ]
        lengths = [rng.choice([*edges, rng.randint(0, 200)]) for _ in range(rng.randint(1, 4))]
        tp = rng.choice([1, 2, 4])
        got = submission.kv_cache_bytes(build(submission, layers), lengths, block_size=block_size, tp=tp)
        what = f"Bytes of {lengths} tokens, block_size={block_size}, tp={tp}, layers {layers} (trial {trial})"
        expect_equal(got, oracles.cache_bytes(layers, lengths, block_size, tp), what)


def test_cache_arguments(submission):
    """Lengths and block_size are checked and named, and lengths may come as a tuple, which cannot be changed.

    Hint: check_count does it for one value; it takes the name to put into the text.
    """
    spec = spec_of(submission)
    expect_equal(
        submission.kv_cache_bytes(spec, (5, 3, 4), block_size=4), 16 * 1_024, "Bytes of a tuple of lengths, paged"
    )
    expect_equal(submission.kv_cache_bytes(spec, (5, 3, 4)), 12 * 1_024, "Bytes of a tuple of lengths, contiguous")
    expect_equal(submission.kv_cache_bytes(spec, ()), 0, "Bytes of no sequences")
    for block_size in (None, 4):
        expect_count_checked(lambda value: submission.kv_cache_bytes(spec, [7, value], block_size), "seq_lens", 0)  # noqa: B023
    expect_count_checked(lambda value: submission.kv_cache_bytes(spec, [7], value), "block_size", 1)
    expect_count_checked(lambda value: submission.kv_cache_bytes(spec, [7], 4, value), "tp", 1)
    expect_raises(
        "ValueError", lambda: submission.kv_cache_bytes(spec, [7], 4, 5), "tp=5 for 12 query heads", naming="tp"
    )


# ---------------------------------------------------------------------------------------------------- max_concurrency


def random_capacity(submission: Any, rng: random.Random, pages: float) -> tuple[Capacity, Any, Any]:
    """Some layers and a budget of about `pages` pages: as they are counted, and as spec and budget of the submission."""
    layers, block_size, tp = oracles.random_layers(rng), rng.choice([1, 4, 16, 17]), rng.choice([1, 2, 4])
    page_bytes = Capacity(layers, 0, block_size, tp).page_bytes
    budget_bytes = int(page_bytes * pages) + rng.choice([-1, 0, 1])
    weights, peak = rng.randint(0, 10**6), rng.randint(0, 10**5)
    # Shares that a float holds exactly, so that the floor of the product is the same however it is written.
    share = rng.choice([1, 2, 4])
    total = (budget_bytes + weights + peak) * share + rng.randint(0, share - 1)
    budget = submission.MemoryBudget(total, 1 / share, weights, peak)
    return Capacity(layers, budget_bytes, block_size, tp), build(submission, layers), budget


def test_concurrency_mixed_layers(submission, rng):
    """For any mixture of layers, the concurrency is the whole pages that there are over the whole pages that one request needs.

    Hint: A page is one block of all layers together. Turn the bytes of one request into pages, rounding up.
    """
    for trial in range(30):
        counted, spec, budget = random_capacity(submission, rng, rng.uniform(1.5, 60))
        length = rng.choice([1, counted.block_size, counted.block_size + 1, rng.randint(2, 300)])
        got = submission.max_concurrency(spec, budget, length, counted.block_size, counted.tp)
        what = f"Concurrency of {length} tokens, tp={counted.tp}, {counted.pages} pages, layers {counted.layers} (trial {trial})"
        expect_close(got, counted.pages / counted.pages_of(length), what)


def test_concurrency_infeasible(submission, rng):
    """InfeasibleError with the missing bytes where no page fits, and a number below 1 where no whole request does.

    Hint: One page is the least that makes sense. What is missing is a page less the budget, also if the budget is negative.
    """
    spec = spec_of(submission)  # 1,024 bytes per token
    for fields, missing in (
        ((16_383, 1.0, 0, 0), 1),
        ((32_768, 0.5, 1, 0), 1),
        ((20_000, 1.0, 10_000, 5_000), 11_384),
        ((10_000, 1.0, 30_000, 5_000), 41_384),
    ):
        budget = submission.MemoryBudget(*fields)
        what = f"max_concurrency with MemoryBudget{fields} and pages of 16,384 bytes"
        for length in (1, 500):
            raised = expect_raises(
                "InfeasibleError",
                lambda budget=budget, length=length: submission.max_concurrency(spec, budget, length, 16),
                what,
            )
            expect_equal(raised.data.get("shortfall_bytes"), missing, f"shortfall_bytes of {what}")
    budget = submission.MemoryBudget(16_384, 1.0, 0, 0)
    expect_close(submission.max_concurrency(spec, budget, 1, 16), 1.0, "Concurrency of 1 token with exactly one page")
    expect_close(
        submission.max_concurrency(spec, budget, 160, 16), 0.1, "Concurrency of 160 tokens with exactly one page"
    )
    counted, made, small = random_capacity(submission, rng, 1.5)
    length = counted.block_size * 40
    got = submission.max_concurrency(made, small, length, counted.block_size, counted.tp)
    expect_close(
        got,
        counted.pages / counted.pages_of(length),
        f"Concurrency of {length} tokens with one page, layers {counted.layers}",
    )


def test_concurrency_arguments(submission):
    """max_model_len, block_size and tp are checked, and named in the error.

    Hint: A request of 0 tokens, or blocks of 0, make no sense.
    """
    spec, budget = spec_of(submission), submission.MemoryBudget(10**6, 1.0, 0, 0)
    expect_count_checked(lambda value: submission.max_concurrency(spec, budget, value, 16), "max_model_len", 1)
    expect_count_checked(lambda value: submission.max_concurrency(spec, budget, 100, value), "block_size", 1)
    expect_count_checked(lambda value: submission.max_concurrency(spec, budget, 100, 16, value), "tp", 1)


# -------------------------------------------------------------------------------------------- max_model_len_that_fits


def test_length_is_the_largest(submission, rng):
    """For any mixture of layers, the answer fits, and nothing longer up to the limit does.

    Hint: Fitting is counted in whole pages per request. Check your answer and the length after it with max_concurrency.
    """
    for trial in range(25):
        counted, spec, budget = random_capacity(submission, rng, rng.choice([0.5, 1, 2, rng.uniform(2, 40), 400]))
        users, limit = rng.choice([1, 2, 3, 7]), rng.choice([1, 16, 17, rng.randint(2, 250)])
        got = submission.max_model_len_that_fits(spec, budget, users, counted.block_size, limit, counted.tp)
        what = f"Longest length of {users} requests up to {limit}, {counted.pages} pages, layers {counted.layers} (trial {trial})"
        expect_equal(got, counted.longest(users, limit), what)


def test_length_arguments(submission):
    """concurrency, block_size, limit and tp are checked and named, also where nothing fits.

    Hint: Check the arguments before you catch an InfeasibleError: it is a ValueError too.
    """
    spec = spec_of(submission)
    for fields in ((10**6, 1.0, 0, 0), (1, 1.0, 0, 0)):
        budget = submission.MemoryBudget(*fields)
        good = {"concurrency": 2, "block_size": 16, "limit": 100, "tp": 1}
        for name in good:
            expect_count_checked(
                lambda value, name=name, budget=budget: submission.max_model_len_that_fits(
                    spec, budget, **good | {name: value}
                ),
                name,
                1,
            )
        what = "tp=5 for 12 query heads"
        expect_raises(
            "ValueError",
            lambda budget=budget: submission.max_model_len_that_fits(spec, budget, 2, 16, 100, 5),
            what,
            naming="tp",
        )


def test_length_of_huge_limit(submission, rng):
    """The answer comes at once however large the limit is, also for a model that has no longest length.

    Hint: If one length fits, every shorter one does. Halve the range that is in question with each look.
    """
    limit = 10**9 - rng.randint(0, 10**6)
    spec, users = spec_of(submission), rng.randint(1, 9)
    budget = submission.MemoryBudget(1024 * rng.randint(10**8, 10**9), 1.0, 0, 0)
    windows = spec_of(submission, window=300)
    got = submission.max_model_len_that_fits(windows, budget, users, 16, limit)
    expect_equal(got, limit, f"Longest length of a model with a window in every layer, limit {limit:,}")
    small = submission.MemoryBudget(1024 * 16 * 10_000 * users, 1.0, 0, 0)
    got = submission.max_model_len_that_fits(spec, small, users, 16, limit)
    expect_equal(got, 160_000, f"Longest length of {users} requests with 10,000 pages each")
    got = submission.max_model_len_that_fits(
        spec, submission.MemoryBudget(1024 * 16 * 20_000_003, 1.0, 0, 0), 2, 16, limit
    )
    expect_equal(got, 16 * 10_000_001, "Longest length of 2 requests with 20,000,003 pages")


# ---------------------------------------------------------------------------------------------------------- BlockPool


class PoolMachine(RuleBasedStateMachine):
    """Calls a pool and `PoolModel` alike, in random order; both must agree after every step, and on the whole queue at the end.

    Everything is drawn from the model, so that a submission cannot steer what is tried.
    """

    make_pool: Callable[..., Any]
    """The submission's `BlockPool`. Not the submission itself: hypothesis looks for rules in all attributes of a machine."""

    def __init__(self) -> None:
        super().__init__()
        self.hashes: list[str | None] = [None]
        self.model = PoolModel(2, True)
        self.pool: Any = None

    @initialize(num_blocks=st.integers(2, 9), block_size=st.integers(1, 2), caching=st.integers(0, 5))
    def start(self, num_blocks: int, block_size: int, caching: int) -> None:
        self.block_size = block_size
        self.model = PoolModel(num_blocks, caching > 0)
        self.pool = self.make_pool(num_blocks, block_size, enable_caching=caching > 0)

    def pick(self, data: st.DataObject, choices: list[Any]) -> Any:
        return choices[data.draw(st.integers(0, len(choices) - 1))]

    def content(self, data: st.DataObject) -> tuple[Any, tuple[int, ...], tuple[Any, ...]]:
        tokens = tuple(data.draw(st.integers(0, 1)) for _ in range(self.block_size))
        return self.pick(data, self.hashes), tokens, self.pick(data, [(), (), (), ("salt",)])

    @rule(n=st.integers(0, 4))
    def allocate(self, n: int) -> None:
        if n > len(self.model.free):
            expect_raises(
                "OutOfBlocksError",
                lambda: self.pool.get_new_blocks(n),
                f"get_new_blocks({n}) with {len(self.model.free)} free",
            )
        else:
            expect_equal(self.pool.get_new_blocks(n), self.model.allocate(n), f"What get_new_blocks({n}) returns")

    @precondition(lambda self: self.model.used())
    @rule(data=st.data())
    def fill(self, data: st.DataObject) -> None:
        block = self.pick(data, self.model.used())
        parent, tokens, extra = self.content(data)
        if self.model.is_cached(block):
            call = lambda: self.pool.cache_full_block(block, parent, list(tokens), extra)  # noqa: E731
            expect_raises("ValueError", call, "Caching a block that is cached already")
            return
        made = self.pool.cache_full_block(block, parent, list(tokens), extra)
        expect_type(made, str, "What cache_full_block returns with the default hash_fn")
        self.model.cache(block, (parent, tokens, extra))
        if made not in self.hashes:
            self.hashes.append(made)

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        parent, tokens, extra = key = self.content(data)
        found = self.pool.get_cached_block(parent, list(tokens), extra)
        expect_equal(found, self.model.find(key), "The block that get_cached_block finds")

    @precondition(lambda self: self.model.cached or self.model.tables)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        alive = sorted({block for block, _ in self.model.cached} | set(self.model.used()))
        blocks = [self.pick(data, alive) for _ in range(data.draw(st.integers(1, 3)))]
        self.pool.touch(blocks)
        self.model.share(blocks)

    @precondition(lambda self: self.model.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table = data.draw(st.integers(0, len(self.model.tables) - 1))
        keep = data.draw(st.integers(0, max(0, len(self.model.tables[table]) - 1)))
        self.pool.free_blocks(self.model.release(table, keep))

    @precondition(lambda self: self.model.free)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        block = self.pick(data, self.model.free)
        others = self.model.used()[:2]
        expect_raises(
            "ValueError", lambda: self.pool.free_blocks([*others, block, *others]), "Freeing a free block among others"
        )
        if not self.model.is_cached(block):
            expect_raises(
                "ValueError", lambda: self.pool.touch([*others, block]), "Touching a free block that is not cached"
            )

    @rule()
    def reset(self) -> None:
        expect_equal(self.pool.reset(), self.model.reset(), "What reset() returns")

    @invariant()
    def agrees(self) -> None:
        if self.pool is None:
            return
        counts = [self.pool.ref_count(block) for block in range(self.model.num_blocks)]
        expect_equal(
            counts, [self.model.count(block) for block in range(self.model.num_blocks)], "The counts of all blocks"
        )
        expect_equal(sum(counts), self.model.holders(), "The sum of all counts")
        free = self.pool.num_free_blocks()
        expect_equal(free, len(self.model.free), "The number of free blocks")
        expect_close(self.pool.usage(), (self.model.num_blocks - 1 - free) / (self.model.num_blocks - 1), "The usage")

    def teardown(self) -> None:
        if self.pool is not None:
            free = len(self.model.free)
            expect_equal(
                self.pool.get_new_blocks(free), self.model.allocate(free), "All free blocks, in the order of the queue"
            )


def test_pool_agrees_with_model(submission):
    """After any series of calls the pool has the counts, the queue and the findable blocks that the rules of the handout give.

    Hint: Write the rules down as a pool without any cleverness (lists only), run both with random calls, and compare.
    """
    machine = type("Machine", (PoolMachine,), {"make_pool": staticmethod(submission.BlockPool)})
    run_state_machine_as_test(machine, settings=settings(max_examples=20, stateful_step_count=25))


def test_pool_errors_change_nothing(submission):
    """Unknown ids, wrong states and wrong counts are errors of the right kind, and leave the pool as it was.

    Hint: Look at all blocks of a call before you change the first. Python takes -1 for the last element of a list.
    """
    pool = submission.BlockPool(8, 2)
    pool.get_new_blocks(4)  # 1 in use and cached, 2 in use, 3 free and cached, 4 free; queue 5 6 7 4 3
    first = pool.cache_full_block(1, None, [1, 2])
    pool.cache_full_block(3, first, [3, 4])
    pool.free_blocks([3, 4])
    for what, error, naming, call in (
        ("Freeing an id above the last", "KeyError", "", lambda: pool.free_blocks([8, 1])),
        ("Freeing the id -1", "KeyError", "", lambda: pool.free_blocks([-1, 1, 2])),
        ("Freeing block 3, which is free", "ValueError", "", lambda: pool.free_blocks([1, 3, 2])),
        ("Freeing the null block", "ValueError", "", lambda: pool.free_blocks([0, 1])),
        ("Touching an id above the last", "KeyError", "", lambda: pool.touch([3, 1, 8])),
        ("Touching the id -1", "KeyError", "", lambda: pool.touch([3, -1])),
        ("Touching block 4, which is free and not cached", "ValueError", "", lambda: pool.touch([3, 1, 4])),
        ("Touching the null block", "ValueError", "", lambda: pool.touch([3, 0])),
        ("Counting an id above the last", "KeyError", "", lambda: pool.ref_count(8)),
        ("Counting the id -1", "KeyError", "", lambda: pool.ref_count(-1)),
        ("Caching an id above the last", "KeyError", "", lambda: pool.cache_full_block(8, None, [5, 6])),
        ("Caching the id -6", "KeyError", "", lambda: pool.cache_full_block(-6, None, [5, 6])),
        ("Caching the null block", "ValueError", "", lambda: pool.cache_full_block(0, None, [5, 6])),
        ("Caching block 4, which is free", "ValueError", "", lambda: pool.cache_full_block(4, None, [5, 6])),
        ("Caching block 1 again", "ValueError", "", lambda: pool.cache_full_block(1, None, [5, 6])),
        ("Caching one token of two", "ValueError", "token_ids", lambda: pool.cache_full_block(2, None, [5])),
        ("Caching three tokens of two", "ValueError", "token_ids", lambda: pool.cache_full_block(2, None, [5, 6, 7])),
        ("Asking for 6 blocks when 5 are free", "OutOfBlocksError", "", lambda: pool.get_new_blocks(6)),
        ("Asking for -1 blocks", "ValueError", "n", lambda: pool.get_new_blocks(-1)),
        ("Asking for True blocks", "TypeError", "n", lambda: pool.get_new_blocks(True)),
        ("Asking for 2.0 blocks", "TypeError", "n", lambda: pool.get_new_blocks(2.0)),
    ):
        expect_raises(error, call, what, naming=naming)
        expect_equal(
            [pool.ref_count(block) for block in range(8)], [0, 1, 1, 0, 0, 0, 0, 0], f"The counts after: {what}"
        )
        expect_equal(pool.num_free_blocks(), 5, f"The number of free blocks after: {what}")
        expect_equal(pool.get_cached_block(first, [3, 4]), 3, f"The block that is cached and free, after: {what}")
        expect_equal(pool.get_cached_block(None, [5, 6]), None, f"A block that was never cached, after: {what}")
    expect_equal(pool.get_new_blocks(5), [5, 6, 7, 4, 3], "The queue after all these errors")
    expect_count_checked(lambda value: submission.BlockPool(value, 2), "num_blocks", 2)
    expect_count_checked(lambda value: submission.BlockPool(8, value), "block_size", 1)


def test_pool_compares_content(submission):
    """Blocks with equal hashes are told apart by parent, tokens and extra keys, and hash_fn is called as documented.

    Hint: Keep with each hash what it was made of, and compare that before you call it a hit.
    """
    calls: list[Any] = []

    def hash_fn(*args: Any, **named: Any) -> int:
        calls.append(args)
        if named or len(args) != 3 or type(args[1]) is not tuple or type(args[2]) is not tuple:
            fail(
                "hash_fn must be called as hash_fn(parent_hash, token_ids, extra_keys), the last two being tuples.",
                value=(args, named),
            )
        return 7

    pool = submission.BlockPool(9, 2, True, hash_fn)
    pool.get_new_blocks(6)
    contents = [
        (None, [1, 2], ()),
        (None, [3, 4], ()),
        (7, [1, 2], ()),
        (None, [1, 2], ("salt",)),
        (8, [1, 2], ()),
        (None, [2, 1], ()),
    ]
    for block, (parent, tokens, extra) in enumerate(contents, 1):
        for known, content in enumerate(contents, 1):
            expect_equal(
                pool.get_cached_block(*content),
                known if known < block else None,
                f"The block with {content}, all hashes being 7",
            )
        calls.clear()
        expect_equal(
            pool.cache_full_block(block, parent, tokens, extra), 7, "What cache_full_block returns when hash_fn gives 7"
        )
        expect_equal(calls, [(parent, tuple(tokens), extra)], "The calls of hash_fn during cache_full_block")
    calls.clear()
    expect_equal(
        pool.get_cached_block(None, [9, 9]), None, "A content that was never cached, with the hash of those that were"
    )
    if len(calls) > 1:
        fail("get_cached_block called hash_fn more than once.", value=len(calls), expected="at most 1")
    pool.free_blocks([1, 2, 3])
    pool.get_new_blocks(5)  # 7 and 8 were never used; then 3 and 2 are evicted, and one more
    for known, content in enumerate(contents, 1):
        expect_equal(
            pool.get_cached_block(*content),
            known if known > 3 else None,
            f"The block with {content} after three were evicted",
        )


def test_pool_keeps_duplicates(submission):
    """Blocks with equal content all stay, and the earliest one that is still cached is found.

    Hint: A hash may belong to several blocks. When one is evicted, only that one goes.
    """
    pool = submission.BlockPool(5, 2)
    pool.get_new_blocks(4)
    made = [pool.cache_full_block(block, None, [1, 2]) for block in (3, 1, 2)]
    expect_equal(made[1:], made[:1] * 2, "The hashes of blocks with equal content")
    expect_equal(
        [pool.ref_count(block) for block in range(1, 5)], [1, 1, 1, 1], "The counts of blocks with equal content"
    )
    expect_equal(pool.get_cached_block(None, [1, 2]), 3, "The earliest of three equal blocks")
    pool.free_blocks([1])
    pool.free_blocks([3])
    expect_equal(pool.get_cached_block(None, [1, 2]), 3, "The earliest of three equal blocks, now free")
    expect_equal(pool.get_new_blocks(1), [1], "The head of the queue")
    expect_equal(pool.get_cached_block(None, [1, 2]), 3, "The earliest, after the second was evicted")
    expect_equal(pool.get_new_blocks(1), [3], "The head of the queue")
    expect_equal(pool.get_cached_block(None, [1, 2]), 2, "The one that is left")
    expect_equal(pool.cache_full_block(1, None, [1, 2]), made[0], "The hash of a block that is cached again")
    expect_equal(pool.get_cached_block(None, [1, 2]), 2, "The earlier one of two")
    pool.free_blocks([2])
    expect_equal(pool.get_new_blocks(1), [2], "The head of the queue")
    expect_equal(pool.get_cached_block(None, [1, 2]), 1, "The last one")


SMALL, LARGE, TAKEN = 2_000, 200_000, 32
MOST = 10.0
"""The largest pool is 100 times the smaller; a search through the queue costs 30 to 90 times as much there, anything else about the same."""


def test_pool_constant_time(submission):
    """Taking blocks out of the free queue, at its head or from its middle, takes as long in a pool of 200,000 as in one of 2,000.

    Hint: list.remove, list.pop(0) and building a new list all walk through the queue. Link the blocks to their neighbours instead.
    """
    pools = []
    for size in (SMALL, LARGE):
        pool = submission.BlockPool(size, 1)
        blocks = pool.get_new_blocks(TAKEN)
        expect_equal(blocks, list(range(1, TAKEN + 1)), "The first blocks")
        for block in blocks:
            pool.cache_full_block(block, None, [block])
        pool.free_blocks(blocks)
        pools.append((pool, blocks))
    best = {"touch": [float("inf")] * 2, "get_new_blocks": [float("inf")] * 2}
    for _ in range(4):
        for _ in range(6):
            for index, (pool, blocks) in enumerate(pools):
                for name, argument in (("touch", blocks), ("get_new_blocks", TAKEN)):
                    begin = time.perf_counter()
                    taken = getattr(pool, name)(argument)
                    best[name][index] = min(best[name][index], time.perf_counter() - begin)
                    pool.free_blocks(blocks if name == "touch" else taken)
        slow = [name for name, (small, large) in best.items() if large > MOST * small]
        if not slow:
            return
    ratios = {name: round(large / small, 1) for name, (small, large) in best.items()}
    fail(
        f"{' and '.join(slow)} of {TAKEN} blocks takes longer in a larger pool.",
        value=ratios,
        expected=f"a ratio of at most {MOST:g}",
    )
