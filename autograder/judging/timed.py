"""Performance checks: the fixture `timed`, which measures a submission's function against a reference implementation.

    def test_attention_speed(submission, timed):
        '''Attention over 512 positions is at least twice as fast as a loop over the queries.

        Hint: One matrix product for all queries does what the loop does one by one.
        '''
        timed.expect(
            "attend",
            reference=Path(__file__).with_name("slow_attend.py").read_text(),
            inputs=lambda rng: three_tensors(rng, timed.device),
            output=lambda q, k, v: torch.empty_like(q),
            right=close_to_torch,                 # right(result, *inputs) raises CheckFailed
        )

What is asked for stands in the suite's `spec.py`, by tier. Reference and submission run in workers of their own, alike in
everything but the code; the judge draws the inputs, takes the times and compares the results (`autograder.judging.blocks`), and
`gpu_env.paired` decides. A submission that passed is looked at twice more before it has its points:

    one by one   blocks whose calls come one after the other: whoever answers several by one computation is slower there
    alone        the reference without the submission beside it, before and after: it must not have been held up

A measurement takes a device that is free. The CPU is one; each GPU is one, so that several submissions are measured at once
where there are several. The first GPU that a judge takes stays its own: CUDA can be shown others only before it is used.

Covered: whose fault it is; one measurement at a time per device and machine; partial credit; times below the physical
floor of what a check says must be done (`gpu_env.roofline`), as far as the judge's own processors tell.
Not covered: what makes a result right (the check's `right`); a submission that works on another GPU than its own while that
one is measured on, which the repeated comparisons of pairs see as noise.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from autograder.checks import CheckFailed, SubmissionFault, SubmissionRaised
from autograder.judging.blame import Blame
from autograder.judging.blocks import Feed, MovedWhilePaused, WorkerSide
from autograder.judging.remote import RunningSubmission
from autograder.sandboxing.pausing import PauseError
from autograder.sandboxing.sandbox import Limits, Sandbox
from autograder.spec import Threshold
from gpu_env import device
from gpu_env.lease import LeaseUnavailable, lease
from gpu_env.paired import Measurement, Rule, Verdict, compare, credit
from gpu_env.sequential import DEFAULT

if TYPE_CHECKING:
    from gpu_env.roofline import Work

__all__ = ["Inconclusive", "NeedsReview", "NotHere", "Timed", "TooSlow"]

BLOCK_S = 0.020
ALONE_BLOCKS = 7
APART = 0.8
"""How much of what is asked for must be there when calls come one by one: caches are colder then, and the noise is larger."""
APART_TIME_S = 15.0
APART_RULES = {
    "cpu": Rule(pairs=(10, 20, 40), processes=1, block_s=0.010, noise=0.3, repeats=0),
    # blocks of one call, for each has memory of its own there
    "cuda": Rule(pairs=(10, 20, 40), processes=1, block_s=1e-9, noise=0.3, repeats=0),
}
TRIP = 0.25
"""How much of a call that is just fast enough a round trip may take, if slow calls that come one by one are to be suspicious.
So such a call should take 1 ms or more on a CPU."""
HELD_UP = 1.25
"""How many times as long the reference may take beside the submission as alone."""
LEAST_CALL_S = 2e-4
"""A round trip takes half of that: shorter calls cannot be looked at one by one."""
REFERENCE_CALL_S = 60.0
CELL = "driver"


class TooSlow(CheckFailed):
    """The submission is right and not fast enough. `credit` is the share of the points that it has all the same."""

    def __init__(self, message: str, value: str, expected: str, credit: float) -> None:
        super().__init__(message, value, expected)
        self.credit = credit


class Inconclusive(Exception):
    """This machine, now, cannot tell. Measured again."""


class NeedsReview(Exception):
    """What was measured cannot come about honestly, or can hardly. A person looks."""


class NotHere(Exception):
    """This machine has not what the check is measured on."""


class Timed:
    """What the fixture `timed` gives: one measurement in one check. `device` is "cpu" or "cuda".

    `cells` are the submission's, `thresholds` the check's by tier. `quiet` is called before measuring, to end
    whatever else of the submission runs; `alive` again and again meanwhile. `devices` stand in for those of this machine
    (`gpu_env.device.measured_on`).
    """

    def __init__(
        self,
        cells: Sequence[tuple[str, str]],
        sandbox: Sandbox,
        limits: Limits,
        thresholds: Mapping[str, Threshold],
        *,
        seed: str,
        call_s: float = 10.0,
        blame: Blame | None = None,
        rule: Rule = DEFAULT,
        alive: Callable[[], None] = lambda: None,
        quiet: Callable[[], None] = lambda: None,
        devices: Sequence[str] = (),
    ) -> None:
        tier = "gpu" if "gpu" in thresholds and _gpu_for(sandbox) else "cpu"
        self.device = "cuda" if tier == "gpu" else "cpu"
        self._devices = tuple(devices) or device.measured_on(tier)
        self.measurements: dict[str, float] = {}
        self._thresholds = thresholds
        self._threshold = thresholds.get(tier)
        self._cells = list(cells)
        self._sandbox = sandbox
        self._limits = _one_core(limits)
        self._rng = random.Random(seed)
        self._call_s = call_s
        self._blame = blame or Blame()
        self._rule = rule
        self._alive = alive
        self._quiet = quiet

    def expect(
        self,
        function: str,
        *,
        reference: str,
        inputs: Callable[[random.Random], Sequence[Any]],
        right: Callable[..., None],
        output: Callable[..., Any] | None = None,
        driver: str = "",
        least: Work | None = None,
        time_s: float = 30.0,
    ) -> None:
        """`function` must be right, and as fast as the check's threshold asks for.

        `reference` is the source of the reference implementation. `inputs(rng)` draws the arguments of one call: dense
        tensors, arrays and plain values, always of the same shapes. `right(result, *arguments)` raises `CheckFailed`.
        `output(*arguments)` gives an empty tensor, or a tuple of them, like the result; without it results are plain
        values. `driver` is source that both sides load last; `function` may be defined there, and call what the student
        defines. `least` is what every right call must do at least: whoever needs less time than this machine needs for that is
        looked at by a person. `time_s` is how long pairs are taken.

        Raises `TooSlow`, `Inconclusive`, `NeedsReview`, and what makes a check FAILED.
        """
        if not self._thresholds:
            raise RuntimeError("This check measures speed, and spec.py has no threshold for it.")
        if self._threshold is None:
            raise NotHere("This is measured on a GPU, and there is none here that submissions can use.")
        if not hasattr(os, "memfd_create"):
            raise NotHere("Speed is measured on Linux only.")
        if self.measurements:
            raise RuntimeError("A check measures once. Write one check for each size that is to be fast.")
        last = [(CELL, driver)] if driver else []
        feed = Feed(inputs, self._rng)

        def side(kind: type[WorkerSide], cells: list[tuple[str, str]], call_s: float, blame: Blame) -> Any:
            running = RunningSubmission([*cells, *last], self._sandbox, limits, call_s=call_s, blame=blame)
            made = kind(running, function, feed, self._rng, right=right, output=output, device=self.device)
            return stack.enter_context(contextlib.closing(made))

        before = self._blame.worker
        try:
            with (
                lease(*_usable(self._devices), waiting=self._alive) as held,
                _off(self._limits.core),
                contextlib.ExitStack() as stack,
            ):
                limits = _on(held.device, self._limits)
                ours = side(_Reference, [("reference", reference)], REFERENCE_CALL_S, Blame())
                theirs = side(WorkerSide, self._cells, self._call_s, self._blame)
                ours.alive = self._alive
                self._quiet()
                self._blame.begin_check(None)  # from here on time_s is the limit
                self.measurements["waited_s"] = held.waited_s
                self._decide(function, ours, theirs, self._threshold, least, time_s)
        except (LeaseUnavailable, PauseError) as error:
            raise Inconclusive(str(error)) from None
        except MovedWhilePaused as error:
            raise NeedsReview(f"{error} Its time says nothing.") from None
        finally:
            self._blame.worker = before

    def _decide(
        self,
        function: str,
        ours: WorkerSide,
        theirs: WorkerSide,
        threshold: Threshold,
        least: Work | None,
        time_s: float,
    ) -> None:
        alone_s = _alone(ours)
        if alone_s < LEAST_CALL_S:
            raise RuntimeError(
                f"A call of the reference takes {alone_s * 1e6:.0f} us. Let one do more: 2 ms is a good time."
            )
        from gpu_env import roofline  # a student's own checks measure nothing

        floor_s = roofline.floor_seconds(least, self.device) or None if least else None
        found = compare(ours, theirs, threshold.ratio, self._rng, rule=self._rule, floor_s=floor_s, time_s=time_s)
        self.measurements |= _measurements(found)
        if found.verdict is Verdict.FAIL:
            raise _too_slow(function, found, threshold)
        if found.verdict is Verdict.INCONCLUSIVE:
            raise Inconclusive(f"{found.reason} It is measured again.")
        if found.verdict is Verdict.REVIEW:
            assert least
            if not roofline.impossible(found.candidate_s, least, self.device):
                raise Inconclusive("This machine is faster now than when its speed was probed. It is measured again.")
            raise NeedsReview(found.reason)
        self._look_one_by_one(ours, theirs, found)
        theirs.close()
        alone_s = max(alone_s, _alone(ours))
        self.measurements["reference_alone_us_per_call"] = alone_s * 1e6
        if found.reference_s > HELD_UP * alone_s:
            raise Inconclusive(
                f"The reference took {found.reference_s / alone_s:.2f} times as long beside the submission as alone: the "
                "machine is too busy, or the submission slows down what runs beside it. It is measured again."
            )

    def _look_one_by_one(self, ours: WorkerSide, theirs: WorkerSide, found: Measurement) -> None:
        """See that calls are nearly as fast when each one's inputs come after the answer before."""
        if found.calls[1] == 1:
            return
        trips = ours.round_trips()
        again = compare(
            _Apart(ours, min(trips)),
            _Apart(theirs, min(trips)),
            APART * found.threshold,
            self._rng,
            rule=APART_RULES[self.device],
            time_s=APART_TIME_S + found.seconds,  # whoever compiles at the first call does so again
        )
        self.measurements |= {"speedup_apart": again.ratio, "round_trip_us": median(trips) * 1e6}
        if again.verdict is Verdict.PASS:
            return
        if again.verdict is not Verdict.FAIL or median(trips) > TRIP * found.reference_s / found.threshold:
            raise Inconclusive(f"It cannot be told how fast calls are that come one by one. {again.reason}")
        raise NeedsReview(
            f"It is {found.ratio:.2f} times as fast as the reference where the inputs of {found.calls[1]} calls come "
            f"together, and {again.ratio:.2f} times where they come one by one: several calls seem to be answered by one "
            "computation."
        )


class _Apart:
    """A side whose calls come one by one; what sending and answering each takes does not count."""

    def __init__(self, side: WorkerSide, round_trip_s: float) -> None:
        self._side = side
        self._round_trip_s = round_trip_s
        self.pause, self.resume, self.fresh = side.pause, side.resume, side.fresh

    def time_block(self, calls: int) -> float:
        """Seconds of the calls alone."""
        return max(self._side.time_block(calls, apart=True) - calls * self._round_trip_s, calls * 1e-6)


class _Reference(WorkerSide):
    """The reference implementation's side: whatever it does wrong is our fault."""

    alive: Callable[[], None] = staticmethod(lambda: None)

    def fresh(self) -> None:
        with _our_fault():
            super().fresh()

    def time_block(self, calls: int, *, apart: bool = False) -> float:
        self.alive()
        with _our_fault():
            return super().time_block(calls, apart=apart)


@contextlib.contextmanager
def _our_fault() -> Iterator[None]:
    try:
        yield
    except (CheckFailed, SubmissionRaised, SubmissionFault, MovedWhilePaused) as error:
        raise RuntimeError(f"The reference implementation failed: {error}") from error


def _alone(side: WorkerSide) -> float:
    """Seconds of one call in a fresh process, with nobody beside it."""
    side.fresh()
    first = min(side.time_block(1) for _ in range(3))
    calls = max(1, min(math.ceil(BLOCK_S / first), 1000))
    return median(side.time_block(calls) / calls for _ in range(ALONE_BLOCKS))


def _too_slow(function: str, found: Measurement, threshold: Threshold) -> TooSlow:
    share = credit(found.ratio, threshold.naive, threshold.ratio, found.verdict)
    measured = f"{found.ratio:.2f} times as fast as the reference ({found.low:.2f} to {found.high:.2f})"
    return TooSlow(
        f"Your {function} is right, and {measured}; {threshold.ratio:g} times is asked for. "
        f"That is worth {share:.0%} of the points. It was measured {found.pairs} times side by side with the "
        f"reference, in blocks of {found.block_s * 1e3:.0f} ms: {found.candidate_s * 1e3:.3g} ms a call against "
        f"{found.reference_s * 1e3:.3g} ms.",
        measured,
        f"at least {threshold.ratio:g} times as fast",
        share,
    )


def _measurements(found: Measurement) -> dict[str, float]:
    """What a result keeps of a measurement; units stand in the names, ratios have none."""
    return {
        "speedup": found.ratio,
        "speedup_low": found.low,
        "speedup_high": found.high,
        "speedup_asked": found.threshold,
        "pairs": found.pairs,
        "calls_per_block": found.calls[1],
        "block_ms": found.block_s * 1e3,
        "noise_percent": found.noise * 100,
        "reference_us_per_call": found.reference_s * 1e6,
        "submission_us_per_call": found.candidate_s * 1e6,
        "measuring_s": found.seconds,
    }


def _gpu_for(sandbox: Sandbox) -> bool:
    """Whether there is a GPU here that workers of `sandbox` can use."""
    return bool(sandbox.devices) and device.describe().tier == "gpu"


def _usable(devices: Sequence[str]) -> Sequence[str]:
    """Those of `devices` that this process can measure on: all, or the one that CUDA was shown or has begun to use."""
    if (shown := os.environ.get("CUDA_VISIBLE_DEVICES", "")) in devices:
        return [shown]
    torch = sys.modules.get("torch")
    if len(devices) > 1 and torch and torch.cuda.is_initialized():
        return [devices[torch.cuda.current_device()]]
    return devices


def _on(name: str, limits: Limits) -> Limits:
    """Have CUDA use the device `name` only: in this process from now on, and in workers with these limits."""
    if name == "cpu":
        return limits
    os.environ["CUDA_VISIBLE_DEVICES"] = name
    return replace(limits, gpu=name)


def _one_core(limits: Limits) -> Limits:
    """The same for a worker that has one processor, so that speed does not depend on how many there are."""
    if limits.core is not None or not hasattr(os, "sched_getaffinity"):
        return limits
    return replace(limits, core=max(os.sched_getaffinity(0)))


@contextlib.contextmanager
def _off(core: int | None) -> Iterator[None]:
    """Keep this thread off the processor that is measured on, if there is another."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    others = cores - {core}
    if not others or others == cores:
        yield
        return
    os.sched_setaffinity(0, others)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
