"""The public checks of `kv_cache`: worked examples with the numbers of the handout. Released with the assignment."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from autograder.checks import expect_close, expect_equal, expect_raises, expect_type, fail

GIB = 2**30
SMOLLM2 = {"n_heads": 9, "n_kv_heads": 3, "head_dim": 64}
LLAMA_3_8B = {"n_heads": 32, "n_kv_heads": 8, "head_dim": 128}


def model(submission: Any, n_layers: int, **layer: Any) -> Any:
    """A KVSpec of `n_layers` equal attention layers."""
    return submission.KVSpec((submission.AttentionLayer(**layer),) * n_layers)


# ------------------------------------------------------------------------------------------------- kv_bytes_per_token


def test_bytes_per_kv_head(submission):
    """Each layer stores one key and one value per KV head, whether heads are shared (GQA, MQA) or not (MHA).

    Hint: The KV heads are counted by n_kv_heads; n_heads counts the queries, which are not stored.
    """
    for what, n_layers, layer, expected in (
        ("Llama-2-7B in fp16 (MHA)", 32, {"n_heads": 32, "n_kv_heads": 32, "head_dim": 128}, 524_288),
        ("Llama-3-8B in bf16 (GQA)", 32, LLAMA_3_8B, 131_072),
        ("SmolLM2-135M in bf16 (GQA)", 30, SMOLLM2, 23_040),
        ("SmolLM2-135M in fp32", 30, {**SMOLLM2, "dtype_bytes": 4}, 46_080),
        ("Falcon-7B in bf16 (MQA)", 32, {"n_heads": 71, "n_kv_heads": 1, "head_dim": 64}, 8_192),
        (
            "one layer with keys of 192 and values of 128",
            1,
            {**LLAMA_3_8B, "head_dim": 192, "value_head_dim": 128},
            5_120,
        ),
    ):
        expect_equal(submission.kv_bytes_per_token(model(submission, n_layers, **layer)), expected, f"Bytes of {what}")


def test_bytes_latent(submission):
    """A latent layer (MLA) stores one latent and one rotary key per token, and all of it on every rank.

    Hint: There is one vector for keys and values together, and it has no heads that ranks could share.
    """
    deepseek_v3 = submission.KVSpec((submission.LatentLayer(128, kv_lora_rank=512, qk_rope_head_dim=64),) * 61)
    expect_equal(submission.kv_bytes_per_token(deepseek_v3), 70_272, "Bytes of DeepSeek-V3 in bf16")
    expect_equal(submission.kv_bytes_per_token(deepseek_v3, tp=8), 70_272, "Bytes of DeepSeek-V3 on each of 8 ranks")


def test_bytes_tensor_parallel(submission):
    """Ranks share the KV heads evenly, and repeat them if there are more ranks than KV heads.

    Hint: Compute the KV heads of one rank first. It is never less than one.
    """
    llama = model(submission, 32, **LLAMA_3_8B)
    for tp, expected in ((1, 131_072), (2, 65_536), (4, 32_768), (8, 16_384), (16, 16_384), (32, 16_384)):
        expect_equal(submission.kv_bytes_per_token(llama, tp=tp), expected, f"Bytes of Llama-3-8B on one of {tp} ranks")
    what = "kv_bytes_per_token of 9 query heads and 3 KV heads, with tp=2,"
    expect_raises(
        "ValueError", lambda: submission.kv_bytes_per_token(model(submission, 30, **SMOLLM2), tp=2), what, naming="tp"
    )


# ----------------------------------------------------------------------------------------------------- kv_cache_bytes


def test_cache_contiguous(submission):
    """A contiguous cache holds the tokens of all sequences, and nothing for no sequences.

    Hint: Without a block_size nothing is rounded.
    """
    llama = model(submission, 32, **LLAMA_3_8B)
    for lengths, expected in (([100], 13_107_200), ([1, 17, 100], 15_466_496), ([0, 5, 0], 655_360), ([], 0)):
        expect_equal(submission.kv_cache_bytes(llama, lengths), expected, f"Bytes of sequences of {lengths} tokens")
    expect_equal(submission.kv_cache_bytes(llama, [100], tp=4), 3_276_800, "Bytes of 100 tokens on one of 4 ranks")


def test_cache_paged(submission):
    """A paged cache holds whole blocks, rounded up for each sequence on its own.

    Hint: Two sequences never share a block that is not full, so round each length, not their sum.
    """
    llama = model(submission, 32, **LLAMA_3_8B)
    for lengths, blocks in (([100], 7), ([16], 1), ([17], 2), ([1, 1, 1], 3), ([15, 16, 17], 4), ([0, 1], 1), ([], 0)):
        what = f"Bytes of sequences of {lengths} tokens in blocks of 16"
        expect_equal(submission.kv_cache_bytes(llama, lengths, block_size=16), blocks * 16 * 131_072, what)


def test_cache_sliding_window(submission):
    """A sliding-window layer keeps the tokens that the next one can still see, and a full one beside it keeps all.

    Hint: The next token sees itself and the W - 1 before it. In blocks, W tokens need not begin at a block's edge.
    """
    mistral = model(submission, 32, **LLAMA_3_8B, window=4096)
    for length, tokens in ((4_094, 4_094), (4_095, 4_095), (4_096, 4_095), (32_768, 4_095)):
        what = f"Contiguous bytes of {length:,} tokens with a window of 4,096"
        expect_equal(submission.kv_cache_bytes(mistral, [length]), tokens * 131_072, what)
    for length, blocks in ((100, 7), (4_096, 256), (4_112, 257), (32_768, 257)):
        what = f"Bytes of {length:,} tokens in blocks of 16 with a window of 4,096"
        expect_equal(submission.kv_cache_bytes(mistral, [length], block_size=16), blocks * 16 * 131_072, what)
    local = submission.AttentionLayer(8, 4, 256, window=512)
    mixed = submission.KVSpec((local, local, submission.AttentionLayer(8, 4, 256)))
    what = "Contiguous bytes of 1,000 tokens in two layers with a window of 512 and one without"
    expect_equal(submission.kv_cache_bytes(mixed, [1_000]), (511 + 511 + 1_000) * 4_096, what)


# ---------------------------------------------------------------------------------------------------- max_concurrency


def test_concurrency_of_vllm_log(submission):
    """The concurrency is the one that vLLM logs for SmolLM2-135M, blocks of 32 and 1 GiB: 45.50x for 1,024 tokens.

    Hint: Whole blocks in the budget (1,456 of them), divided by the whole blocks of one request.
    """
    smollm2 = model(submission, 30, **SMOLLM2)
    budget = submission.MemoryBudget(GIB, 1.0, 0, 0)
    for tokens, expected in ((1_024, 1456 / 32), (1_025, 1456 / 33), (1, 1456.0), (46_592, 1.0), (93_184, 0.5)):
        what = f"Concurrency for {tokens:,} tokens per request"
        expect_close(submission.max_concurrency(smollm2, budget, tokens, 32), expected, what)


def test_concurrency_budget(submission):
    """The budget is the usable share of the total, less the weights and the largest activations.

    Hint: The utilization applies to the total only; what is taken off afterwards is taken off whole.
    """
    llama = model(submission, 32, **LLAMA_3_8B)
    for total, utilization, weights, peak, blocks in (
        (80 * GIB, 0.9, 16_060_522_496, 2 * GIB, 28_181),
        (24 * GIB, 0.9, 16_060_522_496, GIB, 2_888),
        (24 * GIB, 1.0, 16_060_522_496, 0, 4_629),
        (3 * GIB, 0.5, GIB, GIB // 4, 128),
    ):
        budget = submission.MemoryBudget(total, utilization, weights, peak)
        what = f"Concurrency of Llama-3-8B for 8,192 tokens with {show_gib(total)} of memory, utilization {utilization}"
        expect_close(submission.max_concurrency(llama, budget, 8_192, 16), blocks / 512, what)
    budget = submission.MemoryBudget(80 * GIB, 0.9, 16_060_522_496 // 4, 2 * GIB)
    what = "Concurrency of Llama-3-8B for 8,192 tokens on one of 4 ranks with 80 GiB each"
    expect_close(submission.max_concurrency(llama, budget, 8_192, 16, tp=4), 135_701 / 512, what)


def show_gib(value: int) -> str:
    return f"{value / GIB:g} GiB"


# -------------------------------------------------------------------------------------------- max_model_len_that_fits


def test_length_examples(submission):
    """The requests may be as long as their equal share of the blocks, and no longer than the limit.

    Hint: How many blocks may one request have? The answer is the longest length that needs no more, up to the limit.
    """
    smollm2 = model(submission, 30, **SMOLLM2)
    budget = submission.MemoryBudget(GIB, 1.0, 0, 0)
    for users, limit, expected in (
        (1, 8_192, 8_192),
        (16, 8_192, 2_912),
        (16, 2_911, 2_911),
        (100, 8_192, 448),
        (1_456, 99, 32),
    ):
        what = f"Longest length of {users:,} requests with a limit of {limit:,}"
        expect_equal(submission.max_model_len_that_fits(smollm2, budget, users, 32, limit), expected, what)


def test_length_nothing_fits(submission):
    """Where not a single token fits, the answer is 0 and no exception.

    Hint: max_concurrency raises InfeasibleError when there is not even one page. Here that is an ordinary answer.
    """
    smollm2 = model(submission, 30, **SMOLLM2)
    for what, fields, users, expected in (
        ("1,456 blocks and as many requests", (GIB, 1.0, 0, 0), 1_456, 32),
        ("1,456 blocks and one request more", (GIB, 1.0, 0, 0), 1_457, 0),
        ("exactly one page", (737_280, 1.0, 0, 0), 1, 32),
        ("a byte less than a page", (737_279, 1.0, 0, 0), 1, 0),
        ("weights larger than the memory", (GIB, 0.9, 2 * GIB, 0), 1, 0),
    ):
        budget = submission.MemoryBudget(*fields)
        got = submission.max_model_len_that_fits(smollm2, budget, users, 32, 512)
        expect_equal(got, expected, f"Longest length with {what}")


# ---------------------------------------------------------------------------------------------------------- BlockPool


def test_pool_hands_out_in_order(submission):
    """New blocks come from the head of the free queue, never the null block, and all of them or none.

    Hint: Compare with the number of free blocks before you take the first one.
    """
    pool = submission.BlockPool(6, 4)
    expect_equal(pool.num_free_blocks(), 5, "Free blocks of a new pool of 6 (block 0 is the null block)")
    expect_equal(pool.get_new_blocks(2), [1, 2], "The first two blocks")
    expect_equal(pool.get_new_blocks(0), [], "No blocks")
    expect_raises("OutOfBlocksError", lambda: pool.get_new_blocks(4), "Asking for 4 blocks when 3 are free")
    expect_equal(pool.num_free_blocks(), 3, "Free blocks after a request that could not be met")
    expect_equal(pool.get_new_blocks(3), [3, 4, 5], "The last three blocks")
    expect_close(pool.usage(), 1.0, "Usage of a pool with all blocks in use")


def test_pool_counts_holders(submission):
    """A block is free again when the last of its holders has freed it.

    Hint: get_new_blocks starts the count at 1, touch adds one, free_blocks takes one away.
    """
    pool = submission.BlockPool(5, 4)
    pool.get_new_blocks(2)
    pool.touch([1])
    pool.touch([1, 2])
    expect_equal([pool.ref_count(block) for block in range(5)], [0, 3, 2, 0, 0], "The counts of blocks 0 to 4")
    pool.free_blocks([1, 2])
    expect_equal([pool.ref_count(block) for block in range(5)], [0, 2, 1, 0, 0], "The counts after one holder has left")
    expect_equal(pool.num_free_blocks(), 2, "Free blocks while both are still held")
    expect_close(pool.usage(), 0.5, "Usage with 2 of 4 blocks held (the null block does not count)")
    pool.free_blocks([1, 2])
    pool.free_blocks([1])
    expect_equal(pool.num_free_blocks(), 4, "Free blocks after the last holder has left")
    expect_close(pool.usage(), 0.0, "Usage of a pool without holders")


def test_pool_frees_last_block_first(submission):
    """Freed blocks join the tail of the free queue, the last block of the sequence first.

    Hint: Walk through the list from its end.
    """
    pool = submission.BlockPool(7, 4)
    pool.get_new_blocks(4)
    pool.free_blocks([2, 3, 4])
    pool.free_blocks([1])
    expect_equal(pool.get_new_blocks(6), [5, 6, 4, 3, 2, 1], "The order in which the blocks come back")


def test_pool_finds_prefixes(submission):
    """A full block is found by its tokens and its whole prefix, in use or free, until it is handed out again.

    Hint: Follow the example of the handout, and print the free queue after each step.
    """
    abcd, efgh = [65, 66, 67, 68], [69, 70, 71, 72]
    pool = submission.BlockPool(6, 4)
    blocks = pool.get_new_blocks(3)
    first = pool.cache_full_block(1, None, abcd)
    second = pool.cache_full_block(2, first, efgh)
    expect_equal(pool.get_cached_block(None, abcd), 1, "The block with the first four tokens, in use")
    expect_equal(pool.get_cached_block(first, efgh), 2, "The block with the next four tokens")
    expect_equal(pool.get_cached_block(None, efgh), None, "A block with these tokens, but at the start of a sequence")
    expect_equal(pool.get_cached_block(second, efgh), None, "A block with these tokens, but after another prefix")
    expect_equal(pool.get_cached_block(first, efgh, ["tenant"]), None, "A block with these tokens and an extra key")
    pool.free_blocks(blocks)
    expect_equal(pool.get_cached_block(None, abcd), 1, "The block with the first four tokens, free")
    pool.touch([1])
    expect_equal(pool.num_free_blocks(), 4, "Free blocks after a cached one was touched")
    expect_equal(pool.get_new_blocks(3), [4, 5, 3], "The next blocks after block 1 has left the queue")
    expect_equal(pool.get_cached_block(first, efgh), 2, "The cached block that is still in the queue")
    expect_equal(pool.get_new_blocks(1), [2], "The last block of the queue")
    expect_equal(pool.get_cached_block(first, efgh), None, "The block after it was handed out for other tokens")
    expect_equal(pool.get_cached_block(None, abcd), 1, "The block that was touched")
    what = "cache_full_block with 3 tokens in blocks of 4"
    expect_raises("ValueError", lambda: pool.cache_full_block(4, None, abcd[:3]), what, naming="token_ids")
    expect_equal(pool.reset(), False, "reset() while blocks are in use")
    expect_equal(pool.get_cached_block(None, abcd), 1, "The block after a reset that was refused")
    pool.free_blocks([1, 2, 3, 4, 5])
    expect_equal(pool.reset(), True, "reset() when all blocks are free")
    expect_equal(pool.get_cached_block(None, abcd), None, "The block after a reset")


def test_pool_refuses_double_free(submission):
    """Freeing a block that nobody holds is an error, and changes nothing.

    Hint: Look at all blocks of the list before you change the first; the same id may stand in it twice.
    """
    pool = submission.BlockPool(5, 4)
    pool.get_new_blocks(3)
    pool.free_blocks([3])
    expect_raises("ValueError", lambda: pool.free_blocks([3]), "Freeing block 3 a second time")
    expect_raises("ValueError", lambda: pool.free_blocks([3, 1, 2]), "Freeing a free block and two that are in use")
    expect_raises(
        "ValueError", lambda: pool.free_blocks([1, 2, 1]), "Freeing a block with one holder twice in one call"
    )
    expect_raises("ValueError", lambda: pool.free_blocks([0]), "Freeing the null block")
    expect_equal([pool.ref_count(block) for block in range(5)], [0, 1, 1, 0, 0], "The counts after calls that failed")
    expect_equal(pool.get_new_blocks(2), [4, 3], "The free queue after calls that failed")


# ------------------------------------------------------------------------------------------------ PagedKVCacheManager


def lend_pool(submission: Any, num_blocks: int, block_size: int) -> tuple[Any, list[int]]:
    """A manager with a pool, and the counts of its blocks. Enough for these checks: no block is handed out twice."""
    fresh, counts = list(range(1, num_blocks)), [0] * num_blocks
    found: dict[str, int] = {}

    def add(blocks: Any, holders: int) -> None:
        for block in blocks if type(blocks) is list else [blocks]:
            if type(block) is not int or not 0 < block < num_blocks:
                fail("Your manager gave something to the pool that is no block.", value=block)
            counts[block] += holders

    def take(n: Any) -> list[int] | None:
        if type(n) is not int or n < 0:
            fail("Your manager asked the pool for a number of blocks that is no count.", value=n)
        if n > len(fresh):
            return None
        taken = [fresh.pop(0) for _ in range(n)]
        add(taken, 1)
        return taken

    def remember(block: Any, *key: Any) -> str:
        add(block, 0)
        if type(key[1]) is not tuple or len(key[1]) != block_size:
            fail("Your manager cached a block that is not full.", value=key[1], expected=f"{block_size} tokens")
        found.setdefault(repr(key), block)
        return hashlib.sha256(repr(key).encode()).hexdigest()  # hash_block

    def holders(block: Any) -> int:
        add(block, 0)
        return counts[block]

    pool = submission.LentPool(
        get_new_blocks=take,
        touch=lambda blocks: add(blocks, 1),
        free_blocks=lambda blocks: add(blocks, -1),
        cache_full_block=lambda block, parent, tokens, extra: remember(block, parent, tokens, extra),
        get_cached_block=lambda parent, tokens, extra: found.get(repr((parent, tokens, extra))),
        num_free_blocks=lambda: counts[1:].count(0),
        ref_count=holders,
    )
    return submission.PagedKVCacheManager(pool, block_size), counts


def ids(text: str) -> list[int]:
    """A text as token ids."""
    return [ord(letter) for letter in text]


def test_manager_gives_tables(submission):
    """A request gets a block for each `block_size` tokens begun, more as it grows, and frees them when it ends.

    Hint: How many blocks do n tokens need? Take the difference to those that are there.
    """
    manager, counts = lend_pool(submission, 8, 4)
    expect_equal(manager.allocate("a", ids("ABCDEFGHIJ")), 0, "Tokens found for the first request")
    expect_equal(manager.block_table("a"), [1, 2, 3], "The table of 10 tokens in blocks of 4")
    expect_equal(manager.append("a", ids("KL")), [], "Copies for two tokens that fit into the last block")
    expect_equal(manager.block_table("a"), [1, 2, 3], "The table of 12 tokens")
    expect_equal(manager.append("a", ids("M")), [], "Copies for a token that needs a new block")
    expect_equal(manager.block_table("a"), [1, 2, 3, 4], "The table of 13 tokens")
    what = "allocate with 13 tokens when 3 blocks are free"
    expect_raises("OutOfBlocksError", lambda: manager.allocate("b", ids("abcdefghijklm")), what)
    expect_equal(counts, [0, 1, 1, 1, 1, 0, 0, 0], "The counts after a request for which there was no room")
    manager.free("a")
    expect_equal(counts, [0] * 8, "The counts after the request has ended")
    expect_raises("KeyError", lambda: manager.block_table("a"), "The table of a request that has ended")


def test_manager_finds_prefixes(submission):
    """A request begins with the cached blocks of its prefix, but its last token is always computed.

    Hint: Of T tokens at most T - 1 may be found. How many whole blocks is that?
    """
    manager, counts = lend_pool(submission, 20, 4)
    expect_equal(manager.match_prefix(ids("ABCDEFGH")), [], "Blocks found before anything was cached")
    manager.allocate("a", ids("ABCDEFGHIJ"))
    for text, expected in (
        ("ABCDEFGHIJ", [1, 2]),
        ("ABCDEFGHx", [1, 2]),
        ("ABCDEFGH", [1]),
        ("ABCDxxxxx", [1]),
        ("ABCDxxxxEFGHx", [1]),
        ("xxxxEFGHx", []),
        ("ABCD", []),
    ):
        expect_equal(manager.match_prefix(ids(text)), expected, f"Blocks found for {text}")
    expect_equal(manager.match_prefix(ids("ABCDEFGHIJ"), ["tenant"]), [], "Blocks found with another extra key")
    expect_equal(counts[1:4], [1, 1, 1], "The counts after looking")
    expect_equal(manager.allocate("b", ids("ABCDEFGHxy")), 8, "Tokens found for a prompt with 8 tokens in common")
    expect_equal(manager.block_table("b"), [1, 2, 4], "The table of this request")
    expect_equal(counts[1:5], [2, 2, 1, 1], "The counts of blocks 1 to 4")
    manager.free("a")
    manager.free("b")
    expect_equal(manager.allocate("c", ids("ABCDEFGH")), 4, "Tokens found for a prompt that is cached as a whole")
    expect_equal(manager.block_table("c"), [1, 5], "The table of this request")


def test_manager_forks(submission):
    """Requests that were forked share their blocks; the first that writes to the last block gets a copy of it.

    Hint: A block that several hold and that is not full must not be written to. ref_count says how many hold it.
    """
    manager, counts = lend_pool(submission, 10, 4)
    manager.allocate("a", ids("ABCDEFGHIJ"))
    manager.fork("a", "b")
    expect_equal(manager.block_table("b"), [1, 2, 3], "The table of the fork")
    expect_equal(counts[1:4], [2, 2, 2], "The counts after the fork")
    expect_equal(manager.append("b", ids("K")), [(3, 4)], "Copies when the fork goes on first")
    expect_equal(manager.append("a", ids("L")), [], "Copies when the other one goes on after it")
    expect_equal(manager.block_table("a"), [1, 2, 3], "The table of the first request")
    expect_equal(manager.block_table("b"), [1, 2, 4], "The table of the fork after its copy")
    expect_equal(counts[1:5], [2, 2, 1, 1], "The counts after the copy")
    manager.append("a", ids("M"))
    manager.fork("a", "c")
    expect_equal(manager.append("c", ids("N")), [], "Copies when the last block is full")
    expect_equal(manager.block_table("c"), [1, 2, 3, 5], "The table of a fork of three full blocks, and one token")
    expect_equal(manager.block_table("a"), [1, 2, 3], "The table of the request that it came from")


# ------------------------------------------------------------------------------------------------ PagedAttentionLayer


def expect_near(value: Any, expected: torch.Tensor, what: str, tolerance: float = 1e-5) -> None:
    """`value` must be an fp32 tensor like `expected`; `tolerance` is relative to the largest number of `expected`.

    1e-5 is some twenty times the rounding of fp32, so the order of operations does not matter.
    """
    wanted = f"tensor of shape {tuple(expected.shape)}, torch.float32"
    if type(value) is not torch.Tensor or value.dtype != torch.float32 or value.shape != expected.shape:
        fail(f"{what} must be a {wanted}.", value=value, expected=wanted)
    off = (value.double() - expected.double()).abs().max().item() if expected.numel() else 0.0
    if not off <= tolerance * max(expected.abs().max().item() if expected.numel() else 0.0, 1e-30):
        few = value.numel() <= 8
        fail(
            f"{what} is off by up to {off:.3g}.",
            value=[round(number, 6) for number in value.reshape(-1).tolist()] if few else value,
            expected=str([round(number, 6) for number in expected.reshape(-1).tolist()] if few else "almost equal"),
        )


def test_attention_of_two_tokens(submission):
    """The example of the handout: a query reads the values of its tokens, weighed by the softmax of the scores.

    Hint: Find the two tokens first: their slots are block * block_size + place.
    """
    layer = submission.PagedAttentionLayer(4, 2, 1, 2)
    k = torch.tensor([[[1.0986123, 5.0]], [[0.0, 7.0]]])
    v = torch.tensor([[[4.0, 0.0]], [[0.0, 8.0]]])
    layer.write(k, v, torch.tensor([6, 7]))
    q, table = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[3, 0]])
    out = layer.attend(q, table, torch.tensor([2]), 1.0)
    expect_near(out, torch.tensor([[[3.0, 2.0]]]), "The result of the example")
    out = layer.attend(q, table, torch.tensor([1]), 1.0)
    expect_near(out, torch.tensor([[[4.0, 0.0]]]), "The result with one token")
    out = layer.attend(q * 2**0.5, table, torch.tensor([2]))
    expect_near(
        out, torch.tensor([[[3.0, 2.0]]]), "The result with the scale left out, and a query sqrt(2) times as long"
    )


def test_attention_through_block_tables(submission):
    """Keys and values are found through the block table, and heads that follow each other share a KV head.

    Hint: With 6 heads and 2 KV heads, heads 0, 1 and 2 look at KV head 0. Compare with PyTorch's attention.
    """
    torch.manual_seed(7)
    layer = submission.PagedAttentionLayer(9, 4, 2, 8)
    q = torch.randn(2, 6, 8)
    tables, lens = torch.tensor([[7, 2, 5], [3, 8, 0]]), torch.tensor([10, 7])
    expected = torch.empty_like(q)
    for row, length in enumerate(lens.tolist()):
        k, v = torch.randn(2, length, 2, 8)
        layer.write(k, v, torch.tensor([int(tables[row, i // 4]) * 4 + i % 4 for i in range(length)]))
        one = (q[row, :, None], k.movedim(0, 1), v.movedim(0, 1))
        expected[row] = torch.nn.functional.scaled_dot_product_attention(*one, enable_gqa=True)[:, 0]
    expect_near(layer.attend(q, tables, lens), expected, "The result of two sequences in one batch")


# --------------------------------------------------------------------------------------------------- QuantizedKVLayer


def test_quantized_examples(submission):
    """Codes, scales, minima and packed bytes are those of the handout's examples.

    Hint: Do one group by hand, then look at `state()`. The first code of a byte stands in its highest bits.
    """
    layer = submission.QuantizedKVLayer(1, 4, 2, 4, 1)
    layer.append(torch.tensor([[[0.0, 1.0, 3.5, 6.0]]]), torch.tensor([[[-1.0, 5.0, 3.0, 1.0]]]))
    state = held(layer)
    for name, scale, low, codes in (("key", 2.0, 0.0, {0b00001011, 0b00011011}), ("value", 2.0, -1.0, {0b00111001})):
        expect_equal(state[f"{name}_scales"].tolist(), [[[scale]]], f"{name}_scales")
        expect_equal(state[f"{name}_minima"].tolist(), [[[low]]], f"{name}_minima")
        expect_equal(tuple(state[f"{name}_codes"].shape), (1, 1, 1), f"The shape of {name}_codes")
        if (code := state[f"{name}_codes"].item()) not in codes:
            fail(f"{name}_codes is not what it should be.", value=f"{code:08b}", expected=f"{min(codes):08b}")
    expect_near(layer.values(), torch.tensor([[[-1.0, 5.0, 3.0, 1.0]]]), "The values, which codes can express exactly")
    what = "QuantizedKVLayer with groups of 24 in a head of 64"
    expect_raises("ValueError", lambda: submission.QuantizedKVLayer(2, 64, 4, 24, 16), what)


def held(layer: Any) -> dict[str, torch.Tensor]:
    """What `state()` of a layer gives, which must be a dict of eight tensors."""
    state = layer.state()
    expect_type(state, dict, "What state() gives")
    dtypes = {"codes": torch.uint8, "scales": torch.float16, "minima": torch.float16, "residual": torch.float32}
    expect_equal(sorted(state), sorted(f"{name}_{part}" for name in ("key", "value") for part in dtypes), "Its keys")
    for name, tensor in state.items():
        wanted = dtypes[name.partition("_")[2]]
        if type(tensor) is not torch.Tensor or tensor.dtype != wanted or tensor.dim() != 3:
            fail(f"{name} must be a tensor of {wanted} with three dimensions.", value=tensor, expected=str(wanted))
    return state


def test_quantized_residual_and_bytes(submission):
    """Tokens are quantised when `residual_length` of them have gathered, and the bytes are those of all that is held.

    Hint: 40 tokens with a residual length of 16 are two times 16, and 8 that wait.
    """
    torch.manual_seed(7)
    k, v = torch.randn(2, 40, 2, 64)
    layer = submission.QuantizedKVLayer(2, 64, 4, 32, 16)
    expect_equal(layer.num_bytes(), 0, "Bytes of an empty layer")
    for start, stop, quantised, expected in ((0, 15, 0, 15_360), (15, 16, 16, 2_560), (16, 40, 32, 13_312)):
        layer.append(k[start:stop], v[start:stop])
        state = held(layer)
        expect_equal(tuple(state["key_codes"].shape), (quantised, 2, 32), f"Shape of key_codes after {stop} tokens")
        expect_equal(
            tuple(state["value_scales"].shape), (quantised, 2, 2), f"Shape of value_scales after {stop} tokens"
        )
        expect_equal(layer.num_bytes(), expected, f"Bytes after {stop} tokens")
    expect_near(layer.keys()[32:], k[32:], "The keys that wait", tolerance=0.0)
    expect_near(layer.keys(), k, "All keys (rounded to the nearest of 16 codes they are this exact)", tolerance=0.1)
    expect_near(layer.values(), v, "All values", tolerance=0.1)


# ----------------------------------------------------------------------------------------------- sliding_window_evict


def test_window_keeps_positions(submission):
    """The positions that the next token sees stay, and the sinks.

    Hint: Which position has the next token? Compare each cached position with it.
    """
    ten = list(range(10))
    for positions, window, sinks, expected in (
        (ten, 4, 0, [7, 8, 9]),
        (ten, 4, 2, [0, 1, 7, 8, 9]),
        ([0, 1, 7, 8, 9, 10], 4, 2, [0, 1, 8, 9, 10]),
        (ten, 11, 0, ten),
        (ten, 1, 0, []),
        ([], 4, 2, []),
    ):
        what = f"What stays of {positions} with a window of {window} and {sinks} sinks"
        expect_equal(submission.sliding_window_evict(positions, window, sinks), expected, what)


def test_window_frees_blocks(submission):
    """A block goes when none of its tokens is needed any more; the null block takes its place.

    Hint: Which positions lie in block number i of the table? All of them must have gone.
    """
    for table, tokens, sinks, expected in (
        ([7, 3, 9, 5], 14, 0, ([0, 0, 9, 5], [7, 3])),
        ([7, 3, 9, 5], 14, 2, ([7, 0, 9, 5], [3])),
        ([7, 0, 9, 5], 15, 2, ([7, 0, 0, 5], [9])),
        ([7], 3, 0, ([7], [])),
        ([], 0, 0, ([], [])),
    ):
        what = f"What evict_blocks gives for {table}, {tokens} tokens in blocks of 4, a window of 4, {sinks} sinks"
        expect_equal(submission.evict_blocks(table, tokens, 4, 4, sinks), expected, what)
