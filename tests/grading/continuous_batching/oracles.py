"""Where the hidden checks of `continuous_batching` get expected values from: never the reference.

`warped`       logits as transformers' own processors leave them
`law`          the exact law of the next token, token by token in double precision
`expect_law`   counted draws against it
`stopped`      where a text stops, character by character; `held_back` the ending that must wait
`Model`        the scheduler's rules in numbers of tokens and blocks alone; that they are vLLM's, a test shows on all recorded
               traces (tests/autograder/test_schedules.py)
`recorded`     what vLLM's own scheduler decided (tests/benchmarks/record_schedules.py)

vLLM 0.32 as it is by default differs from the handout in three things, which the recording switches off or keeps away from:
prefix caching (a preempted request finds its own blocks again), asynchronous scheduling (a step is planned before the last
one has ended), and `max_model_len`. All else is the same, also what one would not guess: a request is admitted only if all
its known tokens fit (`scheduler_reserve_full_isl`), though it gets blocks for its chunk only; `long_prefill_token_threshold`
is off while there is one request; the watermark, which would keep blocks free at admission, is 0. On the 30 recorded traces
the handout's rules and vLLM decided the same in each of 1,776 steps, with 67 preemptions.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autograder.checks import fail
from autograder.judging.oracle import oracle
from gpu_env import models

INF = math.inf
RECORDING = Path(__file__).parents[2] / "recordings" / "vllm-0.32.0" / "schedules.json"

# ------------------------------------------------------------------------------------------------------------- logits


def warped(name: str, logits: torch.Tensor, *arguments: Any, text: Sequence[int] = ()) -> torch.Tensor:
    """Rows of logits after the processor of transformers that is called `name`."""
    processor = getattr(processors(), name)(*arguments)
    rows = logits.reshape(-1, logits.shape[-1]).clone()
    ids = torch.tensor([list(text)] * len(rows), dtype=torch.int64)
    return processor(ids, rows).reshape(logits.shape)


@oracle
def processors() -> Any:
    """The module of transformers with its logits processors; importing it takes seconds."""
    from transformers.generation import logits_process

    return logits_process


def rows(rng: random.Random, *shape: int, holes: float = 0.0) -> torch.Tensor:
    """Random logits of that shape, all of a row different; a share of `holes` is -inf, never the first of a row."""
    draw = np.random.default_rng(rng.getrandbits(64))
    logits = torch.from_numpy(draw.normal(0, 3, shape).astype(np.float32))
    empty = torch.from_numpy(draw.random(shape) < holes)
    empty[..., 0] = False
    return logits.masked_fill(empty, -INF)


def probabilities(row: Sequence[float]) -> list[float]:
    """Softmax in double precision."""
    top = max(row)
    if top == -INF:
        raise ValueError("no token is left")
    weights = [math.exp(logit - top) for logit in row]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


class TooClose(Exception):
    """Rounding may decide which tokens are kept: choose other parameters."""


def nucleus(row: Sequence[float], p: float, margin: float = 1e-4) -> list[float]:
    """What top-p leaves of a row. `TooClose` if a sum of probabilities comes near p."""
    if p == 1:
        return list(row)
    probs = probabilities(row)
    kept, total = set(), 0.0
    for token in sorted(range(len(row)), key=lambda token: -probs[token]):
        if abs(total - p) < margin:
            raise TooClose
        if total < p and probs[token]:
            kept.add(token)
        total += probs[token]
    return [logit if token in kept else -INF for token, logit in enumerate(row)]


def at_least(row: Sequence[float], min_p: float, margin: float = 1e-4) -> list[float]:
    """What min-p leaves of a row. `TooClose` if a probability comes near the limit."""
    probs = probabilities(row)
    limit = min_p * max(probs)
    if min_p and any(prob and abs(prob / limit - 1) < margin for prob in probs if prob != max(probs)):
        raise TooClose
    return [logit if prob >= limit else -INF for logit, prob in zip(row, probs, strict=True)]


def step(row: list[float], name: str, value: Any, text: Sequence[int]) -> list[float]:
    """One of the five changes of a row of finite or infinite logits."""
    if name == "repetition_penalty":
        return [
            logit if token not in text else logit / value if logit > 0 else logit * value
            for token, logit in enumerate(row)
        ]
    if name == "temperature":
        if value == 0:
            return [logit if token == row.index(max(row)) else -INF for token, logit in enumerate(row)]
        return [logit / value for logit in row]
    if name == "min_p":
        return at_least(row, value)
    if name == "top_k":
        return [logit if not value or sum(other > logit for other in row) < value else -INF for logit in row]
    return nucleus(row, value)


ORDER = ("repetition_penalty", "temperature", "min_p", "top_k", "top_p")


def law(row: Sequence[float], wanted: dict[str, Any], text: Sequence[int], order: Sequence[str] = ORDER) -> list[float]:
    """The probability of each token. `TooClose` where rounding could decide."""
    changed = list(row)
    for name in order:
        if name in wanted:
            changed = step(changed, name, wanted[name], text)
    return probabilities(changed)


def far(first: Sequence[float], second: Sequence[float], least: float = 0.08) -> bool:
    """Whether draws from `first` are soon seen not to be from `second`."""
    return any(
        (p < 1e-12 < q and q > 0.02) or (p > 0 and divergence(q, p) > least) for p, q in zip(first, second, strict=True)
    )


def divergence(share: float, chance: float) -> float:
    """Relative entropy of two coins, in nats."""
    parts = ((share, chance), (1 - share, 1 - chance))
    return sum(a * math.log(a / b) if b > 0 else INF for a, b in parts if a > 0)


FALSE_ALARM = 1e-9
"""Of one comparison of a share. `test_sample_law` makes at most 100 of them."""


def expect_law(tokens: Sequence[int], chances: Sequence[float], what: str) -> None:
    """`tokens` must be independent draws with these chances.

    Of n draws, P(relative entropy of share and chance >= t / n) <= 2 exp(-t) (Chernoff), for each token and every n.
    """
    n = len(tokens)
    limit = math.log(2 / FALSE_ALARM) / n
    for token, chance in enumerate(chances):
        share = tokens.count(token) / n
        if chance < 1e-12 and share:
            fail(f"{what}: token {token} was drawn, which must be impossible.", value=f"{tokens.count(token)} of {n}")
        if chance > 0 and divergence(share, min(1.0, chance)) > limit:
            value, expected = f"{tokens.count(token)} of {n}", f"about {n * chance:.0f} of {n}"
            fail(
                f"{what}: the share of token {token} is not the one that it must have.", value=value, expected=expected
            )


# --------------------------------------------------------------------------------------------------------------- text


def stopped(text: str, stop: Sequence[str]) -> tuple[int, str] | None:
    """Where the text ends, and with which stop string; `None` if with none."""
    for end in range(1, len(text) + 1):
        if found := [each for each in stop if text[:end].endswith(each)]:
            return end, max(found, key=len)
    return None


def held_back(text: str, stop: Sequence[str]) -> str:
    """The longest ending of the text that is the beginning of a stop string."""
    beginnings = {each[:length] for each in stop for length in range(len(each))}
    return max(
        (text[start:] for start in range(len(text) + 1) if text[start:] in beginnings or start == len(text)), key=len
    )


@oracle
def smollm2() -> Any:
    """The tokenizer of SmolLM2. Raises `ModelMissing` where there is none."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(models.find("SmolLM2-135M-Instruct")))


# ---------------------------------------------------------------------------------------------------------- scheduler


class Model:
    """The scheduler's rules, in numbers. What a request holds follows from how many of its tokens are computed."""

    def __init__(
        self, seqs: int, budget: int, num_blocks: int, block_size: int, threshold: int, eos: int | None
    ) -> None:
        self.seqs, self.budget, self.threshold, self.eos = seqs, budget, threshold, eos
        self.num_blocks, self.block_size = num_blocks, block_size
        self.text: dict[str, list[int]] = {}
        """Known tokens of each request that is there."""
        self.left: dict[str, int] = {}
        """How many more tokens may be sampled."""
        self.computed: dict[str, int] = {}
        self.waiting: list[str] = []
        self.running: list[str] = []

    def cost(self, tokens: int) -> int:
        """Blocks for so many tokens."""
        return -(-tokens // self.block_size)

    def free(self) -> int:
        """Blocks that nobody holds."""
        return self.num_blocks - sum(self.cost(self.computed[name]) for name in self.running)

    def add(self, name: str, prompt: list[int], wanted: int) -> None:
        self.text[name], self.left[name], self.computed[name] = list(prompt), wanted, 0
        self.waiting.append(name)

    def remove(self, name: str) -> None:
        (self.running if name in self.running else self.waiting).remove(name)
        del self.text[name], self.left[name], self.computed[name]

    def step(self) -> tuple[dict[str, int], list[str]]:
        """How many tokens each request computes in this step, and who is preempted."""
        alone = len(self.running) + len(self.waiting) == 1
        most = self.budget if alone or not self.threshold else self.threshold
        budget, free = self.budget, self.free()
        counts: dict[str, int] = {}
        preempted: list[str] = []
        victims = list(self.running)
        for name in self.running:
            if name not in victims or budget == 0:
                break
            count = min(len(self.text[name]) - self.computed[name], most, budget)
            more = self.cost(self.computed[name] + count) - self.cost(self.computed[name])
            while more > free and name in victims:
                preempted.append(victims.pop())
                free += self.cost(self.computed[preempted[-1]])
            if name in victims:
                counts[name], budget, free = count, budget - count, free - more
        for name in [] if preempted else self.waiting:
            if budget == 0 or len(victims) == self.seqs or self.cost(len(self.text[name])) > free:
                break
            counts[name] = min(len(self.text[name]), most, budget)
            budget, free = budget - counts[name], free - self.cost(counts[name])
            victims.append(name)
        self.waiting = [*reversed(preempted), *(name for name in self.waiting if name not in counts)]
        self.running = victims
        self.computed |= dict.fromkeys(preempted, 0)
        for name, count in counts.items():
            self.computed[name] += count
        return counts, preempted

    def ready(self) -> list[str]:
        """Requests whose known tokens are all computed: each gets a token now."""
        return [name for name in self.running if self.computed[name] == len(self.text[name])]

    def update(self, sampled: dict[str, int]) -> list[str]:
        """Who is finished now."""
        finished = []
        for name, token in sampled.items():
            if name in self.running:
                self.text[name].append(token)
                self.left[name] -= 1
                if self.left[name] == 0 or token == self.eos:
                    finished.append(name)
        for name in finished:
            self.remove(name)
        return finished


@oracle
def recorded() -> list[dict[str, Any]]:
    """The recorded traces, with what vLLM decided in each step."""
    traces: list[dict[str, Any]] = json.loads(RECORDING.read_text(encoding="utf-8"))["traces"]
    return traces


def static_steps(wanted: Sequence[int], places: int) -> int:
    """Steps of static batching, where each prompt fits into one step: each batch runs until its last request is finished."""
    return sum(max(wanted[first : first + places]) for first in range(0, len(wanted), places))


def toy_token(text: Sequence[int]) -> int:
    """What a language model says after a text: any number from 0 to 96 that depends on every token and its place."""
    state = 17
    for token in text:
        state = (state * 31 + token + 1) % 1_000_003
    return state % 97
