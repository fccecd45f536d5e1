"""What this machine is, and why the autograder treats it as it does.

GPUs are read through NVML, the driver's management library: unlike torch it creates no CUDA context, so this costs no
GPU memory and a process may still fork afterwards. Packages are read from their metadata and never imported.

Not covered: AMD and Apple GPUs (reported as none), MIG slices (the whole GPU is reported), what is free at the moment.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

PACKAGES = ("torch", "transformers", "vllm", "bitsandbytes", "fastapi", "nbgrader")


@dataclass(frozen=True)
class Gpu:
    """One GPU: total memory in bytes, driver version, CUDA compute capability such as "9.0"."""

    name: str
    memory_bytes: int
    driver: str
    capability: str


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
    found, gpus_why = _gpus()
    gpus, visible_why = _visible(found)
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
    quota = _cgroup("cpu.max").split()
    note = ""
    if len(quota) == 2 and quota[0].isdigit() and int(quota[0]) < cores * int(quota[1]):
        note = f"; the container's quota allows {int(quota[0]) / int(quota[1]):g} of them at a time"
    return cores, f"the affinity mask of this process on a machine of {total}{note}"


def _memory() -> tuple[int | None, str]:
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None, "unknown, because the system does not report it"
    limit = _cgroup("memory.max").strip()
    if limit.isdigit() and int(limit) < physical:
        return int(limit), f"the container's limit ({_gib(int(limit))} of {_gib(physical)})"
    return physical, "all of the machine's, no container limit found"


def _cgroup(file: str) -> str:
    try:
        return (Path("/sys/fs/cgroup") / file).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""  # no cgroup v2 here: no limit that we could know of


def _gpus() -> tuple[list[tuple[str, Gpu]], str]:
    """All GPUs as (uuid, Gpu) in NVML's order, and why the list is as it is."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return [], "NVML cannot be asked (package nvidia-ml-py is not installed)"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return [], f"NVML found no GPU driver ({error})"
    try:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        gpus = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
            gpu = Gpu(
                name=_text(nvml.nvmlDeviceGetName(handle)),
                memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
                driver=driver,
                capability=f"{major}.{minor}",
            )
            gpus.append((_text(nvml.nvmlDeviceGetUUID(handle)), gpu))
    except nvml.NVMLError as error:
        return [], f"NVML could not describe the GPUs ({error})"
    finally:
        nvml.nvmlShutdown()
    return gpus, f"NVML found {len(gpus)} GPU(s)" if gpus else "NVML found no GPU"


def _visible(found: list[tuple[str, Gpu]]) -> tuple[list[tuple[str, Gpu]], str]:
    """Those that CUDA would show, which NVML does not know of, and why (empty: all of them).

    As CUDA does, the list ends at the first entry that names no GPU. With unlike GPUs CUDA may number them by speed;
    CUDA_DEVICE_ORDER=PCI_BUS_ID makes its numbers those used here.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not found:
        return found, ""
    kept: list[tuple[str, Gpu]] = []
    for entry in (part.strip() for part in chosen.split(",")):
        if entry.isdigit():
            matches = found[int(entry) : int(entry) + 1]
        else:
            matches = [pair for pair in found if entry.startswith("GPU-") and pair[0].startswith(entry)]
        if len(matches) != 1:
            break
        kept += matches
    return kept, f"CUDA_VISIBLE_DEVICES shows {len(kept)} of the {len(found)} GPU(s) that NVML found"


def _torch_without_cuda(version: str | None) -> str:
    if version is None:
        return "torch, which would use the GPU, is not installed"
    if version.endswith("+cpu"):
        return f"torch {version} is built without CUDA"
    return ""


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value  # older bindings return bytes


def _gib(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"
