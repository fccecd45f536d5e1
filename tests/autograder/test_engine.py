"""What assignments stand on in vLLM, and an engine that student code starts inside the sandbox."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from autograder import suite
from autograder.authoring import engine
from autograder.judging.remote import RunningSubmission
from autograder.sandboxing.sandbox import Limits, SandboxUnavailable, best_sandbox
from autograder.spec import Assignment, Task
from gpu_env import models, vllm_engine

WHY = vllm_engine.obstacle()
VERSIONS = ("0.25.1", "0.32.0")
needs_vllm = pytest.mark.skipif(bool(WHY), reason=f"no real vLLM: {WHY}")
STUDENT = """
import os

def ask(path, question, block_size):
    from vllm import LLM, SamplingParams
    llm = LLM(path, max_model_len=256, max_num_seqs=4, dtype="bfloat16", enforce_eager=True, block_size=block_size)
    (output,) = llm.chat([{"role": "user", "content": question}], SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)
    return output.outputs[0].text
"""


def assignment(*names: str) -> Assignment:
    """An assignment that stands on `names`."""
    return Assignment("teapot", "Teapot", (Task("pour", "Pour", 1, public={"test_pour": 1}),), vllm=names)


@pytest.mark.parametrize("version", VERSIONS)
def test_metrics_of_every_recorded_version_are_those_of_the_course(version: str) -> None:
    """A recording holds the metrics that the course teaches, and not their old names."""
    known = engine.recorded_metrics(version)
    assert {"vllm:kv_cache_usage_perc", "vllm:inter_token_latency_seconds", "vllm:generation_tokens_total"} <= known
    assert (
        not {"vllm:gpu_cache_usage_perc", "vllm:time_per_output_token_seconds", "vllm:gpu_memory_usage_bytes"} & known
    )


@pytest.mark.parametrize("file", ["page_sizes.json", "starts.json"])
def test_memory_follows_one_formula_in_every_recorded_version(file: str) -> None:
    """0.25.1 on CUDA and 0.32.0 on a CPU get as many tokens and requests out of as many bytes."""
    said = {version: json.loads((engine.recorded(version) / file).read_text(encoding="utf-8")) for version in VERSIONS}
    assert all(each == said["0.32.0"] for each in said.values())


def test_a_version_that_nobody_recorded_is_told_with_a_remedy() -> None:
    """The text says how to record it."""
    with pytest.raises(FileNotFoundError, match=r"vLLM 9\.9.*record_vllm"):
        engine.recorded_metrics("9.9")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_metric_of_every_assignment_is_in_every_recording(version: str) -> None:
    """Also where no vLLM is installed."""
    known = engine.recorded_metrics(version)
    used = {
        name: each for each in suite.names() for name in suite.load_assignment(each).vllm if name.startswith("vllm:")
    }
    assert {name: user for name, user in used.items() if name not in known} == {}


@needs_vllm
def test_every_name_that_assignments_use_is_there() -> None:
    """Objects, options and metrics of all assignments, in the vLLM that is installed."""
    assert list(engine.broken()) == []


@needs_vllm
def test_recorded_page_sizes_are_those_of_the_installed_vllm() -> None:
    """What suites take for the bytes of a block is what vLLM's own FullAttentionSpec says."""
    script = suite.repository() / "tests" / "benchmarks" / "record_vllm.py"
    said = subprocess.run([sys.executable, str(script), "pages"], capture_output=True, text=True, check=True).stdout
    recorded = engine.recorded(vllm_engine.installed() or "") / "page_sizes.json"
    assert json.loads(said) == json.loads(recorded.read_text(encoding="utf-8"))


@needs_vllm
def test_the_assignment_that_breaks_is_named() -> None:
    """Of every kind of name one that is not there is told, with who needs it; those beside it are not."""
    names = ("vllm.LLM.chat", "vllm.LLM.teleport", "vllm serve --seed", "vllm serve --teapot", "vllm:teapots_total")
    found = {each.name: each for each in engine.broken([assignment(*names)])}
    assert set(found) == {"vllm.LLM.teleport", "vllm serve --teapot", "vllm:teapots_total"}
    assert {each.assignment for each in found.values()} == {"teapot"}


@needs_vllm
@pytest.mark.parametrize("processes", ["one", "several"])
def test_student_code_starts_an_engine_inside_the_sandbox(processes: str) -> None:
    """`LLM(...)` of a submission works behind all walls, in the worker's own process as in processes that vLLM starts."""
    model = models.find("SmolLM2-135M-Instruct")
    source = STUDENT + f"\nos.environ['VLLM_ENABLE_V1_MULTIPROCESSING'] = '{int(processes == 'several')}'\n"
    try:
        sandbox = best_sandbox((), 3, [model], loopback=True)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    limits = Limits(cpu_s=300, memory_bytes=6 << 30, processes=256)
    running = RunningSubmission([("cell", source)], sandbox, limits, call_s=500)
    try:
        said = running.ask(str(model), vllm_engine.QUESTION, vllm_engine.CPU_BLOCK_SIZE)
    finally:
        running.close()
        sandbox.close()
    assert vllm_engine.ANSWER in said
