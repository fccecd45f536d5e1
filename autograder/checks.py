"""What authors of suites write checks with: expectations that say what was given and what was expected.

Only `CheckFailed` (raised here), `SubmissionRaised` and `SubmissionFault` (raised by calls into the submission) make a check
FAILED. Any other exception in a check, `AssertionError` included, is our mistake and makes it BROKEN.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Container
from typing import Any, NoReturn

__all__ = [
    "CheckFailed",
    "SubmissionFault",
    "SubmissionRaised",
    "expect_close",
    "expect_equal",
    "expect_raises",
    "expect_type",
    "fail",
    "sentence_and_hint",
    "show",
]


class CheckFailed(Exception):
    """The submission gave something other than what the check expects."""

    def __init__(self, message: str, value: str | None = None, expected: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.value = value
        self.expected = expected


class SubmissionRaised(Exception):
    """The submission raised an exception. `mro` are the names of its class and bases, `lines` its student frames."""

    def __init__(
        self,
        type_name: str,
        mro: tuple[str, ...],
        text: str,
        lines: tuple[tuple[str, int, str], ...] = (),
        name: str | None = None,
        data: dict[str, int | float | str] | None = None,
    ) -> None:
        super().__init__(f"{type_name}: {text}" if text else type_name)
        self.type_name = type_name
        self.mro = mro
        self.text = text
        self.lines = lines
        self.name = name
        """The name that a `NameError` is about."""
        self.data = data or {}
        """Numbers and texts that the exception carries as attributes."""


class SubmissionFault(Exception):
    """The submission did not answer: out of time, out of memory, died, or sent nonsense. The text says which."""

    def __init__(self, text: str, *, timeout: bool = False) -> None:
        super().__init__(text)
        self.timeout = timeout


MAX_SHOWN = 1_000
"""Characters of a value as it is shown."""
_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxlong, _repr.maxother = 4, 200, 60, 200
_repr.maxtuple = _repr.maxlist = _repr.maxdict = 20


def show(value: Any) -> str:
    """`value` as a student reads it: short, with a tensor's dtype and shape instead of its numbers."""
    if hasattr(type(value), "dtype") and hasattr(type(value), "shape"):  # of the type: a handle has every attribute
        if type(value).__module__.startswith("torch"):
            return f"tensor of shape {tuple(value.shape)}, {value.dtype}"
        return f"{type(value).__name__} with shape {tuple(value.shape)}, {value.dtype}"
    if type(value) is int:
        return f"{value:,}".replace(",", "_") if len(str(abs(value))) <= 60 else _repr.repr(value)
    text = _repr.repr(value)  # four levels of twenty texts each can be megabytes
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


_NOTHING = object()


def fail(message: str, *, value: Any = _NOTHING, expected: str | None = None) -> NoReturn:
    """End the check as FAILED. `value` is what the submission gave."""
    raise CheckFailed(message, None if value is _NOTHING else show(value), expected)


def expect_type(value: Any, kind: type, what: str) -> None:
    """`value` must be exactly of `kind`: a bool is no int, an int no float."""
    if type(value) is not kind:
        raise CheckFailed(f"{_plain(what)}: wrong type.", f"{show(value)} ({_type_name(value)})", kind.__name__)


def expect_equal(value: Any, expected: Any, what: str) -> None:
    """`value` must equal `expected` in value and, all the way down, in type."""
    if _same(value, expected):
        return
    given, wanted = _type_name(value), type(expected).__name__
    if value is None:
        fail(f"{_plain(what)}: None. Is a `return` missing?", value=None, expected=show(expected))
    if given != wanted:
        raise CheckFailed(f"{_plain(what)}: wrong type.", f"{show(value)} ({given})", f"{show(expected)} ({wanted})")
    fail(f"{_plain(what)}: wrong value.", value=value, expected=show(expected))


def expect_close(value: Any, expected: float, what: str, *, rel: float = 1e-9) -> None:
    """`value` must be a finite float within `rel` of `expected`."""
    expect_type(value, float, what)
    if not (math.isfinite(value) and math.isclose(value, expected, rel_tol=rel)):
        fail(f"{_plain(what)}: wrong value.", value=value, expected=show(expected))


def expect_raises(
    error: str, call: Callable[[], Any], what: str, *, naming: Container[str] | str = ""
) -> SubmissionRaised:
    """`call` must raise `error` (a class name, or the name of a base), with `naming` in its text. Returns what was raised."""
    try:
        value = call()
    except SubmissionRaised as raised:
        if error not in raised.mro:
            raise CheckFailed(f"{what} must raise {error}.", f"{raised.type_name}: {raised.text}", error) from None
        if isinstance(naming, str) and naming not in raised.text:
            raise CheckFailed(
                f"{what} must raise {error} with a text that names {naming!r}.", raised.text, naming
            ) from None
        return raised
    raise CheckFailed(f"{what} must raise {error}.", f"returned {show(value)}", error)


def sentence_and_hint(docstring: str) -> tuple[str, str]:
    """What a student reads of a check's docstring, already without its indentation: the first paragraph, and the hint."""
    sentence, *paragraphs = (" ".join(part.split()) for part in docstring.split("\n\n"))
    hint = next((part.removeprefix("Hint:").strip() for part in paragraphs if part.startswith("Hint:")), "")
    return sentence, hint


def _plain(what: str) -> str:
    """`what` before a colon, which serves one thing and several: without the comma that a clause ends in."""
    return what.rstrip(",")


def _type_name(value: Any) -> str:
    """Name of the type that the student gave, also of an object that stayed in the worker."""
    return str(value._type_name) if hasattr(type(value), "_type_name") else type(value).__name__


def _same(value: Any, expected: Any) -> bool:
    if type(value) is not type(expected):
        return False
    if isinstance(expected, list | tuple):
        return len(value) == len(expected) and all(map(_same, value, expected))
    if isinstance(expected, dict):
        same_keys = {(type(key), key) for key in value} == {(type(key), key) for key in expected}  # True is not 1
        return same_keys and all(_same(value[key], expected[key]) for key in expected)
    if hasattr(type(value), "dtype") and hasattr(type(value), "shape"):  # == of arrays is an array
        return bool(value.dtype == expected.dtype and value.shape == expected.shape and (value == expected).all())
    return bool(value == expected)
