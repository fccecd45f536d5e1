"""Memory of an NVIDIA GPU that one process makes and another one uses, for both ends of the wire.

The driver's virtual memory management: an allocation travels as a descriptor over a socket, so it crosses namespaces, a
receiver has nothing before the descriptor arrives, and it maps that allocation alone (an IPC handle of PyTorch's allocator
opens whatever lies in the same segment).

Covered: one GPU, the current one; addresses that stay while allocations come and go.
Not covered: GPUs and systems without descriptors for memory (some virtual GPUs, Windows): `DeviceMemoryError`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Allocation", "DeviceMemoryError", "Window", "reset_persisting_cache", "round_up"]


class DeviceMemoryError(RuntimeError):
    """The driver refused; the text names the call and the reason."""


def _driver() -> Any:
    from cuda.bindings import driver  # comes with PyTorch's builds for CUDA

    return driver


def _call(name: str, *arguments: Any) -> Any:
    """Call the driver; gives its value, if it has one."""
    driver = _driver()
    error, *values = getattr(driver, name)(*arguments)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise DeviceMemoryError(f"{name} said {error.name}")
    return values[0] if values else None


def _place() -> Any:
    """The current GPU, as memory calls name it. Makes sure that it has a context in this process."""
    import torch

    torch.cuda.synchronize()
    driver = _driver()
    location = driver.CUmemLocation()
    location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    location.id = torch.cuda.current_device()
    return location


def _properties() -> Any:
    driver = _driver()
    properties = driver.CUmemAllocationProp()
    properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.requestedHandleTypes = _descriptor_type()
    properties.location = _place()
    return properties


def _descriptor_type() -> Any:
    return _driver().CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


def round_up(size: int) -> int:
    """`size` in bytes as the driver gives it out: a multiple of its granularity, 2 MiB on an H100."""
    option = _driver().CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
    grain = int(_call("cuMemGetAllocationGranularity", _properties(), option))
    return max(1, -(-size // grain)) * grain


def reset_persisting_cache() -> None:
    """Nothing stays in the GPU's cache by force: whoever asked that it should loses it."""
    _call("cuCtxResetPersistingL2Cache")


class Allocation:
    """Memory of the GPU. `size` is a multiple of the granularity."""

    def __init__(self, handle: Any, size: int) -> None:
        self.handle = handle
        self.size = size

    @classmethod
    def create(cls, size: int) -> Allocation:
        """New memory of at least `size` bytes. Raises `DeviceMemoryError`."""
        size = round_up(size)
        return cls(_call("cuMemCreate", size, _properties(), 0), size)

    @classmethod
    def take(cls, descriptor: int, size: int) -> Allocation:
        """The memory, of `size` bytes, that another process sent. The descriptor may be closed afterwards."""
        return cls(_call("cuMemImportFromShareableHandle", descriptor, _descriptor_type()), size)

    def descriptor(self) -> int:
        """A new descriptor of it, to be sent and closed."""
        return int(_call("cuMemExportToShareableHandle", self.handle, _descriptor_type(), 0))

    def close(self) -> None:
        """Let go of it; it ends when nobody has it mapped any more."""
        _call("cuMemRelease", self.handle)


class Window:
    """A range of addresses under which one allocation at a time lies."""

    def __init__(self, size: int) -> None:
        self.size = round_up(size)
        self._place = _place()
        self._address = int(_call("cuMemAddressReserve", self.size, 0, 0, 0))
        self._mapped: Allocation | None = None

    def map(self, allocation: Allocation) -> None:
        """Put `allocation` under the addresses, readable and writable."""
        if self._mapped is not None:
            self.unmap()
        driver = _driver()
        _call("cuMemMap", self._address, self.size, 0, allocation.handle, 0)
        access = driver.CUmemAccessDesc()
        access.location = self._place
        access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        _call("cuMemSetAccess", self._address, self.size, [access], 1)
        self._mapped = allocation

    def unmap(self) -> None:
        """Leave the addresses empty. Whoever still reads there meets an error of the GPU."""
        if self._mapped is not None:
            _call("cuMemUnmap", self._address, self.size)
            self._mapped = None

    def tensor(self) -> tuple[Any, object]:
        """All of it as a tensor of bytes, and an object that lives as long as a view of that tensor.

        Something must be mapped; the tensor does not keep it so.
        """
        import torch

        interface = _Interface(self._address, self.size)
        return torch.as_tensor(interface, device="cuda"), interface

    def close(self) -> None:
        """Give the addresses back."""
        self.unmap()
        _call("cuMemAddressFree", self._address, self.size)


class _Interface:
    """What `torch.as_tensor` makes a tensor of without copying."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}
