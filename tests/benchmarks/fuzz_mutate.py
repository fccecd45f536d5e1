"""How `fuzz_wire.py` changes inputs: frames of the wire and JSON as trees, everything as bytes.

A byte changed at random breaks a frame at its lengths and gets no further. So most changes are made to what the bytes
mean, and the lengths are made to fit again, most of the time. Every change is a pure function of the input and the seed.
Not covered: what coverage is worth keeping; that is the engine's.
"""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import msgspec

from autograder.worker import wire

__all__ = ["frame", "mutate_bytes", "mutate_frames", "mutate_json"]

MAX_ARRAY_BYTES = 1 << 17
MAX_GROWTH = 1 << 18
"""Characters that one change adds at most."""
SCALARS: list[Any] = [
    None, True, False, 0, 1, 2, 5, -1, 1 << 31, (1 << 64) - 1, -(1 << 63), 0.5, float("inf"), float("nan"), "", "x", "\0",
    "value", "x" * 5_000,
]  # fmt: skip


def _nest(depth: int, inner: Any, *tag: Any) -> Any:
    for _ in range(depth):
        inner = [*tag, inner]
    return inner


def _pairs(**entries: Any) -> list[Any]:
    return [wire.DICT, *(part for entry in entries.items() for part in entry)]


def _collisions(count: int) -> list[Any]:
    """A dict of up to `count` keys with one hash, since hash(-1) == hash(-2)."""
    keys = ([wire.TUPLE, *(-1 - (number >> bit & 1) for bit in range(10))] for number in range(count))
    return [wire.DICT, *(part for key in keys for part in (key, None))]


LEGAL: list[Any] = [
    *SCALARS, [wire.LIST], [wire.TUPLE], [wire.DICT], [wire.INT, "0x" + "f" * (wire.MAX_HEX - 4)], [wire.INT, "-0x1"],
    [wire.BYTES, "\xff"], [wire.REF, True, 0, "Pool", True], [wire.REF, True, 1 << 63, "x" * 900, False],
    [wire.REF, False, 0, "function", True], [wire.LIST, "invoke", 1, [wire.LIST, 1], [wire.DICT]],
    [wire.LIST, "invoke", 0, [wire.LIST, 1], [wire.DICT, "x" * 5_000, 1]],
    _pairs(type="E", mro=[wire.LIST, "E"], text="", lines=[wire.LIST, [wire.LIST, "cell", 1, "x"]], name=None, data=[wire.DICT]),
    _pairs(kind="callable", type="function", parameters=[wire.LIST, "a"]), _collisions(8), _collisions(1024),
    _nest(25, 1, wire.LIST), _nest(25, 1, wire.TUPLE),
]  # fmt: skip
"""What may cross, somewhere at least."""
BROKEN: list[Any] = [
    b"bytes", msgspec.msgpack.Ext(1, b"x"), {"a": 1}, [], [99, 1], [wire.INT, "f" * wire.MAX_HEX], [wire.DICT, 1],
    [wire.REF, False, -1, "function", True], [wire.REF, False, 99, "function", True], [wire.ARRAY, "torch", "uint8", [1], 0],
    [wire.ARRAY, "numpy", "bool", [0], 0], _nest(40, 1, wire.LIST), _nest(300, 1),
]  # fmt: skip
FINDING = {"check": "test_bytes_per_kv_head", "task": "kv_bytes_per_token", "outcome": "PASSED", "hidden": False}
FINDING["sentence"] = "It works."
JSON: list[Any] = [
    *SCALARS, [], 10**400, -1e308, "\ud800", "PASSED", "BROKEN", "findings", "test_bytes_per_kv_head", {}, FINDING, [FINDING] * 3,
    {"findings": [FINDING], "times": {"fork_s": 0.1}}, {"error": "x"}, _nest(900, 1),
]  # fmt: skip


def frame(tree: Any, *buffers: bytes) -> bytes:
    """One frame of the wire, by hand: the wire itself would refuse what is wrong with it."""
    body = msgspec.msgpack.encode(tree)
    return (
        wire.HEAD.pack(len(body), len(buffers))
        + b"".join(wire.LENGTH.pack(len(each)) for each in buffers)
        + (body + b"".join(buffers))
    )


def _parse(data: bytes) -> tuple[list[tuple[Any, list[bytes]]], bytes]:
    """The frames that `data` begins with, as trees and buffers, and the bytes after them."""
    found: list[tuple[Any, list[bytes]]] = []
    while len(data) >= wire.HEAD.size:
        size, count = wire.HEAD.unpack_from(data)
        at = wire.HEAD.size + count * wire.LENGTH.size
        if len(data) < at:
            break
        ends = [at, at + size]
        for number in range(count):
            ends.append(ends[-1] + wire.LENGTH.unpack_from(data, wire.HEAD.size + number * wire.LENGTH.size)[0])
        if len(data) < ends[-1]:
            break
        try:
            tree = msgspec.msgpack.decode(data[at : ends[1]])
        except (msgspec.DecodeError, RecursionError, ValueError):
            break
        found.append((tree, [data[start:end] for start, end in itertools.pairwise(ends[1:])]))
        data = data[ends[-1] :]
    return found, data


def mutate_frames(data: bytes, rng: random.Random) -> bytes:
    """`data`, frames of the wire, changed in what one of them says, in its buffers, in their order or in a length."""
    frames, rest = _parse(data)
    if not frames:
        return mutate_bytes(data, rng)
    number = rng.randrange(len(frames))
    tree, buffers = frames[number]
    more: list[tuple[Any, list[bytes]]] = []
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind = rng.random()
        if kind < 0.85:
            pieces = [_array(rng, buffers)] if kind < 0.2 else LEGAL if kind < 0.7 else BROKEN
            if type(tree) is list and len(tree) > 2 and rng.random() < 0.9:  # leave alone what kind of message it is
                at = rng.randrange(2, len(tree))
                tree = [*tree[:at], _mutate_tree(tree[at], rng, pieces, 1), *tree[at + 1 :]]
            else:
                tree = _mutate_tree(tree, rng, pieces, 1)
        elif kind < 0.9 and buffers:
            at = rng.randrange(len(buffers))
            buffers[at] = mutate_bytes(buffers[at], rng)[:MAX_ARRAY_BYTES]
        elif kind < 0.95:
            more.append(rng.choice((*frames, (rng.choice(LEGAL), []))))
        else:
            rest = b""
    frames[number] = (tree, buffers)
    frames = [*more, *frames] if rng.random() < 0.5 else [*frames, *more]
    try:
        whole = b"".join(frame(tree, *buffers) for tree, buffers in frames) + rest
    except (OverflowError, RecursionError, ValueError, TypeError):  # a tree that msgpack cannot hold
        return mutate_bytes(data, rng)
    return mutate_bytes(whole, rng) if rng.random() < 0.1 else whole


def _array(rng: random.Random, buffers: list[bytes]) -> Any:
    """A tensor that fits a new buffer, mostly."""
    dtype = rng.choice(sorted(wire.DTYPES))
    shape = [rng.choice((0, 1, 2, 3, 64)) for _ in range(rng.choice((0, 1, 1, 1, 2, 17)))]
    shape = [MAX_ARRAY_BYTES // wire.DTYPES[dtype]] if rng.random() < 0.2 else shape
    size = wire.DTYPES[dtype]
    for length in shape:
        size *= length
    if size > MAX_ARRAY_BYTES or len(buffers) >= 8:
        return [wire.ARRAY, "torch", dtype, shape, 0]
    buffers.append(bytes(size) if rng.random() < 0.5 else rng.randbytes(size))
    return [wire.ARRAY, rng.choice(("torch", "numpy", "scalar")), dtype, shape, len(buffers) - 1]


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """`data`, JSON, changed in what it says; changed as bytes if it is none."""
    try:
        tree = json.loads(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            tree = _mutate_tree(tree, rng, JSON)
        text = json.dumps(tree, indent=1)
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng)
    return mutate_bytes(text.encode(), rng) if rng.random() < 0.1 else text.encode()


def _mutate_tree(tree: Any, rng: random.Random, pieces: list[Any], first: int = 0) -> Any:
    """A copy of `tree` with one node replaced, removed, doubled, multiplied, moved, wrapped or changed a little.

    What is not on the way to that node is shared with `tree`. `first` is 1 where lists begin with a tag, mostly left alone.
    """
    if type(tree) not in (list, dict) or not tree or rng.random() < 0.15:
        return _instead(tree, rng, pieces)
    node: Any = list(tree) if type(tree) is list else dict(tree)
    start = first if len(node) > first and rng.random() < 0.95 else 0
    key = rng.randrange(start, len(node)) if type(node) is list else rng.choice(list(node))
    kind = rng.random()
    if kind < 0.05:
        del node[key]
    elif kind < 0.1 and type(node) is list:
        node[key:key] = [node[key]] * min(rng.choice((1, 1, 2, 50, 2_000)), MAX_GROWTH // len(repr(node[key])))
    elif kind < 0.15 and type(node) is list:
        node.insert(key, rng.choice(pieces))
    elif kind < 0.15:
        node[str(rng.choice(pieces))[:20]] = rng.choice(pieces)
    elif kind < 0.2:
        node[key] = node[key if type(node) is dict else rng.randrange(start, len(node))]
    else:
        node[key] = _mutate_tree(node[key], rng, pieces, first)
    return node


def _instead(value: Any, rng: random.Random, pieces: list[Any]) -> Any:
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(pieces)
    if kind < 0.7:
        return [rng.randrange(7), value]
    if type(value) is int:
        return value + rng.choice((-1, 1, 2, 1 << rng.randrange(63)))
    if type(value) is str:
        at = rng.randrange(len(value) + 1)
        return value[:at] + rng.choice(("", "\0", "\u20ac", "_", "9", "x" * 2_000)) + value[at + rng.randrange(2) :]
    if type(value) is float:
        return rng.choice((-value, value * 1e300, float("nan")))
    return value[::-1] if type(value) is list else [value, value]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to four short runs of bytes changed, removed, multiplied or put in, and perhaps the end cut off."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        old = data[at : at + rng.choice((1, 1, 2, 4, 8, 32))]
        new = (
            rng.randbytes(len(old)),
            b"",
            old * rng.choice((2, 3, 5_000)),
            old + rng.choice((b"\0", b"\xff", b"\x7f", b"\x90", b"\xdd", b"[", b'"')) * rng.choice((1, 2, 4, 8)),
        )
        data = data[:at] + rng.choice(new) + data[at + len(old) :]
    return data[: rng.randrange(len(data) + 1)] if rng.random() < 0.1 else data
