"""The line between judge and worker: one frame format, one closed list of values.

A frame is a fixed head (length of the message, number of buffers), the length of each buffer, a msgpack message and the raw
buffers. Values: None, bool, int, float, str, bytes, list, tuple, dict, dense tensors and arrays, and *references* to objects
and functions that stay in the process that owns them. No pickle; no class or attribute is looked up by a name that the other
side chose.

Covered: sizes are checked before anything is read or allocated, depth and number of values are limited, a frame that stalls
meets the deadline, scalar types are exact (a bool is never an int here, a subclass never passes for its base).
Not covered: a worker that lies about its own values. Whoever receives a value checks it.
"""

from __future__ import annotations

import math
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import msgspec

__all__ = ["Array", "Deadline", "Ref", "Wire", "WireClosed", "WireError"]

HEAD = struct.Struct("!IH")
LENGTH = struct.Struct("!Q")
MAX_MESSAGE = 4 << 20
"""Bytes of one message without its buffers. A msgpack array of empty arrays becomes about 80 times its size in Python."""
MAX_BUFFERS = 256
MAX_BUFFER_BYTES = 1 << 30
"""Bytes of all buffers of one frame together."""
MAX_DEPTH = 32
MAX_VALUES = 1_000_000
MAX_HEX = 3_500
"""Digits of an int in base 16. Python refuses to print ints of more than 4,300 decimal digits, and checks print."""
MAX_BITS = 4 * MAX_HEX - 16
"""Of an int: room for the sign and "0x"."""
MAX_DIMS = 16

DTYPES = {
    "bool": 1, "uint8": 1, "int8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
}  # fmt: skip
"""Element types that may cross, with their size in bytes."""

LIST, TUPLE, DICT, INT, ARRAY, REF, BYTES = range(7)


def _decoder() -> msgspec.msgpack.Decoder[Any]:
    """Reads trees of lists and scalars. Maps and extensions are refused before anything is made of them: tuples of
    small ints as keys of a map all hash alike at the sender's will, and the time it takes grows with their square."""
    tree: Any = None | bool | int | float | str
    for _ in range(MAX_DEPTH + 2):
        tree = None | bool | int | float | str | list[tree]
    return msgspec.msgpack.Decoder(tree)


DECODER = _decoder()


class WireError(ValueError):
    """The other side sent something that is not a frame, or a value that may not cross."""


class WireClosed(ConnectionError):
    """The other side is gone."""


class Deadline:
    """A point on this process's monotonic clock, `seconds` from now. `None` means never."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._at = math.inf if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        """Seconds left, `None` for never. Raises `TimeoutError` when there are none."""
        if self._at == math.inf:
            return None
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class Array(msgspec.Struct, frozen=True):
    """A dense tensor or array as it crosses: `kind` is "torch", "numpy" or "scalar" (a numpy scalar), data in C order."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype]


class Ref(msgspec.Struct, frozen=True):
    """An object or function that stays where it is. `mine` is true for the process that sends it; `type_name` is for people."""

    mine: bool
    number: int
    type_name: str
    callable: bool = False


class Wire:
    """One end of the line, over a connected stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, message: list[Any], encode: Callable[[Any], Any], deadline: Deadline) -> None:
        """Send a list of values. `encode` turns objects outside the closed list into `Array` or `Ref`.

        Raises `WireError` for a value that may not cross (nothing is sent then), `WireClosed`, `TimeoutError`.
        """
        buffers: list[bytes | bytearray | memoryview] = []
        try:
            body = msgspec.msgpack.encode(_Packer(buffers, encode).pack(message, 0))
        except (UnicodeEncodeError, OverflowError) as error:
            raise WireError(f"a value that cannot be sent: {error}") from None
        if len(body) > MAX_MESSAGE:
            raise WireError(f"{len(body):,} bytes of values in one message; at most {MAX_MESSAGE:,} may cross")
        lengths = [memoryview(buffer).nbytes for buffer in buffers]
        if len(buffers) > MAX_BUFFERS or sum(lengths) > MAX_BUFFER_BYTES:
            raise WireError(f"{len(buffers)} tensors of {sum(lengths):,} bytes in one message; that is too much")
        head = HEAD.pack(len(body), len(buffers)) + b"".join(map(LENGTH.pack, lengths))
        try:
            for part in (head + body, *buffers):
                self.sock.settimeout(deadline.left())
                self.sock.sendall(part)
        except TimeoutError:
            raise
        except OSError as error:
            raise WireClosed(str(error)) from None

    def receive(self, decode: Callable[[Array | Ref], Any], deadline: Deadline) -> list[Any]:
        """The next message. `decode` turns `Array` and `Ref` into objects of this process.

        Raises `WireError` for anything malformed (the line is of no further use then), `WireClosed`, `TimeoutError`.
        """
        size, count = HEAD.unpack(self._read(HEAD.size, deadline))
        if size > MAX_MESSAGE or count > MAX_BUFFERS:
            raise WireError(f"a frame of {size:,} bytes and {count} buffers; at most {MAX_MESSAGE:,} and {MAX_BUFFERS}")
        lengths = [LENGTH.unpack(self._read(LENGTH.size, deadline))[0] for _ in range(count)]
        if sum(lengths) > MAX_BUFFER_BYTES:
            raise WireError(f"{sum(lengths):,} bytes of tensors in one frame; at most {MAX_BUFFER_BYTES:,}")
        body = self._read(size, deadline)
        buffers = [self._read(length, deadline) for length in lengths]
        try:
            tree = DECODER.decode(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise WireError(f"not a message: {error}") from None
        message = _Unpacker(buffers, decode, deadline).unpack(tree, 0)
        if type(message) is not list:
            raise WireError("a message must be a list")
        return message

    def _read(self, size: int, deadline: Deadline) -> bytearray:
        data = bytearray()
        view_size = 1 << 20  # grow as bytes arrive: a promised gigabyte that never comes allocates nothing
        while len(data) < size:
            left = deadline.left()
            try:
                self.sock.settimeout(left)
                chunk = self.sock.recv(min(view_size, size - len(data)))
            except TimeoutError:
                continue  # the deadline says whether the time is up: it may have moved
            except OSError as error:
                raise WireClosed(str(error)) from None
            if not chunk:
                raise WireClosed("the other side closed the line")
            data += chunk
        return data


class _Packer:
    def __init__(self, buffers: list[bytes | bytearray | memoryview], encode: Callable[[Any], Any]) -> None:
        self.buffers = buffers
        self.encode = encode
        self.values = 0

    def pack(self, value: Any, depth: int) -> Any:
        self.values += 1
        if depth > MAX_DEPTH or self.values > MAX_VALUES:
            raise WireError(f"a value nested deeper than {MAX_DEPTH} or of more than {MAX_VALUES:,} parts")
        kind = type(value)  # compared by `is` only: a metaclass may answer == as it likes
        if value is None or kind is bool or kind is float or kind is str:
            return value
        if kind is bytes:
            return [BYTES, value.decode("latin-1")]
        if kind is int:
            return value if -(1 << 63) <= value < 1 << 64 else [INT, self._hex(value)]
        if kind is list or kind is tuple:
            return [LIST if kind is list else TUPLE, *[self.pack(item, depth + 1) for item in value]]
        if kind is dict:
            return [DICT, *[self.pack(part, depth + 1) for pair in value.items() for part in pair]]
        if kind is not Array and kind is not Ref:
            value = self.encode(value)
        if type(value) is Array:
            _check(value)
            self.buffers.append(value.data)
            return [ARRAY, value.kind, value.dtype, list(value.shape), len(self.buffers) - 1]
        if type(value) is Ref:
            return [REF, value.mine, value.number, value.type_name, value.callable]
        raise WireError(f"a value of type {kind.__name__} cannot cross")

    def _hex(self, value: int) -> str:
        if value.bit_length() > MAX_BITS:
            raise WireError(f"an integer of {value.bit_length():,} bits; that is too large to cross")
        return hex(value)


class _Unpacker:
    def __init__(self, buffers: list[bytearray], decode: Callable[[Array | Ref], Any], deadline: Deadline) -> None:
        self.buffers = buffers
        self.decode = decode
        self.deadline = deadline
        self.values = 0
        self.used = 0

    def unpack(self, tree: Any, depth: int) -> Any:
        self.values += 1
        if depth > MAX_DEPTH or self.values > MAX_VALUES:
            raise WireError(f"a value nested deeper than {MAX_DEPTH} or of more than {MAX_VALUES:,} parts")
        if type(tree) is not list:
            return tree  # None, bool, int, float or str: the decoder makes nothing else
        if not tree or type(tree[0]) is not int:
            raise WireError("an array without its tag")
        tag, parts = tree[0], tree[1:]
        if tag in (LIST, TUPLE):
            items = [self.unpack(item, depth + 1) for item in parts]
            return items if tag == LIST else tuple(items)
        if tag == DICT:
            return self._dict(parts, depth)
        if tag == INT:
            return self._int(parts)
        if tag == BYTES:
            return self._bytes(parts)
        if tag == ARRAY:
            return self.decode(self._array(parts))
        if tag == REF and [type(part) for part in parts] == [bool, int, str, bool]:
            return self.decode(Ref(not parts[0], parts[1], parts[2][:200], parts[3]))
        raise WireError(f"an array with tag {tag} and {len(parts)} parts")

    def _dict(self, parts: list[Any], depth: int) -> dict[Any, Any]:
        if len(parts) % 2:
            raise WireError("a dict with a key and no value")
        items = [self.unpack(part, depth + 1) for part in parts]
        result: dict[Any, Any] = {}
        try:
            for key, value in zip(items[::2], items[1::2], strict=True):
                self.deadline.left()  # keys that all hash alike cost time that grows with their square
                result[key] = value
        except (TypeError, ValueError, RuntimeError):  # arrays cannot be hashed, or not compared
            raise WireError("a dict key that cannot be hashed") from None
        if len(result) != len(items) // 2:
            raise WireError("a dict with the same key twice")
        return result

    def _int(self, parts: list[Any]) -> int:
        if len(parts) != 1 or type(parts[0]) is not str or len(parts[0]) > MAX_HEX:
            raise WireError("a malformed large integer")
        try:
            value = int(parts[0], 16)
        except ValueError:
            raise WireError("a malformed large integer") from None
        if value.bit_length() > MAX_BITS:
            raise WireError("an integer that is too large to cross back")
        return value

    def _bytes(self, parts: list[Any]) -> bytes:
        if len(parts) != 1 or type(parts[0]) is not str:
            raise WireError("malformed bytes")
        try:
            return parts[0].encode("latin-1")
        except UnicodeEncodeError:
            raise WireError("malformed bytes") from None

    def _array(self, parts: list[Any]) -> Array:
        if [type(part) for part in parts] != [str, str, list, int]:
            raise WireError("a malformed tensor")
        kind, dtype, shape, index = parts
        # Each buffer once, in order: a gigabyte named by a hundred thousand tensors would be looked at as often.
        if index != self.used or index >= len(self.buffers) or not all(type(size) is int for size in shape):
            raise WireError("a malformed tensor")
        self.used += 1
        array = Array(kind[:20], dtype[:20], tuple(shape), self.buffers[index])
        _check(array)
        if dtype == "bool" and self.buffers[index].strip(b"\0\1"):
            raise WireError("a bool tensor with a byte that is neither 0 nor 1")
        return array


def _check(array: Array) -> None:
    """What must hold of every array that crosses, at both ends, so that nothing is sent that cannot be read."""
    if array.kind not in ("torch", "numpy", "scalar") or array.dtype not in DTYPES:
        raise WireError(f"a tensor of kind {array.kind!r}, dtype {array.dtype!r}")
    # sizes of 0 count as 1: libraries multiply the others, and fail where that overflows
    sizes = [max(1, size) for size in array.shape[: MAX_DIMS + 1]]
    too_large = len(sizes) > MAX_DIMS or math.prod(sizes) * DTYPES[array.dtype] > MAX_BUFFER_BYTES
    if too_large or min(array.shape, default=0) < 0 or (array.kind == "scalar" and array.shape):
        raise WireError(f"a {array.kind} value with the impossible shape {str(array.shape[:20])[:80]}")
    if array.nbytes != (length := memoryview(array.data).nbytes):
        raise WireError(f"a {array.dtype} tensor of shape {array.shape} that came with {length} bytes")
