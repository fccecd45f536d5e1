"""What the hidden checks of `vllm_setup` compare with: transformers, vLLM and its recordings, exact search."""

from __future__ import annotations

import json
import math
import random
from fractions import Fraction
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from autograder.authoring import engine
from autograder.judging.oracle import oracle
from autograder.judging.timed import NotHere
from gpu_env import models, vllm_engine

MODEL = "SmolLM2-135M-Instruct"
VERSION = "0.32.0"
"""Of the recordings."""
ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4}
RESERVE = 1 << 30


def config(rng: random.Random, **given: Any) -> dict[str, Any]:
    """A small Llama of random shape; its width is a multiple of its heads, but rarely heads times numbers per head."""
    heads, size = rng.choice([1, 2, 3, 8]), rng.choice([16, 24, 64])
    queries = given.get("num_attention_heads", heads * rng.choice([1, 2, 4]))
    return {
        "vocab_size": rng.randrange(50, 500), "hidden_size": queries * rng.randrange(5, 40),
        "intermediate_size": rng.randrange(20, 400), "num_hidden_layers": rng.randrange(1, 7),
        "num_attention_heads": queries, "num_key_value_heads": heads, "head_dim": size,
        "tie_word_embeddings": rng.random() < 0.5, **given,
    }  # fmt: skip


def parameters(given: dict[str, Any]) -> int:
    """The numbers that transformers would allocate for a model; a tied head is the same parameter, and counts once."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**given))
    return sum(each.numel() for each in model.parameters())


def page_sizes() -> list[list[Any]]:
    """Rows of tokens per block, KV heads, numbers per head, dtype, and the bytes of one layer's block, by vLLM."""
    rows: list[list[Any]] = json.loads((engine.recorded(VERSION) / "page_sizes.json").read_text(encoding="utf-8"))
    return rows


def starts() -> list[dict[str, Any]]:
    """What real engines of SmolLM2 were given, and what they logged about their KV cache."""
    rows: list[dict[str, Any]] = json.loads((engine.recorded(VERSION) / "starts.json").read_text(encoding="utf-8"))
    return rows


@oracle
def server() -> vllm_engine.Server:
    """A real server for the whole run, beside the sandbox. Ends with this process."""
    try:
        return vllm_engine.Server(
            models.find(MODEL),
            ["--kv-cache-memory-bytes", str(1 << 30), "--block-size", str(vllm_engine.CPU_BLOCK_SIZE)],
        )
    except vllm_engine.EngineUnavailable as error:
        if vllm_engine.obstacle():
            raise NotHere(f"No real vLLM server here. {error}") from None
        raise


def pages(lens: list[int], block_size: int) -> int:
    """Blocks that are taken when the requests are written token by token."""
    taken = 0
    for length in lens:
        room = 0
        for _ in range(length):
            if room == 0:
                taken, room = taken + 1, block_size
            room -= 1
    return taken


def _kv_bytes(total: int, percent: int, weights: int) -> Fraction:
    """What vLLM leaves for the KV cache at a share: not yet rounded."""
    return Fraction(total * percent, 100) - weights - RESERVE


def smallest_percent(
    total: int, free: int, weights: int, token_bytes: int, block_size: int, length: int, requests: int
) -> tuple[int | None, int, float]:
    """The smallest percent at which as many requests fit, or `None`; the bytes that are missing at the largest one; and how
    near (in bytes) any of the decisions was to going the other way, so that no submission is judged by a rounding."""
    per_request = block_size * token_bytes * math.ceil(Fraction(length, block_size))
    wanted = requests * per_request
    allowed = [percent for percent in range(93) if Fraction(total * percent, 100) <= free]
    fitting = [percent for percent in allowed if percent and _kv_bytes(total, percent, weights) >= wanted]
    margins = [abs(Fraction(total * percent, 100) - free) for percent in range(1, 93)]
    margins += [abs(_kv_bytes(total, percent, weights) - wanted) for percent in range(1, 93)]
    missing = wanted - math.floor(_kv_bytes(total, allowed[-1], weights))
    return (fitting[0] if fitting else None), missing, float(min(margins))
