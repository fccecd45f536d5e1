"""What the driver says about GPUs, and the state in which one is at this moment.

NVML is the driver's management library: unlike torch it creates no CUDA context, so asking costs no GPU memory and a
process may still fork afterwards. Nothing here raises for a missing GPU, driver, binding or answer.

Not covered: AMD and Apple GPUs (reported as none), MIG slices (the whole GPU is reported). In a container the driver
may show no processes at all, or number them as the host does.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

MIN_CLOCK_FRACTION = 0.75
"""A block whose SM clock is below this share of the default clock is dropped, which is also nvbench's default rule."""

CLOCK_REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown by the driver",
    0x40: "thermal slowdown by the hardware",
    0x80: "power brake",
    0x100: "display clocks",
}
"""NVML's bits for why a clock is what it is (nvmlClocksEventReason...)."""

_SLOWDOWNS = {CLOCK_REASONS[bit] for bit in (0x8, 0x20, 0x40, 0x80)}


@dataclass(frozen=True)
class Gpu:
    """One GPU: total memory in bytes, driver version, CUDA compute capability such as "9.0"."""

    name: str
    memory_bytes: int
    driver: str
    capability: str


@dataclass(frozen=True)
class GpuProcess:
    """A process that computes on a GPU, numbered as the driver numbers it; its GPU memory in bytes (None: unknown)."""

    pid: int
    memory_bytes: int | None


@dataclass(frozen=True)
class GpuState:
    """One GPU at one moment; None stands for what the driver does not tell.

    Clocks in MHz, `clock_reasons` in the words of CLOCK_REASONS, temperature in °C, power in watts, `memory_used_bytes`
    by all processes together. `why` says why nothing could be read, and is empty otherwise.
    """

    sm_mhz: int | None = None
    default_sm_mhz: int | None = None
    max_sm_mhz: int | None = None
    clock_reasons: tuple[str, ...] | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    memory_used_bytes: int | None = None
    processes: tuple[GpuProcess, ...] | None = None
    why: str = field(default="", compare=False)

    def foreign(self, own: Collection[int]) -> tuple[GpuProcess, ...]:
        """The computing processes that are not among `own`, a collection of process ids."""
        return tuple(process for process in self.processes or () if process.pid not in own)

    def drop_reason(self, min_clock_fraction: float = MIN_CLOCK_FRACTION) -> str:
        """Why a block that was measured just before must be dropped; empty when it may be kept.

        Read the state while the GPU works or right after: an idle GPU lowers its clock, and then nothing is judged.
        Where the driver names no default clock (GeForce; their maximum is a boost that they rarely hold), only a
        slowdown that the driver itself reports counts. A GPU may do this to itself: after half a second of bf16
        products without a pause an H100 ran at 1425 of 1980 MHz, its power cap (one reading). Blocks need pauses.
        """
        reasons = self.clock_reasons or ()
        if "idle" in reasons:
            return ""
        because = f" ({', '.join(reasons)})" if reasons else ""
        if self.sm_mhz is not None and self.default_sm_mhz:
            if self.sm_mhz >= min_clock_fraction * self.default_sm_mhz:
                return ""
            return f"the SM clock of {self.sm_mhz} MHz is below {min_clock_fraction:.0%} of {self.default_sm_mhz} MHz{because}"
        return f"the GPU slows itself down{because}" if _SLOWDOWNS & set(reasons) else ""


def gpus() -> tuple[list[tuple[str, Gpu]], str]:
    """All GPUs as (uuid, Gpu) in NVML's order, and a phrase why the list is as it is."""
    nvml = _binding()
    if nvml is None:
        fix = "; a driver is here: pip install nvidia-ml-py" if os.path.exists("/proc/driver/nvidia/version") else ""
        return [], f"NVML cannot be asked (package nvidia-ml-py is not installed{fix})"
    try:
        with _opened(nvml):
            driver = _text(nvml.nvmlSystemGetDriverVersion())
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            found = [(_text(nvml.nvmlDeviceGetUUID(handle)), _gpu(nvml, handle, driver)) for handle in handles]
    except _NoDriver as error:
        return [], f"NVML found no GPU driver ({error})"
    except nvml.NVMLError as error:
        return [], f"NVML could not describe the GPUs ({error})"
    return found, f"NVML found {len(found)} GPU(s)" if found else "NVML found no GPU"


def visible(found: list[tuple[str, Gpu]]) -> tuple[list[tuple[str, Gpu]], str]:
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


def state(index: int = 0) -> GpuState:
    """The present state of the GPU that CUDA numbers `index`; every field None, with the reason, where there is none."""
    found, why = gpus()
    shown, visible_why = visible(found)
    if not 0 <= index < len(shown):
        return GpuState(why=f"there is no GPU {index}: {visible_why or why}")
    nvml = _binding()
    assert nvml is not None  # it has just found GPUs
    try:
        with _opened(nvml):
            return _state(nvml, nvml.nvmlDeviceGetHandleByUUID(shown[index][0]))
    except (_NoDriver, nvml.NVMLError) as error:
        return GpuState(why=f"NVML could not read GPU {index} ({error})")


def _state(nvml: Any, handle: Any) -> GpuState:
    def ask(function: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, function)(handle, *arguments)
        except (AttributeError, nvml.NVMLError):
            return None  # this board, this driver or this binding does not know

    sm = nvml.NVML_CLOCK_SM
    default = ask("nvmlDeviceGetDefaultApplicationsClock", sm)  # to leave NVML with CUDA 14; the next one takes over
    bits = ask("nvmlDeviceGetCurrentClocksEventReasons")
    if bits is None:
        bits = ask("nvmlDeviceGetCurrentClocksThrottleReasons")  # its name before driver 535
    milliwatts = ask("nvmlDeviceGetPowerUsage")
    memory = ask("nvmlDeviceGetMemoryInfo")
    processes = ask("nvmlDeviceGetComputeRunningProcesses")
    return GpuState(
        sm_mhz=ask("nvmlDeviceGetClockInfo", sm),
        default_sm_mhz=default or ask("nvmlDeviceGetMaxCustomerBoostClock", sm),
        max_sm_mhz=ask("nvmlDeviceGetMaxClockInfo", sm),
        clock_reasons=None if bits is None else tuple(word for bit, word in CLOCK_REASONS.items() if bits & bit),
        temperature_c=ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        power_w=None if milliwatts is None else milliwatts / 1000,
        memory_used_bytes=None if memory is None else int(memory.used),
        processes=None if processes is None else tuple(GpuProcess(one.pid, one.usedGpuMemory) for one in processes),
    )


def _gpu(nvml: Any, handle: Any, driver: str) -> Gpu:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    memory_bytes = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    return Gpu(_text(nvml.nvmlDeviceGetName(handle)), memory_bytes, driver, f"{major}.{minor}")


class _NoDriver(Exception):
    """NVML could not be opened."""


def _binding() -> Any | None:
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


@contextlib.contextmanager
def _opened(nvml: Any) -> Iterator[None]:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise _NoDriver(str(error)) from None
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value  # older bindings return bytes
