"""Uses the darker corners of typing: protocols, new types, generics, overloads, annotations as strings.

twin of: V6 V15
"""

# %% helpers="helpers"
# None of it does anything at run time.
from __future__ import annotations

import typing
from bisect import bisect_left
from typing import Annotated, Generic, NewType, Protocol, TypeVar, overload, runtime_checkable

Bytes = NewType("Bytes", int)
T = TypeVar("T", bound="Sized")


@runtime_checkable
class Sized(Protocol):
    def size(self) -> Bytes: ...


class Box(Generic[T]):
    def __init__(self, item: T) -> None:
        self.item: Annotated[T, "whatever"] = item

    def __class_getitem__(cls, item):
        return super().__class_getitem__(item)


@overload
def double(value: int) -> int: ...
@overload
def double(value: str) -> str: ...
def double(value):
    return value * 2


assert typing.get_type_hints(double) == {} and Box[T](1).item == 1 and not isinstance(1, Sized)


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(limit, "limit", 1)

    def too_long(length):
        try:
            return max_concurrency(spec, budget, length, block_size, tp) < concurrency
        except InfeasibleError:
            return True

    return bisect_left(range(1, limit + 1), True, key=too_long)
