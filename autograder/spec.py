"""What an assignment consists of: its tasks, their checks and points. The vocabulary of `tests/grading/<name>/spec.py`.

Standard library only: `build` reads specs where neither torch nor pytest is installed.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from autograder.errors import AutograderError

__all__ = ["Assignment", "Check", "SpecError", "Task"]


RESERVED = frozenset({
    "begin_check", "close", "describe", "end_reason", "exchange", "fresh", "load_errors", "printed", "time_left", "times",
})  # fmt: skip


class SpecError(AutograderError):
    """A suite's `spec.py` contradicts itself or its test functions. The author's to mend."""


@dataclass(frozen=True)
class Check:
    """One graded behaviour: one pytest test function."""

    name: str
    task: str
    points: int
    hidden: bool
    performance: bool = False


@dataclass(frozen=True)
class Task:
    """One thing the student implements: one solution cell whose `grade_id` is `name`.

    `public` and `hidden` map the names of test functions in `test_public.py` and `test_hidden.py` to points.
    `performance` names those of them that may give partial credit.
    """

    name: str
    title: str
    minutes: int
    public: Mapping[str, int]
    hidden: Mapping[str, int] = field(default_factory=dict)
    performance: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or keyword.iskeyword(self.name):
            raise SpecError(f"Task name {self.name!r} is not a Python identifier; it names what the student defines.")
        if self.name in RESERVED:
            raise SpecError(
                f"Task name {self.name!r} is one that `submission` in a check has for itself. Choose another."
            )
        if twice := self.public.keys() & self.hidden.keys():
            raise SpecError(f"Task {self.name}: {sorted(twice)} are both public and hidden.")
        if unknown := self.performance - self.public.keys() - self.hidden.keys():
            raise SpecError(f"Task {self.name}: performance names {sorted(unknown)}, which are not among its checks.")
        if not self.public:
            raise SpecError(f"Task {self.name} has no public check; a student could not see whether it works at all.")
        for check in self.checks:
            if type(check.points) is not int or check.points < 1:
                raise SpecError(f"Check {check.name} has points {check.points!r}; give a whole number of at least 1.")

    @property
    def checks(self) -> tuple[Check, ...]:
        """All checks of the task, public ones first."""
        return tuple(
            Check(name, self.name, points, hidden=hidden, performance=name in self.performance)
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
    submission and one whole check, in seconds of wall time; `cpu_s` and `memory_bytes` limit each of its workers.
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
