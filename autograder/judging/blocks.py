"""Timed blocks of calls in a worker, as the judge makes them: secret inputs, shared memory, the clock.

    side = WorkerSide(RunningSubmission(...), "attention", Feed(inputs, rng), rng, right=close_to_sdpa, output=like_query)
    side.fresh()
    side.time_block(12)                          # seconds; a `Side` of `gpu_env.paired`

One block on a CPU: the worker stands still while the inputs of all calls are written into memory that it has mapped, and its
results are filled with noise. Then the clock starts, the worker goes on and is told to; the clock stops at its answer, the
worker is stopped, and only then results are read. Nothing can be computed before the clock or after it, and the memory stays
mapped (mapping it for each block took 0.86 ms per MiB; 2 cores AMD EPYC, virtual machine).

One block on a GPU: stopping processes does not stop a GPU. So each block has new device memory, whose descriptors come with
`go`, and the clock stops only when the judge has copied a random part of the results, less what such a copy takes on an idle
GPU. A worker that answers before its work is done is measured with it, or leaves noise.

Covered:
- inputs: not seen before, the same for both sides as far as both take as many
- results: of a fifth of the calls, chosen by the judge, compared by the check; of the others it is seen that they came
- when it is not its turn the worker stands still, with all its threads and children; if it does not, that is told
Not covered:
- calls of one block that are answered together, as their inputs are all there at `go`: blocks whose calls come `apart` show it
- tensors that are not dense, shapes that differ from call to call
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from autograder.checks import CheckFailed, SubmissionFault, SubmissionRaised
from autograder.judging.block_memory import DeviceMemory, HostMemory, is_tensor, most_calls
from autograder.judging.remote import HasFileno, RunningSubmission
from autograder.sandboxing.pausing import Pausing

__all__ = ["Feed", "MovedWhilePaused", "WorkerSide"]

MAX_CALLS = 1 << 16
MOST_BYTES = 256 << 20
"""Inputs and results that a CPU's worker is told to go on at once; larger blocks have several parts."""
CHECKED = 0.2
"""Share of the calls of a block whose results are compared."""
ROUND_TRIPS = 21
Inputs = tuple[Any, ...]


class MovedWhilePaused(RuntimeError):
    """The submission ran while it was stopped: something made its processes go on. A person must look."""


class Feed:
    """Inputs of calls. `make` draws those of one call; each side takes a set only once."""

    def __init__(self, make: Callable[[random.Random], Sequence[Any]], rng: random.Random) -> None:
        self._make = make
        self._rng = rng
        self._set: list[Inputs] = []
        self._seen: set[int] = set()

    def take(self, side: object, calls: int) -> list[Inputs]:
        """Inputs for `calls` calls that `side` has not had: those that the other side had last, or new ones."""
        if id(side) in self._seen:
            self._set, self._seen = [], set()
        self._seen.add(id(side))
        while len(self._set) < calls:
            self._set.append(tuple(self._make(self._rng)))
        return self._set[:calls]


class WorkerSide:
    """One implementation in a worker of its own. `right(result, *inputs)` raises `CheckFailed` for a wrong result.

    `output(*inputs)` gives an empty tensor, or a tuple of them, like the one that the function gives; without it the
    function gives plain values, which come over the wire. `device` is "cpu" or "cuda". Methods raise what
    `RunningSubmission` and `right` raise, `MovedWhilePaused`, `PauseError`, and `RuntimeError` for inputs that cannot be
    timed, the check's fault.
    """

    def __init__(
        self,
        running: RunningSubmission,
        function: str,
        feed: Feed,
        rng: random.Random,
        *,
        right: Callable[..., None],
        output: Callable[..., Any] | None = None,
        device: str = "cpu",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._running = running
        self._function = function
        self._feed = feed
        self._rng = rng
        self._right = right
        self._output = output
        self._device = device
        self._clock = clock
        self._memory: HostMemory | DeviceMemory | None = None
        self._pausing: Pausing | None = None

    def fresh(self) -> None:
        """A new process in the place of the one there is."""
        self.close()
        self._pausing = Pausing(self._running.worker())

    def close(self) -> None:
        """End the process."""
        self._running.fresh()
        if self._memory:
            self._memory.close()
        self._memory = self._pausing = None

    def pause(self) -> None:
        """Stop all processes of the worker."""
        if self._pausing:
            self._pausing.stop()

    def resume(self) -> None:
        """Nothing: it runs in its own blocks only."""

    def time_block(self, calls: int, *, apart: bool = False) -> float:
        """Seconds that `calls` calls took by the judge's clock, their results looked at.

        `apart`: each call's inputs come when the call before is answered; without what it takes to write them.
        """
        if calls > MAX_CALLS:
            raise RuntimeError(
                f"A block of {calls:,} calls: one is too short to be timed. Let one do more, in a driver that loops if need be."
            )
        if self._pausing is None:
            self.fresh()
        inputs = self._feed.take(self, calls)
        size = most_calls(inputs[0], self._output(*inputs[0]) if self._output else None, self._most_bytes())
        if apart and self._device != "cpu":  # a GPU cannot be stopped, so memory for each call is made anew
            size = 1
        return math.fsum(self._part(inputs[start : start + size], apart) for start in range(0, calls, size))

    def _most_bytes(self) -> int:
        if self._device == "cpu":
            return MOST_BYTES
        import torch

        return int(torch.cuda.mem_get_info()[0]) // 8

    def _part(self, inputs: Sequence[Inputs], apart: bool) -> float:
        """A block, or as much of it as has room in memory."""
        calls = len(inputs)
        steps = [[number] for number in range(calls)] if apart else [list(range(calls))]
        messages = [["go", len(step), _plain(inputs[number] for number in step)] for step in steps]
        chosen = sorted(self._rng.sample(range(calls), max(1, math.ceil(CHECKED * calls))))
        memory = self._show(inputs, [] if apart else inputs)
        seconds, answers = 0.0, []
        with memory.shown() as descriptors:
            for step, message in zip(steps, messages, strict=True):
                if apart:
                    memory.write(step[0], inputs[step[0]])
                began = self._clock()
                self._resume()
                answers.append(self._go(message, descriptors))
                memory.collect(chosen)
                seconds += self._clock() - began - memory.collect_s
        self.pause()
        results = memory.results(chosen) if self._output else self._values(answers, steps, chosen)
        for number, result in zip(chosen, results, strict=True):
            self._right(result, *inputs[number])
        return max(seconds, 1e-9)

    def round_trips(self) -> list[float]:
        """Seconds that calls which come `apart` take beside themselves: telling the worker to go and hearing from it."""
        times: list[float] = []
        inputs = self._feed.take(self, 1)
        while len(times) < ROUND_TRIPS:
            if self._device != "cpu" or not times:
                self.pause()
                memory = self._show(inputs, inputs)
            with memory.shown() as descriptors:
                began = self._clock()
                self._resume()
                self._go(["go", 0, _plain([])], descriptors)
                memory.collect([0])
                times.append(self._clock() - began - memory.collect_s)
        self.pause()
        return times

    def _show(self, inputs: Sequence[Inputs], written: Sequence[Inputs]) -> HostMemory | DeviceMemory:
        """Memory of which the stopped worker has made the arguments of all calls, with the inputs of the first ones."""
        self._see_it_still()
        self._resume()
        memory = self._make_ready(inputs)
        self.pause()
        memory.fill(written, self._rng)
        self._see_it_still()
        return memory

    def _resume(self) -> None:
        if self._pausing:
            self._pausing.resume()

    def _see_it_still(self) -> None:
        if self._pausing and self._pausing.look():
            ran_ms = self._pausing.ran_s * 1e3
            raise MovedWhilePaused(f"It ran for {ran_ms:.3g} ms of CPU time while it was to stand still.")

    def _make_ready(self, inputs: Sequence[Inputs]) -> HostMemory | DeviceMemory:
        """Memory for these inputs, of which the worker has made its arguments."""
        for _ in range(2):
            memory = self._memory
            if memory is None or memory.calls != len(inputs):
                if memory:
                    memory.close()
                kind = HostMemory if self._device == "cpu" else DeviceMemory
                memory = kind(inputs[0], self._output(*inputs[0]) if self._output else None, len(inputs))
                self._running.exchange(["share", self._device, *memory.sizes], memory.share())
            self._memory = memory
            if self._running.exchange(["ready", self._function, len(inputs), *memory.message()]) is True:
                return memory
            memory.close()
            self._memory = None
        raise SubmissionFault("did not make itself ready to be timed")  # twice: the memory was new the second time

    def _go(self, message: list[Any], descriptors: Sequence[HasFileno]) -> Any:
        try:
            return self._running.exchange(message, descriptors)
        except SubmissionRaised as raised:
            if raised.type_name == "WrongResult":
                raise CheckFailed(f"{self._function} does not give what is asked for: {raised.text}.") from None
            raise

    def _values(self, answers: Sequence[Any], steps: Sequence[Sequence[int]], chosen: Sequence[int]) -> list[Any]:
        for answer, step in zip(answers, steps, strict=True):
            if type(answer) is not list or len(answer) != len(step):
                raise CheckFailed(f"{len(step)} timed calls did not give {len(step)} values.")
        values = [value for answer in answers for value in answer]
        return [values[number] for number in chosen]


def _plain(inputs: Iterable[Inputs]) -> bytes:
    """What is not a tensor, as msgpack: the worker decodes it while the clock runs, so nothing slower."""
    return msgspec.msgpack.encode([[value for value in call if not is_tensor(value)] for call in inputs])
