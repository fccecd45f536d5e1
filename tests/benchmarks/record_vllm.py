"""Record what a real vLLM says, for the suites that replay it: `python tests/benchmarks/record_vllm.py`.

Into `tests/recordings/vllm-VERSION/` go the log lines on the KV cache, one streamed chat and one error byte by byte,
`/metrics` after that chat; what engines of other sizes log about their KV cache (`starts.json`), and how many bytes one
layer's block takes (`page_sizes.json`; `record_vllm.py pages` prints these only). Run it again for every version that is to
be supported, and commit what it writes.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from gpu_env import models, vllm_engine

MODEL = "SmolLM2-135M-Instruct"
CHAT = {
    "model": MODEL,
    "messages": [{"role": "user", "content": vllm_engine.QUESTION}],
    "temperature": 0,
    "max_tokens": 16,
    "stream": True,
    "stream_options": {"include_usage": True},
}
STARTS: list[dict[str, Any]] = [
    {"dtype": "bfloat16", "kv_cache_memory_bytes": 300_000_000, "block_size": 64, "max_model_len": 1000},
    {"dtype": "float32", "kv_cache_memory_bytes": 1 << 29, "block_size": 32, "max_model_len": 777},
    {"dtype": "float16", "kv_cache_memory_bytes": 123_456_789, "block_size": 128, "max_model_len": 4096},
]
"""Of different types of number, and with lengths that are no whole number of blocks."""
PAGES = """
import itertools, json, torch
from vllm.v1.kv_cache_interface import FullAttentionSpec
for block, heads, size, dtype in itertools.product(*json.loads({given!r})):
    spec = FullAttentionSpec(block_size=block, num_kv_heads=heads, head_size=size, dtype=getattr(torch, dtype))
    print("PAGE", json.dumps([block, heads, size, dtype, spec.page_size_bytes]))
"""
KINDS = ((16, 32, 64, 128), (1, 3, 8, 32), (64, 80, 128), ("bfloat16", "float16", "float32"))
"""Tokens per block, KV heads, numbers per head, type of number."""


def pages() -> list[list[Any]]:
    """Bytes of one layer's block for all of `KINDS`, by vLLM in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PAGES.format(given=json.dumps(KINDS))],
        capture_output=True, text=True, check=True, env=os.environ | vllm_engine.ENVIRONMENT,
    )  # fmt: skip
    found = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("PAGE ")]
    assert len(found) == len(list(itertools.product(*KINDS)))
    return found


def start(options: dict[str, Any]) -> dict[str, Any]:
    """What an engine with these options logs: tokens of KV cache, and requests of the longest length at once."""
    given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    space = vllm_engine.ENVIRONMENT.pop("VLLM_CPU_KVCACHE_SPACE")  # it would win over the option
    try:
        with vllm_engine.Server(models.find(MODEL), given) as server:
            tokens, length, concurrency = vllm_engine.kv_cache(server.log)
    finally:
        vllm_engine.ENVIRONMENT["VLLM_CPU_KVCACHE_SPACE"] = space
    assert length == options["max_model_len"]
    return {**options, "tokens": tokens, "concurrency": concurrency}


def lines(values: list[Any]) -> str:
    """JSON with one line for each."""
    return "[\n" + ",\n".join(map(json.dumps, values)) + "\n]\n"


def main() -> None:
    """Start servers, ask, write down what they say."""
    folder = Path(__file__).parents[1] / "recordings" / f"vllm-{vllm_engine.installed()}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "page_sizes.json").write_text(lines(pages()), encoding="utf-8")
    (folder / "starts.json").write_text(lines([start(options) for options in STARTS]), encoding="utf-8")
    with (
        vllm_engine.Server(models.find(MODEL)) as server,
        httpx.Client(transport=httpx.HTTPTransport(uds=server.socket), base_url=server.url, timeout=120) as client,
    ):
        chat = client.post("/v1/chat/completions", json=CHAT)
        error = client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 99_999})
        assert (chat.status_code, error.status_code) == (200, 400)
        (folder / "chat.sse").write_bytes(chat.content)
        (folder / "error.json").write_text(json.dumps(error.json(), indent=1) + "\n", encoding="utf-8")
        (folder / "metrics.txt").write_text(client.get("/metrics").text, encoding="utf-8")
        said = [
            line for line in server.log.splitlines() if re.search("KV cache|Maximum concurrency", line)
        ]  # 0.25 says it in two lines
        (folder / "log.txt").write_text("\n".join(said) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["pages"]:
        print(lines(pages()), end="")
    else:
        main()
