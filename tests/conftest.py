"""What all tests share: one real vLLM server per test run, and no deadline for examples of property tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from gpu_env import models, vllm_engine

settings.register_profile("any machine", deadline=None)  # how fast an example is says something of the machine only
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def vllm_server() -> Iterator[vllm_engine.Server]:
    """A real vLLM server of SmolLM2, started when the first test asks for it; those that do are skipped without one."""
    try:
        server = vllm_engine.Server(models.find("SmolLM2-135M-Instruct"))
    except (vllm_engine.EngineUnavailable, models.ModelMissing) as error:
        if not vllm_engine.obstacle():
            raise  # it is installed and does not start: that is no reason to skip
        pytest.skip(f"no real vLLM: {error}")
    with server:
        yield server
