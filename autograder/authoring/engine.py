"""What the assignments stand on in vLLM, tried out: which assignment breaks with another version, and at which name.

An assignment lists it in its `spec.py` (`Assignment.vllm`): objects ("vllm.LLM.chat"), options ("vllm serve --seed"),
metrics ("vllm:kv_cache_usage_perc"). Objects and options are looked up in the vLLM that is installed, metrics in what a
real server of that version was recorded to say; `gpu_env.vllm_engine` states which versions are supported.

Not covered: what an object does; that is for the suites, which run against a real server where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from autograder import suite
from autograder.spec import Assignment
from gpu_env import vllm_engine

__all__ = ["Broken", "broken", "recorded", "recorded_metrics"]

METRIC = "vllm:"


@dataclass(frozen=True)
class Broken:
    """A name that an assignment needs and this vLLM does not have."""

    assignment: str
    name: str
    why: str


def recorded(version: str) -> Path:
    """The folder of what a real server of that version said. `FileNotFoundError` with a remedy if nobody recorded one."""
    folder = suite.repository() / "tests" / "recordings" / f"vllm-{version}"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Nobody recorded vLLM {version}. Try: python tests/benchmarks/record_vllm.py, and commit what it writes."
        )
    return folder


def recorded_metrics(version: str) -> set[str]:
    """The names of all metrics in the recorded `/metrics`, of histograms also without `_bucket`, `_sum` and `_count`."""
    text = (recorded(version) / "metrics.txt").read_text(encoding="utf-8")
    return set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)) | set(re.findall(r"^([^#\s{]+)", text, re.MULTILINE))


def broken(assignments: Iterable[Assignment] | None = None) -> Iterator[Broken]:
    """All that the installed vLLM lacks. Imports vLLM in a process of its own. Raises `EngineUnavailable`."""
    if assignments is None:
        assignments = [suite.load_assignment(name) for name in suite.names()]
    users: dict[str, list[str]] = {}
    for assignment in assignments:
        for name in assignment.vllm:
            users.setdefault(name, []).append(assignment.name)
    version = vllm_engine.installed() or ""
    missing = vllm_engine.lacks([name for name in users if not name.startswith(METRIC)])
    metrics = [name for name in users if name.startswith(METRIC)]
    if metrics:
        try:
            known = recorded_metrics(version)
            missing |= {name: f"vLLM {version} has no such metric" for name in metrics if name not in known}
        except FileNotFoundError as error:
            missing |= dict.fromkeys(metrics, str(error))
    for name, why in missing.items():
        for user in users[name]:
            yield Broken(user, name, why)
