"""The floor under honest times: no run moves bytes faster than this machine's memory or multiplies faster than its units.

The rates are probed on this machine (`gpu_env.probe`), never taken from a data sheet, and kept until the next boot. A
measured time below the floor is no proof of cheating but a reason to look: REVIEW, never PASS.

The floor is drawn so that honest code stays above it:
    fastest way     bytes are held against the fastest of copy, read, update and fill, not against the copy alone
    caches          data that a cache may still hold from the last call need not come from memory; what may lie in the
                    innermost caches has no floor for its bytes at all (see `Roofline.floor_seconds`)
    wider types     a narrow type may be computed in a wider one (float16 in float32 on a CPU that lacks it)
    probing again   before `impossible` says so, the machine was probed twice more; the best rate ever seen counts
    neighbours      a CPU's floor is halved: there it tells of work that was left out, not of a little speed

Not covered: formulas that count bytes or FLOPs which honest code can save (a causal mask, sparsity, Strassen): the
caller's formula must be a lower bound. Threads: probe with the cores and the threads that the timed process has.
"""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass, replace
from typing import TYPE_CHECKING, Any

from gpu_env import per_boot
from gpu_env.probe import Prober, ProbeUnavailable, Rate

if TYPE_CHECKING:
    import torch

__all__ = ["MARGIN", "ProbeUnavailable", "Rate", "Roofline", "Work", "floor_seconds", "impossible", "known", "probe"]

MARGIN = 1.05
"""A time is impossible only when it is below the floor by this factor; a probe is no more certain."""

_UNSEEN = {"cuda": 1.0, "cpu": 2.0}
"""How much faster a device may be than the best probe. A GPU is alone with its work, the cores of a virtual machine are not:
float32 products got 837 GFLOP/s at best in one probe and 1,552 in another on the same 16 cores (measured)."""

_CACHE_GUARD = 2  # how far caches may be larger, and faster, than what the system tells and one probe shows
_WIDER = {
    "float32": ("tfloat32",),  # a setting that honest code may choose
    "tfloat32": ("float32",),
    "bfloat16": ("tfloat32", "float32"),
    "float16": ("tfloat32", "float32"),
}


@dataclass(frozen=True)
class Work:
    """The least that every right run must do. The fields are the arguments of `Roofline.floor_seconds`."""

    bytes_: float = 0.0
    flops: float = 0.0
    dtype: str = "float32"
    working_set_bytes: float | None = None


@dataclass(frozen=True)
class Roofline:
    """The rates of one device: bytes per second of memory (read and written), FLOP/s for each type.

    `copy` and `flops` are what a plain large copy and a plain large matrix product get. `memory_best` and `flops_best` are
    the best of every way that was tried, `cached_best` that of an update of what lies in the last-level cache.
    `cache_bytes` are all caches together, `inner_cache_bytes` those nearer than the last level. `threads` are torch's on
    the CPU, 0 on a GPU.
    """

    device: str
    name: str
    threads: int
    copy: Rate
    flops: dict[str, Rate]
    memory_best: float
    cached_best: float
    flops_best: dict[str, float]
    cache_bytes: int
    inner_cache_bytes: int

    def floor_seconds(
        self, bytes_: float, flops: float, dtype: str | torch.dtype, working_set_bytes: float | None = None
    ) -> float:
        """The time below which no honest run can be, on this device: roofline model of Williams et al. 2009, as a bound.

        Args:
            bytes_: read and written, counted as often as they must move between memory and the processor.
            flops: floating-point operations that must be done, a multiply and an add being two.
            dtype: the type of the inputs, such as "bfloat16" or torch.bfloat16.
            working_set_bytes: how many different bytes are touched in everything that was timed together; None: each of
                `bytes_` is another one. Repeating a call on the same data makes it smaller than `bytes_`.

        With a working set W and caches that may hold C of it, at least the share 1 - C/W comes from memory on every pass.
        Up to C everything may come from a cache, and up to the size of the inner caches no rate is known that honest
        code could not beat. C is twice what the system reports.

        Raises:
            ValueError: a negative amount, or a type that was not probed.
        """
        for name, amount in (("bytes_", bytes_), ("flops", flops), ("working_set_bytes", working_set_bytes or 0)):
            if not amount >= 0:
                raise ValueError(f"{name} must not be negative, and is {amount}")
        compute = flops / self._flops_best(dtype) if flops else 0.0
        return max(self._memory_floor(bytes_, working_set_bytes), compute) / _UNSEEN[self.device]

    def fraction(self, seconds: float, bytes_: float, flops: float, dtype: str | torch.dtype) -> float:
        """Which part of the roofline a run reached: 1.0 is a plain large copy's or product's rate (their medians)."""
        if not seconds > 0:
            raise ValueError(f"seconds must be positive, and is {seconds}")
        compute = flops / self.flops[self._known(dtype)].median if flops else 0.0
        return max(bytes_ / self.copy.median, compute) / seconds

    def steady(self, dtype: str | torch.dtype) -> bool:
        """Whether the last probe mostly found the machine as fast as it was ever seen."""
        return self.copy.steady and self.flops[self._known(dtype)].steady

    def _memory_floor(self, bytes_: float, working_set_bytes: float | None) -> float:
        touched = bytes_ if working_set_bytes is None else working_set_bytes
        if touched <= self.inner_cache_bytes:
            return 0.0
        from_memory = bytes_ * max(0.0, 1 - _CACHE_GUARD * self.cache_bytes / touched)
        cached = max(self.memory_best, _CACHE_GUARD * self.cached_best)
        return max(from_memory / self.memory_best, bytes_ / cached)

    def _flops_best(self, dtype: str | torch.dtype) -> float:
        known = self._known(dtype)
        return max(self.flops_best[name] for name in (known, *_WIDER.get(known, ())) if name in self.flops_best)

    def _known(self, dtype: str | torch.dtype) -> str:
        name = str(dtype).removeprefix("torch.")
        if name not in self.flops:
            raise ValueError(f"{name} was not probed; known are {', '.join(self.flops)}")
        return name


def floor_seconds(work: Work, where: str | None = None) -> float:
    """`Roofline.floor_seconds` of this machine, probed if it was not since the last boot."""
    return probe(where).floor_seconds(*astuple(work))


def impossible(seconds: float, work: Work, where: str | None = None) -> bool:
    """Whether a measured time is below the floor by more than MARGIN, and still is when the machine was probed twice more.

    Some seconds for each new probe, and no time for a run that is above the floor. On a machine that is too busy to be
    probed the answer is False: the probe itself may have been slowed down more than the run.
    """
    for fresh in (False, True, True):
        roofline = probe(where, fresh)
        if seconds >= roofline.floor_seconds(*astuple(work)) / MARGIN:
            return False
    return roofline.steady(work.dtype)


def probe(where: str | None = None, fresh: bool = False) -> Roofline:
    """The roofline of a device ("cpu", "cuda:0"; None: torch's current GPU, or the CPU where torch has none).

    Probed once per boot, device, set of cores and number of threads, which takes some seconds; `fresh` probes again. Best
    rates are kept from earlier probes, medians are those of the last one.

    Raises:
        ProbeUnavailable: torch is not installed, or the device is not there.
    """
    prober = Prober(where)
    key = {"version": 1, **prober.key()}
    before = _restored(per_boot.load("roofline", key))
    if before and not fresh:
        return before
    found = _measured(prober)
    if before:
        found = _best_of(found, before)
    per_boot.store("roofline", key, asdict(found))
    return found


def known() -> list[Roofline]:
    """What was probed on this machine since it was booted; torch is not loaded for it."""
    found = (_restored(value) for value in per_boot.load_all("roofline"))
    return [roofline for roofline in found if roofline]


def _restored(value: Any) -> Roofline | None:
    try:
        flops = {dtype: Rate(**rate) for dtype, rate in value["flops"].items()}
        return Roofline(**{**value, "copy": Rate(**value["copy"]), "flops": flops})
    except (AttributeError, KeyError, TypeError):
        return None  # nothing stored, or by another version


def _measured(prober: Prober) -> Roofline:
    memory, cached, caches = prober.memory(), prober.cached(), prober.caches()
    products = {dtype: prober.gemm(dtype) for dtype in prober.dtypes()}
    prober.close()
    return Roofline(
        device=prober.where.type,
        name=prober.name(),
        threads=prober.threads(),
        copy=memory["copy"],
        flops={dtype: plain for dtype, (plain, _) in products.items()},
        memory_best=max(rate.best for rate in memory.values()),
        cached_best=cached.best,
        flops_best={dtype: best for dtype, (_, best) in products.items()},
        cache_bytes=caches.outer,
        inner_cache_bytes=caches.inner,
    )


def _best_of(new: Roofline, old: Roofline) -> Roofline:
    """The medians of the new one, and the best of both."""

    def rate(new: Rate, old: Rate) -> Rate:
        return Rate(new.median, max(new.best, old.best))

    return replace(
        new,
        copy=rate(new.copy, old.copy),
        flops={dtype: rate(flops, old.flops[dtype]) for dtype, flops in new.flops.items()},
        memory_best=max(new.memory_best, old.memory_best),
        cached_best=max(new.cached_best, old.cached_best),
        flops_best={dtype: max(best, old.flops_best[dtype]) for dtype, best in new.flops_best.items()},
    )
