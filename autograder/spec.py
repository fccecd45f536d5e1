"""What an assignment consists of: its tasks, their checks and points. The vocabulary of `tests/grading/<name>/spec.py`.

Standard library only: `build` reads specs where neither torch nor pytest is installed.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from autograder.errors import AutograderError

__all__ = ["TIERS", "Assignment", "Check", "SpecError", "Task", "Threshold"]


RESERVED = frozenset({
    "ask_log", "begin_check", "close", "describe", "end_reason", "exchange", "fresh", "load_errors", "logged", "printed",
    "time_left", "times", "worker",
})  # fmt: skip


class SpecError(AutograderError):
    """A suite's `spec.py` contradicts itself or its test functions. The author's to mend."""


TIERS = ("cpu", "gpu")
"""What a check can be measured on. With a GPU here and a threshold for it the check is measured there, else on the CPU."""


@dataclass(frozen=True)
class Threshold:
    """What a performance check asks for on one tier. Ratios are t_reference / t_submission: above 1 is faster.

    From `ratio` on a submission has all points (below 1 it is a slowdown that is allowed), at `naive`, which the starter
    or the obvious solution reaches, none; between them it has a share. `why` gives the figures that the two were chosen
    from, `machine` where those were measured.
    """

    ratio: float
    naive: float
    why: str
    machine: str

    def __post_init__(self) -> None:
        if not 0 < self.naive < self.ratio < math.inf:
            raise SpecError(f"A threshold needs 0 < naive < ratio, not naive={self.naive!r} and ratio={self.ratio!r}.")
        if not re.search(r"\d", self.why):
            raise SpecError(f"A threshold of {self.ratio:g} needs a measured reason: `why` must give figures.")
        if not self.machine.strip():
            raise SpecError(f"A threshold of {self.ratio:g} must say on which machine its figures were measured.")


@dataclass(frozen=True)
class Check:
    """One graded behaviour: one pytest test function."""

    name: str
    task: str
    points: int
    hidden: bool
    thresholds: Mapping[str, Threshold] = field(default_factory=lambda: MappingProxyType({}))
    """By tier; empty but for performance checks."""

    @property
    def performance(self) -> bool:
        """Whether its finding rests on a measurement: it may give partial credit, and vary from run to run."""
        return bool(self.thresholds)


@dataclass(frozen=True)
class Task:
    """One thing the student implements: one solution cell whose `grade_id` is `name`.

    `public` and `hidden` map the names of test functions in `test_public.py` and `test_hidden.py` to points.
    `thresholds` has those of them that measure speed, each with what it asks for by tier; all tiers are worth its points.
    """

    name: str
    title: str
    minutes: int
    public: Mapping[str, int]
    hidden: Mapping[str, int] = field(default_factory=dict)
    thresholds: Mapping[str, Mapping[str, Threshold]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or keyword.iskeyword(self.name):
            raise SpecError(f"Task name {self.name!r} is not a Python identifier; it names what the student defines.")
        if self.name in RESERVED:
            raise SpecError(
                f"Task name {self.name!r} is one that `submission` in a check has for itself. Choose another."
            )
        if twice := self.public.keys() & self.hidden.keys():
            raise SpecError(f"Task {self.name}: {sorted(twice)} are both public and hidden.")
        if strange := self.thresholds.keys() - self.hidden.keys():
            raise SpecError(
                f"Task {self.name}: thresholds name {sorted(strange)}, which are not among its hidden checks. "
                "Speed is measured by the grader only."
            )
        for name, tiers in self.thresholds.items():
            if not tiers or not tiers.keys() <= set(TIERS):
                raise SpecError(
                    f"Check {name} has thresholds for {sorted(tiers)}; give one for each of some of {TIERS}."
                )
        if not self.public:
            raise SpecError(f"Task {self.name} has no public check; a student could not see whether it works at all.")
        for check in self.checks:
            if type(check.points) is not int or check.points < 1:
                raise SpecError(f"Check {check.name} has points {check.points!r}; give a whole number of at least 1.")

    @property
    def checks(self) -> tuple[Check, ...]:
        """All checks of the task, public ones first."""
        return tuple(
            Check(name, self.name, points, hidden, self.thresholds.get(name, {}))
            for hidden, group in ((False, self.public), (True, self.hidden))
            for name, points in group.items()
        )

    @property
    def points(self) -> int:
        return sum(check.points for check in self.checks)


@dataclass(frozen=True)
class Assignment:
    """One graded unit. `name` is that of `solutions/<name>.py` and of `assignments/<name>/`.

    `preload` names modules that workers have imported before a submission runs (they cost seconds each).
    `models` names models of `gpu_env.models` that workers may read. `call_s` and `check_s` limit one call into the
    submission and one whole check, in seconds of wall time; `cpu_s`, `memory_bytes` and `processes` (with their threads)
    limit each of its workers. `loopback` gives each worker a network of its own with one address, 127.0.0.1, and nobody
    else on it: for submissions that are clients, or that start an engine. `vllm` lists what of vLLM the assignment stands
    on, see `autograder.authoring.engine`.
    """

    name: str
    title: str
    tasks: tuple[Task, ...]
    preload: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    call_s: float = 10.0
    check_s: float = 60.0
    cpu_s: int = 60
    memory_bytes: int = 2 << 30
    processes: int = 64
    loopback: bool = False
    vllm: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise SpecError(f"Assignment name {self.name!r} is not a Python identifier.")
        for what, names in (
            ("task", [task.name for task in self.tasks]),
            ("check", [check.name for check in self.checks]),
        ):
            if twice := {name for name in names if names.count(name) > 1}:
                raise SpecError(f"Assignment {self.name}: {what} {sorted(twice)} stands more than once.")

    @property
    def checks(self) -> tuple[Check, ...]:
        return tuple(check for task in self.tasks for check in task.checks)

    @property
    def points(self) -> int:
        return sum(task.points for task in self.tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def task(self, name: str) -> Task:
        """The task called `name`; `KeyError` if there is none."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise KeyError(name)
