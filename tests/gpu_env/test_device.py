"""A machine and its GPUs are described with a reason for every choice, and without telling whose machine it is."""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from gpu_env import device, nvml, per_boot, roofline
from gpu_env.__main__ import main, render

ROOT = Path(device.__file__).parents[1]
H100 = "NVIDIA H100 80GB HBM3"


BUSY = {
    "nvmlDeviceGetClockInfo": 1755,
    "nvmlDeviceGetMaxClockInfo": 1980,
    "nvmlDeviceGetDefaultApplicationsClock": 1980,
    "nvmlDeviceGetMaxCustomerBoostClock": 1980,
    "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
    "nvmlDeviceGetCurrentClocksThrottleReasons": 0x4,
    "nvmlDeviceGetTemperature": 54,
    "nvmlDeviceGetPowerUsage": 683_250,
    "nvmlDeviceGetComputeRunningProcesses": [
        SimpleNamespace(pid=4, usedGpuMemory=2**30),
        SimpleNamespace(pid=5, usedGpuMemory=None),
    ],
}
"""What a working H100 answers about its state."""


def fake_nvml(count: int = 2, fail_in: Collection[str] = (), as_bytes: bool = False, **answers: Any) -> Any:
    """A binding with `count` H100s, under the names of the real one; `fail_in` names the functions that raise."""
    nvml: Any = ModuleType("pynvml")
    nvml.NVMLError = pynvml.NVMLError
    nvml.NVML_CLOCK_SM, nvml.NVML_TEMPERATURE_GPU = pynvml.NVML_CLOCK_SM, pynvml.NVML_TEMPERATURE_GPU
    nvml.open = 0

    def text(value: str) -> str | bytes:
        return value.encode() if as_bytes else value

    def function(name: str, result: Any) -> None:
        def call(*arguments: Any) -> Any:
            assert nvml.open or name == "nvmlInit", f"{name} while NVML is closed"
            if name in fail_in:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return result(*arguments)

        assert callable(getattr(pynvml, name)), f"the real binding has no {name}"
        setattr(nvml, name, call)

    def change(by: int) -> None:
        nvml.open += by

    def uuid(handle: int) -> str:
        return f"GPU-{handle}{handle}-x"

    function("nvmlInit", lambda: change(1))
    function("nvmlShutdown", lambda: change(-1))
    function("nvmlSystemGetDriverVersion", lambda: text("580.159"))
    function("nvmlDeviceGetCount", lambda: count)
    function("nvmlDeviceGetHandleByIndex", lambda index: index)
    function("nvmlDeviceGetHandleByUUID", lambda wanted: [uuid(handle) for handle in range(count)].index(wanted))
    function("nvmlDeviceGetCudaComputeCapability", lambda handle: (9, 0))
    function("nvmlDeviceGetName", lambda handle: text(H100))
    function("nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(total=80 * 2**30, used=(handle + 1) * 2**30))
    function("nvmlDeviceGetUUID", lambda handle: text(uuid(handle)))
    for name, answer in {**BUSY, **answers}.items():
        function(name, lambda handle, *_, answer=answer: answer)
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
    ("binding", "reason"),
    [
        (fake_nvml(count=0), "NVML found no GPU"),
        (fake_nvml(fail_in=["nvmlInit"]), "NVML found no GPU driver (Not Supported)"),
        (fake_nvml(fail_in=["nvmlDeviceGetName"]), "NVML could not describe the GPUs (Not Supported)"),
    ],
)
def test_no_usable_gpu_is_the_cpu_tier(
    monkeypatch: pytest.MonkeyPatch, torch_version: Any, binding: Any, reason: str
) -> None:
    """No GPU, no driver, or a driver that fails half-way: the CPU tier with that reason, and NVML closed again."""
    monkeypatch.setitem(sys.modules, "pynvml", binding)
    machine = device.describe()
    assert (machine.tier, machine.gpus) == ("cpu", ())
    assert machine.reasons[0] == f"tier: cpu, because {reason}"
    assert binding.open == 0
    assert device.state() == device.GpuState()
    assert device.state().why == f"there is no GPU 0: {reason}"


@pytest.mark.parametrize("as_bytes", [False, True])
def test_gpus_are_described_through_nvml(monkeypatch: pytest.MonkeyPatch, torch_version: Any, as_bytes: bool) -> None:
    """Name, memory, driver and capability of every GPU, from bindings that return text or bytes."""
    binding = fake_nvml(count=2, as_bytes=as_bytes)
    monkeypatch.setitem(sys.modules, "pynvml", binding)
    machine = device.describe()
    assert machine.gpus == (device.Gpu(H100, 80 * 2**30, "580.159", "9.0"),) * 2
    assert machine.reasons[0] == "tier: gpu, because NVML found 2 GPU(s)"
    assert binding.open == 0


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


# ------------------------------------------------------------------------------------ limits and caches


def test_limits_of_every_group_above_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tightest memory limit and quota between this process's cgroup and the root is the one that binds."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("1:cpu:/\n0::/job/step/task\n")
    task = tmp_path / "fs" / "job" / "step" / "task"
    task.mkdir(parents=True)
    for folder, memory, cpu in ((task, "max", "max 100000"), (task.parent, "2147483648", "50000 100000")):
        (folder / "memory.max").write_text(f"{memory}\n")
        (folder / "cpu.max").write_text(f"{cpu}\n")
    (task.parents[1] / "memory.max").write_text(f"{2**62}\n")
    monkeypatch.setattr(device, "PROC", tmp_path)
    monkeypatch.setattr(device, "CGROUPS", tmp_path / "fs")
    machine = device.describe()
    assert machine.memory_bytes == 2**31
    assert "2.0 GiB of " in machine.reasons[2]
    assert machine.reasons[1].endswith("; its cgroup's quota allows 0.5 of them at a time")


def test_without_linux_files_there_is_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither /proc nor /sys says anything, the whole machine is taken and no cache is known."""
    for name in ("PROC", "CGROUPS", "CPUS"):
        monkeypatch.setattr(device, name, tmp_path / "none")
    assert device.describe().reasons[2] == "memory: all of the machine's, no cgroup limits it"
    assert device.caches() == {}


def test_caches_are_summed_over_those_that_the_cores_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache shared by two cores counts once, instruction caches and those of other cores not at all."""
    for core in range(4):
        pair = "0-1" if core < 2 else "2-3"
        for index, (level, kind, size, sharers) in enumerate(
            [
                (1, "Data", "48K", core),
                (1, "Instruction", "32K", core),
                (2, "Unified", "1024K", core),
                (3, "Unified", "32768K", pair),
            ]
        ):
            folder = tmp_path / f"cpu{core}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, text in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", sharers)):
                (folder / name).write_text(f"{text}\n")
    monkeypatch.setattr(device, "CPUS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert device.caches() == {1: 96 << 10, 2: 2 << 20, 3: 32 << 20}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 3}, raising=False)
    assert device.caches() == {1: 144 << 10, 2: 3 << 20, 3: 64 << 20}


# ------------------------------------------------------------------------------------ the state of a GPU


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a binding in place whose functions answer as told."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(**options: Any) -> Any:
        binding = fake_nvml(**options)
        monkeypatch.setitem(sys.modules, "pynvml", binding)
        return binding

    return put


def test_words_for_clock_reasons_follow_the_binding() -> None:
    """Every bit that NVML defines for a clock's reason has a word of ours, and no other bit has."""
    bits = {value for name, value in vars(pynvml).items() if name.startswith("nvmlClocksEventReason")}
    assert set(nvml.CLOCK_REASONS) == bits - {pynvml.nvmlClocksEventReasonNone, pynvml.nvmlClocksEventReasonAll}


def test_state_of_a_working_gpu(two_gpus: Any) -> None:
    """Everything that NVML tells arrives in our units."""
    binding = two_gpus()
    assert device.state(1) == device.GpuState(
        sm_mhz=1755,
        default_sm_mhz=1980,
        max_sm_mhz=1980,
        clock_reasons=("power cap",),
        temperature_c=54,
        power_w=683.25,
        memory_used_bytes=2 * 2**30,
        processes=(nvml.GpuProcess(4, 2**30), nvml.GpuProcess(5, None)),
    )
    assert binding.open == 0


@pytest.mark.parametrize("silent", sorted(BUSY))
def test_what_a_board_does_not_support_is_none(two_gpus: Any, silent: str) -> None:
    """Each answer may be missing alone; the others are still there, and a second source stands in where there is one."""
    two_gpus(fail_in=[silent])
    missing = [name for name, value in vars(device.state()).items() if value is None]
    replaced = {
        "nvmlDeviceGetDefaultApplicationsClock",
        "nvmlDeviceGetMaxCustomerBoostClock",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
    }
    assert len(missing) == (silent not in replaced)


def test_older_binding_without_a_function_is_no_error(two_gpus: Any) -> None:
    """A binding from before the clock event reasons were so named still gives them."""
    binding = two_gpus()
    del binding.nvmlDeviceGetCurrentClocksEventReasons
    assert device.state().clock_reasons == ("power cap",)


def test_state_follows_cudas_numbers(two_gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPU 0 is the first that CUDA_VISIBLE_DEVICES shows, and one that it hides is not there."""
    two_gpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert device.state(0).memory_used_bytes == 2 * 2**30
    assert device.state(1).why == "there is no GPU 1: CUDA_VISIBLE_DEVICES shows 1 of the 2 GPU(s) that NVML found"
    assert device.state(-1).why


def test_speed_is_measured_on_each_visible_gpu_or_on_the_cpu(two_gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices have names that mean the same in every process: all GPUs, the one that CUDA is shown, or the CPU."""
    two_gpus()
    both = device.measured_on("gpu")
    assert len(set(both)) == 2
    assert all(name.startswith("GPU-") for name in both)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert device.measured_on("gpu") == both[1:]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", both[0])
    assert device.measured_on("gpu") == both[:1]
    assert device.measured_on("cpu") == ("cpu",)


def test_gpu_lost_between_two_questions_is_no_error(two_gpus: Any) -> None:
    """A GPU that was listed and then does not answer has no state, with the reason."""
    two_gpus(fail_in=["nvmlDeviceGetHandleByUUID"])
    assert device.state().why == "NVML could not read GPU 0 (Not Supported)"


@pytest.mark.parametrize(
    ("sm_mhz", "default_sm_mhz", "reasons", "dropped"),
    [
        (1485, 1980, (), ""),
        (1484, 1980, ("power cap",), "the SM clock of 1484 MHz is below 75% of 1980 MHz (power cap)"),
        (345, 1980, ("idle",), ""),
        (345, 1980, None, "the SM clock of 345 MHz is below 75% of 1980 MHz"),
        (900, None, ("power cap",), ""),
        (900, None, ("power cap", "power brake"), "the GPU slows itself down (power cap, power brake)"),
        (None, 1980, ("hardware slowdown",), "the GPU slows itself down (hardware slowdown)"),
        (None, None, None, ""),
    ],
)
def test_blocks_at_a_low_clock_are_dropped(
    sm_mhz: int | None, default_sm_mhz: int | None, reasons: tuple[str, ...] | None, dropped: str
) -> None:
    """Below three quarters of the default clock; without one only a slowdown counts; an idle GPU is not judged."""
    state = device.GpuState(sm_mhz=sm_mhz, default_sm_mhz=default_sm_mhz, clock_reasons=reasons)
    assert state.drop_reason() == dropped


def test_foreign_processes_are_those_not_named(two_gpus: Any) -> None:
    """Reference and student may compute, others are listed; an unknown list is no process."""
    two_gpus()
    assert [process.pid for process in device.state().foreign({4, 9})] == [5]
    assert device.GpuState().foreign({4}) == ()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_state_of_the_real_gpu_while_it_works() -> None:
    """A real GPU names its clocks while it works, and what this process takes shows in the memory used."""
    torch.ones(1, device="cuda")
    before = device.state(torch.cuda.current_device())
    held = torch.ones(2**30, dtype=torch.uint8, device="cuda")
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(200):
        matrix @ matrix
    working = device.state(torch.cuda.current_device())
    torch.cuda.synchronize()
    assert working.why == ""
    assert working.sm_mhz is not None
    assert working.max_sm_mhz is not None
    assert 0 < working.sm_mhz <= working.max_sm_mhz
    assert working.clock_reasons is not None
    assert "idle" not in working.clock_reasons
    assert working.memory_used_bytes is not None
    assert before.memory_used_bytes is not None
    assert working.memory_used_bytes - before.memory_used_bytes >= held.nbytes


# ------------------------------------------------------------------------------------ python -m gpu_env


def test_report_lists_gpus_and_reasons(monkeypatch: pytest.MonkeyPatch, torch_version: Any) -> None:
    """Each GPU and each reason has a line of its own."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(count=2))
    machine = device.describe()
    lines = render(machine).splitlines()
    assert lines.count(f"gpu 1        {H100}, 80.0 GiB, sm 9.0, driver 580.159") == 1
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("why ")] == list(machine.reasons)


def test_report_says_what_the_gpus_do_now(monkeypatch: pytest.MonkeyPatch, torch_version: Any) -> None:
    """The present state has a line for each GPU, with the number of processes and not who they are."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(count=2))
    report = render(device.describe(), [device.state(0), device.GpuState(why="it fell off the bus")])
    assert "gpu 0 now    1755 of 1980 MHz, power cap, 54 °C, 683 W, 1.0 GiB used, 2 processes compute" in report
    assert "gpu 1 now    it fell off the bus" in report


def test_json_report_holds_the_same(
    monkeypatch: pytest.MonkeyPatch, torch_version: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Machine, states, models and rooflines as JSON, processes as a number."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(count=1))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("AUTOGRADER_MODELS", str(tmp_path))
    rate = roofline.Rate(9e9, 1e10)
    speed = roofline.Roofline("cpu", "A CPU", 2, rate, {"float32": rate}, 1e10, 2e10, {"float32": 1e10}, 1, 1)
    monkeypatch.setattr(roofline, "known", lambda: [speed])
    assert main(["--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["machine"] == device.describe().as_dict()
    assert printed["gpu_states"][0]["processes"] == 2
    assert printed["gpu_states"][0]["sm_mhz"] == 1755
    assert printed["models"] == {"SmolLM2-135M-Instruct": False}
    assert printed["rooflines"][0]["copy"] == {"median": 9e9, "best": 1e10}
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "model        SmolLM2-135M-Instruct is not here: autograder models fetch" in lines
    assert lines[-1] == "cpu speed    A CPU with 2 threads: copy 9 GB/s, products in TFLOP/s: float32 0.009"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_report_names_no_user_host_or_path(tmp_path: Path, options: list[str]) -> None:
    """What `python -m gpu_env` prints can be posted in a forum, and torch was not imported for it."""
    command = [sys.executable, "-X", "importtime", "-m", "gpu_env", *options]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "tier: " in done.stdout
    words = set(re.split(r"[^\w.-]+", done.stdout))
    assert not words & {getpass.getuser(), socket.gethostname(), per_boot.BOOT_ID.read_text().strip()}
    for path in (str(Path.home()), str(ROOT), sys.prefix, str(tmp_path)):
        assert path not in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "gpu_env.roofline" in imported
    assert "torch" not in imported


def test_importing_any_module_loads_no_torch() -> None:
    """A judge that forks and a notebook without a GPU can import all of gpu_env; CUDA and the autograder stay out."""
    names = sorted(path.stem for path in (ROOT / "gpu_env").glob("[!_]*.py"))
    assert {"clock", "memory", "roofline", "work"} <= set(names)
    code = f"import sys, {', '.join(f'gpu_env.{name}' for name in names)}\n" + (
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'transformers', 'pynvml', 'autograder')])"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"
