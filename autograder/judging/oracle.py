"""Expected values that do not depend on any submission: computed once per grading run, in the judge, before it forks.

An oracle may also be a server that checks talk to; it is closed when the run is over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["oracle", "prepare"]

T = TypeVar("T")
_registered: list[Oracle[object]] = []


class Oracle(Generic[T]):
    """A function of no arguments that runs once. What it raised is raised again on every call: the checks that need the
    value are then not gradable, all others are."""

    def __init__(self, function: Callable[[], T]) -> None:
        self.__doc__ = function.__doc__
        self._function = function
        self._value: T | None = None
        self._error: Exception | None = None
        self._done = False

    def __call__(self) -> T:
        if not self._done:
            try:
                self._value = self._function()
            except Exception as error:
                self._error = error
            self._done = True
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # set, or an error was raised

    def prepare(self) -> None:
        """Compute the value now; an error waits for the first check that asks."""
        try:
            self()
        except Exception:
            assert self._error is not None

    def release(self) -> None:
        """Close the value, if it is one that can be closed; the next call makes another one."""
        close = getattr(self._value, "close", None)
        if callable(close):
            close()
            self._value, self._done = None, False


def oracle(function: Callable[[], T]) -> Oracle[T]:
    """Make `function` an oracle. It must depend on nothing but the suite (and models that lie here)."""
    made = Oracle(function)
    _registered.append(made)  # type: ignore[arg-type]
    return made


def prepare() -> None:
    """Compute every oracle of the suites that have been imported."""
    for each in _registered:
        each.prepare()


def release() -> None:
    """Close what oracles keep open, a server for instance: the grading run is over."""
    for each in _registered:
        each.release()
