"""The rules that `continuous_batching` teaches are those of vLLM's own scheduler: as recorded, and as it is where installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autograder import suite
from gpu_env import models, vllm_engine

suite.load_assignment("continuous_batching")  # makes `grading` importable
from grading.continuous_batching.oracles import RECORDING, Model, recorded  # noqa: E402

WHY = vllm_engine.obstacle()


def replay(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """What the suite's model of the rules decides on a trace."""
    model = Model(
        trace["max_num_seqs"],
        trace["max_num_batched_tokens"],
        trace["num_blocks"],
        trace["block_size"],
        trace["long_prefill_threshold"],
        None,
    )
    arriving, steps = list(trace["requests"]), list[dict[str, Any]]()
    while arriving or model.text:
        while arriving and arriving[0]["step"] <= len(steps):
            each = arriving.pop(0)
            model.add(each["id"], [7] * each["prompt"], each["max_tokens"])
        for abort in trace["aborts"]:
            if abort["step"] == len(steps) and abort["id"] in model.text:
                model.remove(abort["id"])
        scheduled, preempted = model.step()
        steps.append({"scheduled": scheduled, "preempted": preempted})
        model.update(dict.fromkeys(model.ready(), 7))
    return steps


def test_the_suite_s_model_of_the_rules_decides_as_vllm_did() -> None:
    """On every recorded trace, in every step; and there are preemptions, several in one step, and aborts among them."""
    traces = recorded()
    for trace in traces:
        assert replay(trace) == trace["steps"]
    out = [len(step["preempted"]) for trace in traces for step in trace["steps"]]
    assert sum(out) > 50
    assert max(out) > 1
    assert any(trace["aborts"] for trace in traces)


@pytest.mark.skipif(bool(WHY), reason=f"no real vLLM: {WHY}")
def test_the_vllm_that_is_installed_decides_as_it_was_recorded(tmp_path: Path) -> None:
    """The recording script, run again, gives the same decisions. It runs in a process of its own: vLLM is large."""
    try:
        models.find("SmolLM2-135M-Instruct")
    except models.ModelMissing as error:
        pytest.skip(f"vLLM wants a model's configuration: {error}")
    script = Path(__file__).parents[1] / "benchmarks" / "record_schedules.py"
    target = tmp_path / "schedules.json"
    subprocess.run([sys.executable, str(script), str(target)], check=True, capture_output=True, timeout=600)
    live, known = (json.loads(path.read_text(encoding="utf-8")) for path in (target, RECORDING))
    assert live["traces"] == known["traces"]
