"""Where the hidden checks of `kv_cache` get expected values from: never the reference solution or its formulas.

Real caches     bytes of the tensors that transformers' `DynamicCache` holds after forward passes of real models
Counted slots   tokens and blocks counted one by one; the KV heads of a rank are those that its query heads look at;
                quantised heads are packed for real, and the arrays are weighed
`PoolModel`     a block pool without any cleverness: counts follow from lists of who holds what
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np

from autograder.judging.oracle import oracle
from gpu_env import models

Layer = dict[str, Any]
"""Arguments of `LatentLayer` if it has "kv_lora_rank", else of `AttentionLayer`; "quantization" holds arguments too."""


def build(submission: Any, layers: list[Layer]) -> Any:
    """The KVSpec of `layers`, made of the course's classes in the submission."""
    made = []
    for layer in layers:
        if "kv_lora_rank" in layer:
            made.append(submission.LatentLayer(**layer))
        elif layer.get("quantization"):
            made.append(
                submission.AttentionLayer(**layer | {"quantization": submission.Quantization(**layer["quantization"])})
            )
        else:
            made.append(submission.AttentionLayer(**layer))
    return submission.KVSpec(tuple(made))


# -------------------------------------------------------------------------------------------------------- real caches


@dataclass(frozen=True)
class RealCache:
    """What a model's cache held: `bytes_at` maps tokens seen to bytes of all keys and values."""

    name: str
    layers: list[Layer]
    bytes_at: dict[int, int]


@oracle
def smollm2_cache() -> RealCache:
    """SmolLM2-135M in fp32 after a prompt of 256 tokens, and after one token more.

    The bytes depend on shapes alone: where the model does not lie on this machine, random weights of its shape serve.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    try:
        model = AutoModelForCausalLM.from_pretrained(models.find("SmolLM2-135M-Instruct"), dtype=torch.float32)
    except models.ModelMissing:
        shape = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 30}
        model = AutoModelForCausalLM.from_config(LlamaConfig(**shape, intermediate_size=64, vocab_size=512))
    return _measure("SmolLM2-135M in fp32", model, prompt=256, steps=1)


@oracle
def small_caches() -> list[RealCache]:
    """Small models with random weights, one of each kind of attention, from a short prompt to beyond their window."""
    import torch
    from transformers import AutoModelForCausalLM, DeepseekV3Config, Gemma2Config, LlamaConfig, MistralConfig

    size = {"hidden_size": 64, "intermediate_size": 32, "vocab_size": 32, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 24}
    latent = {
        "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 24, "q_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "first_k_dense_replace": 3,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16,
    }  # fmt: skip
    made = []
    for name, config, dtype in (
        (
            "a small model with multi-head attention",
            LlamaConfig(**size, **heads | {"num_key_value_heads": 8}),
            "float32",
        ),
        ("a small model with grouped-query attention", LlamaConfig(**size, **heads), "bfloat16"),
        (
            "a small model with multi-query attention",
            LlamaConfig(**size, **heads | {"num_key_value_heads": 1}),
            "float32",
        ),
        ("a small model with a sliding window", MistralConfig(**size, **heads, sliding_window=8), "float32"),
        (
            "a small model with windows in every second layer",
            Gemma2Config(**size, **heads, sliding_window=8),
            "bfloat16",
        ),
        ("a small model with latent attention", DeepseekV3Config(**size, **latent), "float32"),
    ):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        made.append(_measure(name, model, prompt=5, steps=8))
    return made


def _measure(name: str, model: Any, prompt: int, steps: int) -> RealCache:
    """Run `prompt` tokens and then `steps` single ones through `model`, and weigh its cache after each forward pass."""
    import torch
    from transformers import DynamicCache

    model.eval()
    held = DynamicCache(config=model.config)
    bytes_at, seen = {}, 0
    with torch.inference_mode():
        for count in [prompt] + [1] * steps:
            model(torch.arange(seen, seen + count)[None] % 32, past_key_values=held, use_cache=True)
            seen += count
            bytes_at[seen] = sum(
                part.numel() * part.element_size() for layer in held.layers for part in (layer.keys, layer.values)
            )
    return RealCache(name, _layers(model.config, model.dtype.itemsize), bytes_at)


def _layers(config: Any, dtype_bytes: int) -> list[Layer]:
    """The layers that a transformers configuration describes."""
    if config.model_type == "deepseek_v3":
        fields = ("kv_lora_rank", "qk_rope_head_dim")
        latent = {name: getattr(config, name) for name in fields}
        return [
            {"n_heads": config.num_attention_heads, **latent, "dtype_bytes": dtype_bytes}
        ] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    kinds = (
        getattr(config, "layer_types", None)
        or ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    )
    return [
        {
            "n_heads": config.num_attention_heads,
            "n_kv_heads": config.num_key_value_heads,
            "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            "dtype_bytes": dtype_bytes,
            "window": window if kind == "sliding_attention" else None,
        }
        for kind in kinds
    ]


# ------------------------------------------------------------------------------------------------------ counted slots


def mixtures(rng: random.Random, count: int) -> Iterator[list[Layer]]:
    """`count` models of a few layers: one of every kind that matters first, the rest anything. Numbers are random.

    All can be spread over 1, 2, 4 or 8 ranks, and are small enough for their tokens to be counted one by one.
    """
    yield [_heads(rng)]
    yield [_heads(rng, quantized=True)]
    yield [_heads(rng, window=rng.randint(20, 60))]
    yield [_heads(rng), _heads(rng, window=rng.randint(20, 60))]
    yield [_latent(rng), _heads(rng)]
    yield [_heads(rng, quantized=True), _latent(rng), _heads(rng, window=rng.randint(20, 60))]
    yield [_heads(rng, n_kv_heads=1), _heads(rng, window=rng.randint(20, 39)), _heads(rng, window=rng.randint(40, 60))]
    for _ in range(count - 7):
        yield [
            _latent(rng)
            if rng.random() < 0.2
            else _heads(rng, window=rng.choice([None, None, 2, rng.randint(3, 90)]), quantized=rng.random() < 0.3)
            for _ in range(rng.randint(1, 4))
        ]


def _latent(rng: random.Random) -> Layer:
    rank, rope = rng.choice([24, 64]), rng.choice([8, 16])
    return {"n_heads": 8, "kv_lora_rank": rank, "qk_rope_head_dim": rope, "dtype_bytes": rng.choice([1, 2, 4])}


def _heads(
    rng: random.Random, *, n_kv_heads: int | None = None, window: int | None = None, quantized: bool = False
) -> Layer:
    layer: Layer = {
        "n_heads": 8,
        "n_kv_heads": n_kv_heads or rng.choice([2, 4]),
        "head_dim": rng.choice([48, 64]),
        "value_head_dim": rng.choice([16, 32]),
        "dtype_bytes": rng.choice([1, 2, 4]),
        "window": window,
    }
    if quantized:
        layer["quantization"] = {
            "bits": rng.choice([2, 4, 8]),
            "group_size": rng.choice([8, 16]),
            "scale_bytes": rng.choice([2, 4]),
            "zero_point_bytes": rng.choice([0, 1]),
        }
    return layer


def token_bytes(layer: Layer, tp: int = 1) -> int:
    """Bytes that a token writes in `layer` on the first of `tp` ranks, by weighing arrays of what is stored there."""
    if "kv_lora_rank" in layer:
        return np.zeros(layer["kv_lora_rank"] + layer["qk_rope_head_dim"], _dtype(layer["dtype_bytes"])).nbytes
    queries_per_kv_head = layer["n_heads"] // layer["n_kv_heads"]
    seen_heads = {query // queries_per_kv_head for query in range(layer["n_heads"] // tp)}
    total = 0
    for dim in (layer["head_dim"], layer.get("value_head_dim") or layer["head_dim"]):
        if quantization := layer.get("quantization"):
            total += len(seen_heads) * packed_bytes(dim, **quantization)
        else:
            total += np.zeros((len(seen_heads), dim), _dtype(layer["dtype_bytes"])).nbytes
    return total


@cache
def packed_bytes(dim: int, bits: int, group_size: int, scale_bytes: int = 2, zero_point_bytes: int = 0) -> int:
    """Bytes of one quantised head of `dim` numbers: packed for real, group by group, with what each group brings."""
    total = 0
    for start in range(0, dim, group_size):
        codes = np.arange(start, start + group_size) % 2**bits
        stream = (codes[:, None] >> np.arange(bits)) & 1
        total += stream.size  # in bits: a group need not end at a byte's edge, a head does
        total += 8 * (len(bytes(scale_bytes)) + len(bytes(zero_point_bytes)))
    assert total % 8 == 0
    return total // 8


def _dtype(size: int) -> np.dtype[Any]:
    return np.dtype({1: np.int8, 2: np.float16, 4: np.float32}[size])


@cache
def blocks_held(length: int, block_size: int, window: int | None) -> int:
    """Blocks of one layer that a sequence holds: those that its tokens lie in, at most what vLLM allows a window."""
    held = len({token // block_size for token in range(length)})
    if window is None:
        return held
    one_in_flight = range(window - 1 + 1)  # the tokens that the next one sees, and itself
    return min(held, len({token // block_size for token in one_in_flight}) + 1)


@cache
def tokens_kept(length: int, window: int | None) -> int:
    """Tokens of one layer that a contiguous cache keeps: those that the next token will see."""
    return sum(window is None or length - token < window for token in range(length))


def cache_bytes(layers: list[Layer], lengths: list[int], block_size: int | None, tp: int = 1) -> int:
    """Bytes of all sequences, layer by layer and sequence by sequence."""
    total = 0
    for layer in layers:
        window, cost = layer.get("window"), token_bytes(layer, tp)
        for length in lengths:
            if block_size is None:
                total += tokens_kept(length, window) * cost
            else:
                total += blocks_held(length, block_size, window) * block_size * cost
    return total


@dataclass(frozen=True)
class Server:
    """A model on a server that has exactly `pages` pages for its cache, and a little less than one more."""

    layers: list[Layer]
    block_size: int
    tp: int
    pages: int

    @cached_property
    def page_bytes(self) -> int:
        return sum(token_bytes(layer, self.tp) for layer in self.layers for _ in range(self.block_size))

    def budget(self, submission: Any, rng: random.Random) -> Any:
        """A MemoryBudget that leaves these pages. Its weights and activations are worth several pages."""
        left = self.pages * self.page_bytes + rng.randint(0, self.page_bytes - 1)
        weights, peak = rng.randint(20, 40) * self.page_bytes, rng.randint(20, 40) * self.page_bytes
        # A float holds these shares exactly, so the floor of the product is the same however it is written.
        shares = rng.choice([2, 4])
        total = (left + weights + peak) * shares + rng.randint(0, shares - 1)
        return submission.MemoryBudget(total, 1 / shares, weights, peak)

    def pages_of(self, length: int) -> int:
        """Pages that one request needs: as many as it takes to cover its bytes."""
        return len(range(0, cache_bytes(self.layers, [length], self.block_size, self.tp), self.page_bytes))

    def longest(self, users: int, limit: int) -> int:
        """The longest length of `users` requests, by trying every one up to `limit`."""
        return max(length for length in range(limit + 1) if users * self.pages_of(length) <= self.pages)


# --------------------------------------------------------------------------------------------------------- block pool

Key = tuple[Any, tuple[int, ...], tuple[Any, ...]]


@dataclass
class PoolModel:
    """A block pool as the handout describes it. A block's count is how often it stands in `tables`, who holds what."""

    num_blocks: int
    free: list[int] = field(default_factory=list)
    tables: list[list[int]] = field(default_factory=list)
    cached: list[tuple[int, Key]] = field(default_factory=list)
    """Blocks with their content, in the order in which they were cached."""

    def __post_init__(self) -> None:
        self.free = list(range(1, self.num_blocks))

    def count(self, block: int) -> int:
        return sum(table.count(block) for table in self.tables)

    def used(self) -> list[int]:
        return [block for block in range(1, self.num_blocks) if self.count(block)]

    def find(self, key: Key) -> int | None:
        return next((block for block, content in self.cached if content == key), None)

    def is_cached(self, block: int) -> bool:
        return any(block == other for other, _ in self.cached)

    def allocate(self, n: int) -> list[int]:
        taken, self.free = self.free[:n], self.free[n:]
        self.cached = [entry for entry in self.cached if entry[0] not in taken]
        if taken:
            self.tables.append(taken)
        return list(taken)

    def share(self, blocks: list[int]) -> None:
        self.free = [block for block in self.free if block not in blocks]
        self.tables.append(list(blocks))

    def release(self, table: int, keep: int) -> list[int]:
        """Free the blocks of a table behind the first `keep`; gives them in the table's order."""
        gone = self.tables[table][keep:]
        for _ in gone:
            block = self.tables[table].pop()
            if not self.count(block):
                self.free.append(block)
        self.tables = [table for table in self.tables if table]
        return gone

    def reset(self) -> bool:
        if self.tables:
            return False
        self.cached = []
        return True
