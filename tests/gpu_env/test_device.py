"""A machine is described with a reason for every choice, with or without a GPU, and without telling whose it is."""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gpu_env import device
from gpu_env.__main__ import render

ROOT = Path(device.__file__).parents[1]
H100 = "NVIDIA H100 80GB HBM3"


class NVMLError(Exception):
    """Stands for the binding's own error."""


def fake_nvml(count: int = 2, fail_in: str = "", as_bytes: bool = False) -> Any:
    """A binding with `count` H100s; `fail_in` names the function that raises."""
    nvml: Any = ModuleType("pynvml")
    nvml.NVMLError = NVMLError
    nvml.open = 0

    def text(value: str) -> str | bytes:
        return value.encode() if as_bytes else value

    def function(name: str, result: Any) -> None:
        def call(*arguments: Any) -> Any:
            if name == fail_in:
                raise NVMLError("Driver Not Loaded")
            return result(*arguments)

        setattr(nvml, name, call)

    def change(by: int) -> None:
        nvml.open += by

    function("nvmlInit", lambda: change(1))
    function("nvmlShutdown", lambda: change(-1))
    function("nvmlSystemGetDriverVersion", lambda: text("580.159"))
    function("nvmlDeviceGetCount", lambda: count)
    function("nvmlDeviceGetHandleByIndex", lambda index: index)
    function("nvmlDeviceGetCudaComputeCapability", lambda handle: (9, 0))
    function("nvmlDeviceGetName", lambda handle: text(H100))
    function("nvmlDeviceGetMemoryInfo", lambda handle: type("Memory", (), {"total": 80 * 2**30}))
    function("nvmlDeviceGetUUID", lambda handle: text(f"GPU-{handle}{handle}-x"))
    return nvml


@pytest.fixture
def torch_version(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the version of torch that the metadata names; None: not installed."""
    real = importlib.metadata.version

    def replace(version: str | None) -> None:
        def fake(name: str) -> str:
            if name != "torch":
                return real(name)
            if version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(importlib.metadata, "version", fake)

    replace("2.13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return replace


def test_this_machine_is_described() -> None:
    """On whatever machine the tests run, every field holds something and fits JSON."""
    machine = device.describe()
    assert machine.cores >= 1
    assert machine.memory_bytes is None or machine.memory_bytes > 2**28
    assert machine.python.endswith(platform.python_version())
    assert all((machine.platform, machine.kernel, machine.cpu))
    assert json.loads(json.dumps(machine.as_dict())) == machine.as_dict()
    assert machine.reasons[0].startswith(f"tier: {machine.tier}, because ")


def test_cores_are_those_of_the_affinity_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process pinned to three cores of many has three."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 4}, raising=False)
    assert device.describe().cores == 3


def test_missing_binding_is_the_reason(monkeypatch: pytest.MonkeyPatch, torch_version: Any) -> None:
    """Without nvidia-ml-py there is no GPU tier, and the report says what to install."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    machine = device.describe()
    assert (machine.tier, machine.gpus) == ("cpu", ())
    assert "nvidia-ml-py is not installed" in machine.reasons[0]


@pytest.mark.parametrize(
    ("nvml", "reason"),
    [
        (fake_nvml(count=0), "NVML found no GPU"),
        (fake_nvml(fail_in="nvmlInit"), "NVML found no GPU driver (Driver Not Loaded)"),
        (fake_nvml(fail_in="nvmlDeviceGetName"), "NVML could not describe the GPUs (Driver Not Loaded)"),
    ],
)
def test_no_usable_gpu_is_the_cpu_tier(
    monkeypatch: pytest.MonkeyPatch, torch_version: Any, nvml: Any, reason: str
) -> None:
    """No GPU, no driver, or a driver that fails half-way: the CPU tier with that reason, and NVML closed again."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    machine = device.describe()
    assert (machine.tier, machine.gpus) == ("cpu", ())
    assert machine.reasons[0] == f"tier: cpu, because {reason}"
    assert nvml.open == 0


@pytest.mark.parametrize("as_bytes", [False, True])
def test_gpus_are_described_through_nvml(monkeypatch: pytest.MonkeyPatch, torch_version: Any, as_bytes: bool) -> None:
    """Name, memory, driver and capability of every GPU, from bindings that return text or bytes."""
    nvml: Any = fake_nvml(count=2, as_bytes=as_bytes)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    machine = device.describe()
    assert machine.gpus == (device.Gpu(H100, 80 * 2**30, "580.159", "9.0"),) * 2
    assert machine.reasons[0] == "tier: gpu, because NVML found 2 GPU(s)"
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("chosen", "count"), [("", 0), ("-1", 0), ("1", 1), ("0,1", 2), ("0,7,1", 1), ("GPU-11", 1), ("GPU-", 0)]
)
def test_only_gpus_that_cuda_shows_count(
    monkeypatch: pytest.MonkeyPatch, torch_version: Any, chosen: str, count: int
) -> None:
    """CUDA_VISIBLE_DEVICES hides GPUs from torch, so the tier follows it although NVML sees them all."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(count=2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    machine = device.describe()
    assert len(machine.gpus) == count
    assert machine.tier == ("gpu" if count else "cpu")
    assert f"CUDA_VISIBLE_DEVICES shows {count} of the 2 GPU(s)" in machine.reasons[0]


@pytest.mark.parametrize(("version", "reason"), [("2.13.0+cpu", "built without CUDA"), (None, "not installed")])
def test_torch_that_cannot_use_the_gpu_means_cpu_tier(
    monkeypatch: pytest.MonkeyPatch, torch_version: Any, version: str | None, reason: str
) -> None:
    """A GPU that torch cannot drive is listed, and the tier is the CPU's with the reason."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(count=1))
    torch_version(version)
    machine = device.describe()
    assert (machine.tier, len(machine.gpus)) == ("cpu", 1)
    assert reason in machine.reasons[0]


def test_versions_come_from_metadata(torch_version: Any) -> None:
    """An installed package has its version and an absent one is left out."""
    assert device.describe().packages["torch"] == "2.13.0"
    torch_version(None)
    assert "torch" not in device.describe().packages


def test_report_lists_gpus_and_reasons(monkeypatch: pytest.MonkeyPatch, torch_version: Any) -> None:
    """Each GPU and each reason has a line of its own."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(count=2))
    machine = device.describe()
    lines = render(machine).splitlines()
    assert lines.count(f"gpu 1        {H100}, 80.0 GiB, sm 9.0, driver 580.159") == 1
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("why ")] == list(machine.reasons)


def test_report_names_no_user_host_or_path() -> None:
    """What `python -m gpu_env` prints can be posted in a forum, and torch was not imported for it."""
    command = [sys.executable, "-X", "importtime", "-m", "gpu_env"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "why          tier: " in done.stdout
    words = set(done.stdout.replace(",", " ").split())
    assert not words & {getpass.getuser(), socket.gethostname()}
    for path in (str(Path.home()), str(ROOT), sys.prefix):
        assert path not in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "gpu_env.device" in imported
    assert "torch" not in imported
