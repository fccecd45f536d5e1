"""A suite's checks beside the student's code: the setup cell of the ordinary courses of `throughput.py`.

The text of this file goes into the notebook. The kernel then does in plain Python what judge and worker do over the
wire: calls are made, what student code raises becomes `SubmissionRaised`, lists and tensors are handed over as copies.
"""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Callable
from typing import Any

from autograder.checks import CheckFailed, SubmissionRaised

PLAIN = (type(None), bool, int, float, str, bytes)


class InKernel:
    """The student's functions and objects: of the notebook's own namespace, or methods of one object."""

    def __init__(self, get: Callable[[str], Any], value: Any = None) -> None:
        self._get = get
        self._value = value

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return Function(self._get, name)


class Function:
    """A function of the student's, or a method of one of their objects."""

    def __init__(self, get: Callable[[str], Any], name: str) -> None:
        self._get = get
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _call(self._get(self._name), args, kwargs)

    def each(self, calls: list[tuple[Any, ...]]) -> list[Any]:
        return [self(*args) for args in calls]


def _call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return _give(function(*_take(args), **_take(kwargs)))
    except CheckFailed:  # of a function that the check passed in
        raise
    except Exception as error:
        mro = tuple(base.__name__ for base in type(error).__mro__)
        data = {key: value for key, value in vars(error).items() if type(value) in (int, float, str)}
        raise SubmissionRaised(type(error).__name__, mro, str(error), data=data) from error


def _give(value: Any) -> Any:
    """As a check gets it."""
    if type(value) in PLAIN:
        return value
    if type(value) in (list, tuple):
        return type(value)(map(_give, value))
    if type(value) is dict:
        return {key: _give(part) for key, part in value.items()}
    if type(value).__name__ == "Tensor":
        return value.detach().clone()
    return InKernel(lambda name: getattr(value, name), value)


def _take(value: Any) -> Any:
    """As the submission gets it."""
    if type(value) in (list, tuple):
        return type(value)(map(_take, value))
    if type(value) is dict:
        return {key: _take(part) for key, part in value.items()}
    if type(value).__name__ == "Tensor":
        return value.clone()
    if isinstance(value, InKernel):
        return value._value
    if callable(value):
        return lambda *args, **kwargs: _take(value(*_give(args), **_give(kwargs)))
    return value


def add_module(name: str, source: str) -> types.ModuleType:
    """A module of the suite, from its text."""
    package = name.rpartition(".")[0]
    while package and package not in sys.modules:
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = []
        package = package.rpartition(".")[0]
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, f"<{name}>", "exec"), module.__dict__)  # noqa: S102 - the suite's own text
    parent, _, last = name.rpartition(".")
    setattr(sys.modules[parent], last, module)
    return module


def run(check: Callable[..., None], namespace: dict[str, Any]) -> None:
    """Run one check. It raises if the submission does not meet it, and nbgrader then gives no points."""
    given = {"submission": InKernel(namespace.__getitem__), "rng": random.Random(check.__name__)}
    wanted = check.__code__.co_varnames[: check.__code__.co_argcount]
    check(**{name: given[name] for name in wanted})
