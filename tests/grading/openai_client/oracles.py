"""What the hidden checks of `openai_client` compare with: a queue, numpy, a parser of Prometheus' text, real vLLM."""

from __future__ import annotations

import heapq
import math
import random
from pathlib import Path
from typing import Any

import numpy as np

from autograder.authoring import engine
from autograder.judging.oracle import oracle
from autograder.judging.timed import NotHere
from gpu_env import models, vllm_engine

MODEL = "SmolLM2-135M-Instruct"
VERSION = "0.32.0"
"""Of the recording that is replayed."""


def recording() -> Path:
    """What a real server said."""
    return engine.recorded(VERSION)


@oracle
def server() -> vllm_engine.Server:
    """A real server for the whole run, beside the sandbox. Ends with this process."""
    try:
        return vllm_engine.Server(models.find(MODEL))
    except vllm_engine.EngineUnavailable as error:
        if vllm_engine.obstacle():
            raise NotHere(f"No real vLLM server here. {error}") from None
        raise


def queue(arrivals: list[float], durations: list[float], limit: int | None) -> list[float]:
    """When each request starts: first come, first served, at most `limit` at once."""
    ends: list[float] = []
    starts = []
    for arrival, duration in zip(arrivals, durations, strict=True):
        start = arrival if limit is None or len(ends) < limit else max(arrival, heapq.heappop(ends))
        heapq.heappush(ends, start + duration)
        starts.append(start)
    return starts


def statistics(values: list[float]) -> dict[str, float]:
    """Mean, median and 99th percentile, numpy's."""
    if not values:
        return dict.fromkeys(("mean", "p50", "p99"), math.nan)
    found = [np.mean(values), np.percentile(values, 50), np.percentile(values, 99)]
    return dict(zip(("mean", "p50", "p99"), map(float, found), strict=True))


def samples(text: str) -> list[list[Any]]:
    """The samples of a text in Prometheus' format, by prometheus_client."""
    from prometheus_client.parser import text_string_to_metric_families

    return [
        [sample.name, tuple(sorted(sample.labels.items())), float(sample.value)]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def events(rng: random.Random, number: int) -> tuple[bytes, list[str]]:
    """A random stream and the data of its events: the events come first, the bytes are made from them."""
    letters = ["a", " ", "é", "中", "😀", "\u2028", "\x85", "\x0b", '"', ":", "data: x"]
    parts, expected = ["\ufeff"] if rng.random() < 0.5 else [], []
    for _ in range(number):
        newline = rng.choice(["\n", "\r\n", "\r"])
        lines = ["".join(rng.choices(letters, k=rng.randrange(6))) for _ in range(rng.choice([1, 1, 2, 3]))]
        for line in lines:
            if rng.random() < 0.3:
                parts.append(
                    rng.choice([": comment", "event: e", "id", "retry: 5", "dat: no", " data: no", "Data: no"])
                    + newline
                )
            space = " " if line.startswith(" ") or rng.random() < 0.7 else ""
            parts.append(f"data:{space}{line}{newline}" if line or rng.random() < 0.5 else f"data{newline}")
        parts.append(newline)
        expected.append("\n".join(lines))
        if rng.random() < 0.3:
            parts.append(f": keep-alive{newline}{newline}")
    parts.append(rng.choice(["data: never ended\n", ": end"]))  # so that nobody waits for what follows a last "\\r"
    return "".join(parts).encode(), expected
