"""Record what a real vLLM server says, for the suites that replay it: `python tests/benchmarks/record_vllm.py`.

Into `tests/recordings/vllm-VERSION/` go the log lines on the KV cache, one streamed chat and one error byte by byte, and
`/metrics` after that chat. Run it again for every version that is to be supported, and commit what it writes.
"""

from __future__ import annotations

import json
from pathlib import Path

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


def main() -> None:
    """Start a server, ask it, write down what it says."""
    folder = Path(__file__).parents[1] / "recordings" / f"vllm-{vllm_engine.installed()}"
    folder.mkdir(parents=True, exist_ok=True)
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
        lines = [line for line in server.log.splitlines() if "KV cache" in line]
        (folder / "log.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
