"""The line between judge and worker: what crosses comes back exactly, and hostile bytes end in one of three errors."""

from __future__ import annotations

import contextlib
import itertools
import math
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autograder.worker import arrays, wire
from autograder.worker.wire import Array, Deadline, Ref, Wire, WireClosed, WireError

LINE_ERRORS = (WireError, WireClosed, TimeoutError)
Decode = Callable[[Array | Ref], Any]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 13_000), 1 << 13_000),
    st.sampled_from([(1 << 64) - 1, 1 << 64, -(1 << 63), -(1 << 63) - 1]),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
)
hashable = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(hashable, inner, max_size=4),
    ),
    max_leaves=20,
)


tagged = st.one_of(
    scalars.filter(lambda value: type(value) is not bytes and (type(value) is not int or abs(value) < 1 << 63)),
    st.text("0123456789abcdef-x_", max_size=20).map(lambda digits: [wire.INT, digits]),
    st.integers(-(1 << 14_001), 1 << 14_001).map(lambda number: [wire.INT, hex(number)]),
    st.text("ab\xff\u20ac", max_size=3).map(lambda text: [wire.BYTES, text]),
    st.tuples(st.booleans(), st.integers(-1, 99), st.text(max_size=3), st.booleans()).map(lambda ref: [wire.REF, *ref]),
)
trees = st.lists(
    st.recursive(
        tagged,
        lambda inner: st.tuples(st.sampled_from([wire.LIST, wire.TUPLE, wire.DICT]), st.lists(inner, max_size=4)).map(
            lambda node: [node[0], *node[1]]
        ),
        max_leaves=20,
    ),
    max_size=4,
)
"""What a peer may lay out that knows the tags and not the rules."""


def refuse(item: Any) -> Any:
    raise AssertionError(f"{item!r} is not of the closed list")


def keep(item: Any) -> Any:
    return item


def from_wire(item: Array | Ref) -> Any:
    return arrays.from_array(item) if isinstance(item, Array) else item


def to_wire(value: Any) -> Any:
    return arrays.to_array(value) or refuse(value)


def cross(message: list[Any], encode: Callable[[Any], Any] = refuse, decode: Decode = refuse) -> list[Any]:
    """Send `message` and receive it at the other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as executor:
        sent = executor.submit(Wire(ours).send, message, encode, Deadline(30))
        sent.add_done_callback(lambda done: ours.close())
        try:
            return Wire(theirs).receive(decode, Deadline(30))
        finally:
            sent.result()


def refused_by_sender(value: Any, encode: Callable[[Any], Any] = refuse) -> str:
    """The reason why `value` is not sent. The line stays usable: the next message crosses whole."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(WireError) as error:
            Wire(ours).send([value], encode, Deadline(5))
        Wire(ours).send(["next"], refuse, Deadline(5))
        assert Wire(theirs).receive(refuse, Deadline(5)) == ["next"]
    return str(error.value)


def receive(data: bytes, decode: Decode = keep, seconds: float = 10, close: bool = True) -> Any:
    """What the receiver makes of raw bytes, after which the line is closed (or left open)."""
    ours, theirs = socket.socketpair()
    with theirs:

        def feed() -> None:
            try:
                ours.sendall(data)
            except OSError:
                return  # the receiver has seen enough
            finally:
                if close:
                    ours.close()

        feeder = threading.Thread(target=feed)
        feeder.start()
        try:
            return Wire(theirs).receive(decode, Deadline(seconds))
        finally:
            theirs.close()
            feeder.join()
            ours.close()


def frame(body: bytes, buffers: tuple[bytes, ...] = ()) -> bytes:
    lengths = b"".join(struct.pack("!Q", len(buffer)) for buffer in buffers)
    return struct.pack("!IH", len(body), len(buffers)) + lengths + body + b"".join(buffers)


def pack(tree: Any, *buffers: bytes) -> bytes:
    return frame(msgspec.msgpack.encode(tree), buffers)


def same(one: Any, other: Any) -> bool:
    """Equal in value and type all the way down; NaN equals NaN, and 0.0 is not -0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=True)  # order is kept
        return len(one) == len(other) and all(same(key, k) and same(value, v) for (key, value), (k, v) in pairs)
    return bool(one == other)


def swapped(value: Any) -> Any:
    """`value` as the other side sees it: what is mine is yours."""
    if isinstance(value, Ref):
        return Ref(not value.mine, value.number, value.type_name, value.callable)
    if isinstance(value, dict):
        return {swapped(key): swapped(part) for key, part in value.items()}
    return type(value)(map(swapped, value)) if isinstance(value, list | tuple) else value


class TestValues:
    """Values of the closed list."""

    @given(st.lists(values, max_size=4))
    def test_every_value_comes_back_exactly(self, message: list[Any]) -> None:
        """Value, type and order survive the way: a bool stays a bool, a tuple a tuple, a big int its last digit."""
        assert same(cross(message), message)

    @pytest.mark.parametrize(
        "value", [True, 1, 1.0, -0.0, math.nan, (), [], {}, b"", "", {True: 1}, {(1, (2.0,)): b"\0"}]
    )
    def test_lookalikes_are_kept_apart(self, value: Any) -> None:
        """What compares equal in Python is still told apart."""
        assert same(cross([value])[0], value)

    def test_subclasses_never_pass_for_their_base(self) -> None:
        """A subclass of int, str, list ... is an object like any other, even if its metaclass claims equality."""

        class Agreeable(type):
            def __eq__(cls, other: object) -> bool:
                return True

            def __hash__(cls) -> int:
                return 0

        for base in (int, float, str, bytes, list, tuple, dict):
            for kind in (type("Sub", (base,), {}), Agreeable("Sub", (base,), {})):
                value = kind()
                encoded: list[Any] = []

                def encode(item: Any, encoded: list[Any] = encoded) -> Ref:
                    encoded.append(item)
                    return Ref(True, 7, "Sub")

                assert cross([value], encode, keep) == [Ref(False, 7, "Sub")]
                assert encoded[0] is value

    def test_a_reference_changes_sides(self) -> None:
        """What is mine for the sender is yours for the receiver."""
        assert cross([Ref(True, 3, "Pool", True)], decode=keep) == [Ref(False, 3, "Pool", True)]
        assert cross([Ref(False, 0, "f")], decode=keep) == [Ref(True, 0, "f")]

    def test_many_values_cross_in_one_message(self) -> None:
        """Hundreds of thousands of values, as token lists are, cross quickly."""
        message = [list(range(300_000))]
        began = time.monotonic()
        assert cross(message) == message
        assert time.monotonic() - began < 5

    @pytest.mark.parametrize("depth", [30, 31, 32, 100, 5000])
    def test_nesting_is_limited_at_the_sender(self, depth: int) -> None:
        """Whatever the sender lets pass, the receiver reads; deeper values are refused before anything is sent."""
        value: Any = 1
        for _ in range(depth):
            value = [value]
        if depth < wire.MAX_DEPTH:
            assert cross([value]) == [value]
        else:
            assert "nested deeper" in refused_by_sender(value)

    def test_a_list_that_holds_itself_is_refused(self) -> None:
        """An endless value ends at the depth limit."""
        endless: list[Any] = []
        endless.append(endless)
        assert "nested deeper" in refused_by_sender(endless)

    @pytest.mark.parametrize(
        "value", [1 << 14_000, -(1 << 14_000), "\ud800", {"a": "\udfff"}, ["x" * (5 << 20)]], ids=type
    )
    def test_what_cannot_be_read_is_not_sent(self, value: Any) -> None:
        """Too large integers, half surrogate pairs and megabytes of text are refused, and the line stays in order."""
        assert refused_by_sender(value)

    @given(st.integers(-(1 << 15_000), 1 << 15_000))
    @settings(max_examples=50)
    def test_an_integer_that_crosses_can_be_printed(self, value: int) -> None:
        """No integer arrives that Python refuses to print, since checks show what they were given."""
        if value.bit_length() > 13_984:
            assert "too large" in refused_by_sender(value)
        else:
            assert str(cross([value])[0]) == str(value)


class TestArrays:
    """Tensors and arrays."""

    @pytest.mark.parametrize("dtype", sorted(wire.DTYPES))
    @pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 4)])
    def test_tensors_of_every_dtype_come_back_bit_by_bit(self, dtype: str, shape: tuple[int, ...]) -> None:
        """Each dtype of the list, bfloat16 and float8 too, in no, one and more dimensions, empty or not."""
        size = math.prod(shape) * wire.DTYPES[dtype]
        raw = torch.tensor([index % (2 if dtype == "bool" else 251) for index in range(size)], dtype=torch.uint8)
        tensor = raw.view(getattr(torch, dtype)).reshape(shape)
        back = cross([tensor], to_wire, from_wire)[0]
        assert type(back) is torch.Tensor
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(back.reshape(-1).view(torch.uint8), raw)

    @pytest.mark.parametrize("dtype", sorted(set(wire.DTYPES) - {"bfloat16", "float8_e4m3fn", "float8_e5m2"}))
    @pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3)])
    def test_numpy_arrays_of_every_dtype_come_back(self, dtype: str, shape: tuple[int, ...]) -> None:
        """Arrays keep dtype and shape; an array without dimensions does not become a scalar."""
        array = numpy.arange(math.prod(shape)).reshape(shape).astype(dtype)
        back = cross([array], to_wire, from_wire)[0]
        assert type(back) is numpy.ndarray
        assert (back.dtype, back.shape, back.tolist()) == (array.dtype, array.shape, array.tolist())

    @pytest.mark.parametrize("scalar", [numpy.float32(1.5), numpy.int64(-3), numpy.bool_(True), numpy.float64("nan")])
    def test_numpy_scalars_stay_scalars(self, scalar: Any) -> None:
        """A numpy number neither becomes a Python number nor an array."""
        back = cross([scalar], to_wire, from_wire)[0]
        assert type(back) is type(scalar)
        assert back.tobytes() == scalar.tobytes()

    def test_values_do_not_depend_on_memory_layout(self) -> None:
        """Transposed, strided, expanded, negated and byte-swapped data arrive as the numbers that they stand for."""
        base = torch.arange(12.0).reshape(3, 4)
        tensors = [base.T, base[:, ::2], base[0].expand(5, 4), torch.complex(base, -base).conj().imag, base.flip(0)]
        for tensor in tensors:
            assert torch.equal(cross([tensor], to_wire, from_wire)[0], tensor)
        array = numpy.arange(12).reshape(3, 4)
        for made in [array.T, array[::-2, 1:], numpy.asfortranarray(array), array.astype(">i4"), array.astype(">f8")]:
            assert cross([made], to_wire, from_wire)[0].tolist() == made.tolist()
        assert cross([numpy.array(7, ">i2")[()]], to_wire, from_wire)[0] == 7

    def test_a_received_tensor_has_memory_of_its_own(self) -> None:
        """Writing to what arrived changes nothing at the sender."""
        tensor = torch.zeros(4, requires_grad=True)
        back = cross([tensor], to_wire, from_wire)[0]
        back += 1
        assert tensor.tolist() == [0, 0, 0, 0]
        assert not back.requires_grad

    def test_subclasses_and_impostors_are_no_arrays(self) -> None:
        """Only exact types count: no subclass, nothing that merely says that it is a tensor."""
        Sub = type("Sub", (torch.Tensor,), {})  # noqa: N806
        Scalar = type("Scalar", (numpy.float64,), {})  # noqa: N806
        meta = type("Meta", (type,), {"__eq__": lambda cls, other: True, "__hash__": lambda cls: 0})
        impostor = type("Impostor", (), {"__class__": property(lambda self: numpy.float64), "dtype": "int64"})
        tensors = [torch.zeros(2).as_subclass(Sub), meta("Agreeable", (), {})()]
        others = [
            numpy.zeros(2).view(numpy.matrix),
            numpy.zeros(1).view(numpy.ma.MaskedArray),
            Scalar(1),
            impostor(),
            [1],
            1.0,
        ]
        for value in [*tensors, *others]:
            assert arrays.to_array(value) is None

    @pytest.mark.parametrize(
        "value",
        [
            torch.zeros(2, dtype=torch.complex64),
            torch.eye(2).to_sparse(),
            torch.empty(2, device="meta"),
            numpy.array(["a"]),
            numpy.array([None]),
            numpy.zeros(2, "datetime64[s]"),
            torch.empty(0, 1 << 40),
            torch.zeros((1,) * 17),
        ],
        ids=str,
    )
    def test_other_arrays_are_refused_by_the_sender(self, value: Any) -> None:
        """What the receiver could not rebuild is a `WireError` that names what is wrong."""
        assert refused_by_sender(value, to_wire)

    def test_equal_tensors_in_one_message_stay_apart(self) -> None:
        """Each tensor of a message has its own buffer."""
        message = [torch.full((2,), number) for number in range(200)]
        assert [tensor[0].item() for tensor in cross(message, to_wire, from_wire)] == list(range(200))
        assert "300 tensors" in refused_by_sender([torch.zeros(1)] * 300, to_wire)

    @pytest.mark.parametrize(
        ("tree", "buffer"),
        [
            (["torch", "float32", [2], 0], bytes(4)),
            (["torch", "float32", [2], 1], bytes(8)),
            (["torch", "float32", [2], -1], bytes(8)),
            (["torch", "float32", [-2], 0], bytes(8)),
            (["torch", "float32", [True, 2], 0], bytes(8)),
            (["torch", "float32", ["2"], 0], bytes(8)),
            (["torch", "float32", [2.0], 0], bytes(8)),
            (["torch", "complex64", [1], 0], bytes(8)),
            (["torch", "Tensor", [1], 0], bytes(8)),
            (["os", "float32", [2], 0], bytes(8)),
            (["torch", "float32", [0, 1 << 40], 0], b""),
            (["torch", "float32", [1 << 30, 1 << 30, 1 << 30, 1 << 30, 0], 0], b""),
            (["numpy", "float32", [1 << 30, 1 << 30, 1 << 30, 1 << 30, 0], 0], b""),
            (["torch", "float32", [1] * 17, 0], bytes(4)),
            (["scalar", "float32", [2], 0], bytes(8)),
            (["numpy", "bfloat16", [2], 0], bytes(4)),
            (["torch", "bool", [2], 0], b"\1\2"),
            (["numpy", "bool", [2], 0], b"\xff\0"),
            (["torch", "float32", [2]], bytes(8)),
            (["torch", "float32", 2, 0], bytes(8)),
        ],
    )
    def test_a_malformed_tensor_is_a_wire_error(self, tree: list[Any], buffer: bytes) -> None:
        """Wrong sizes, kinds, dtypes and impossible shapes never reach the library that would build the tensor."""
        with pytest.raises(WireError):
            receive(pack([wire.LIST, [wire.ARRAY, *tree]], buffer), from_wire)

    @pytest.mark.parametrize("numbers", [[0, 0], [1, 0], [0, 2], [1]], ids=str)
    def test_each_buffer_belongs_to_one_tensor_in_order(self, numbers: list[int]) -> None:
        """No buffer is named twice or out of turn: a tensor costs bytes, so a frame holds few of them."""
        tensors = [[wire.ARRAY, "torch", "bool", [8], number] for number in numbers]
        with pytest.raises(WireError, match="malformed tensor"):
            receive(pack([wire.LIST, *tensors], bytes(8), bytes(8), bytes(8)), from_wire)

    def test_a_tensor_named_over_and_over_costs_no_time(self) -> None:
        """Sixteen megabytes that a hundred thousand tensors name, each of which would be searched for wrong bytes."""
        data = bytes(16 << 20)
        tensors = [[wire.ARRAY, "torch", "bool", [len(data)], 0]] * 100_000
        used = time.thread_time()
        with pytest.raises(WireError):
            receive(pack([wire.LIST, *tensors], data), keep, seconds=100)
        assert time.thread_time() - used < 20, "seconds of processor time; all of them would take half an hour"


class TestHostileBytes:
    """What a worker sends that does not follow the protocol."""

    @given(st.binary(max_size=200))
    @settings(max_examples=200)
    def test_random_bytes_end_in_a_line_error(self, data: bytes) -> None:
        """Noise is never a message and never another exception."""
        with pytest.raises(LINE_ERRORS):
            receive(data, from_wire)

    @given(st.binary(max_size=100))
    @settings(max_examples=200)
    def test_random_bodies_end_in_a_line_error_or_a_list(self, body: bytes) -> None:
        """A frame with a right head and noise in it gives a list of values or a `WireError`."""
        with contextlib.suppress(WireError):
            assert type(receive(frame(body), from_wire)) is list

    @given(st.recursive(scalars.filter(lambda v: type(v) is not int or abs(v) < 1 << 60), st.lists, max_leaves=20))
    @settings(max_examples=200)
    def test_random_trees_end_in_a_line_error_or_a_list(self, tree: Any) -> None:
        """Trees without our tags, or with wrong ones, are no messages."""
        with contextlib.suppress(WireError):
            assert type(receive(pack(tree), from_wire)) is list

    @given(trees.map(lambda parts: [wire.LIST, *parts]))
    @settings(max_examples=200)
    def test_what_is_received_can_be_sent(self, tree: Any) -> None:
        """Trees of our tags with anything in them end in a `WireError`, or in values that cross back as they are."""
        try:
            message = receive(pack(tree))
        except WireError:
            return
        assert same(cross(message, decode=keep), [swapped(value) for value in message])

    @given(st.data())
    @settings(max_examples=200)
    def test_every_truncation_is_a_closed_line(self, data: st.DataObject) -> None:
        """A message that breaks off anywhere is reported as such."""
        whole = pack([wire.LIST, 1, [wire.ARRAY, "torch", "uint8", [3], 0]], b"abc")
        cut = data.draw(st.integers(0, len(whole) - 1))
        with pytest.raises(WireClosed):
            receive(whole[:cut], from_wire)

    @given(st.data())
    @settings(max_examples=200)
    def test_a_flipped_bit_ends_in_a_line_error_or_a_list(self, data: st.DataObject) -> None:
        """Damage anywhere in a frame surfaces as an error of the line, if at all."""
        tree = [wire.LIST, [wire.DICT, "k", [wire.TUPLE, 1, 2.0]], [wire.ARRAY, "torch", "int16", [2], 0]]
        damaged = bytearray(pack(tree, b"abcd"))
        position = data.draw(st.integers(0, len(damaged) * 8 - 1))
        damaged[position // 8] ^= 1 << position % 8
        with contextlib.suppress(*LINE_ERRORS):
            assert type(receive(bytes(damaged), from_wire)) is list

    @pytest.mark.parametrize(
        "tree",
        [
            5,
            [],
            ["x"],
            [True, 1],
            [99, 1],
            [wire.TUPLE, 1],
            [wire.LIST, [wire.DICT, 1]],
            [wire.LIST, [wire.DICT, 1, 2, 1, 3]],
            [wire.LIST, [wire.DICT, [wire.LIST], 3]],
            [wire.LIST, [wire.INT, "zz"]],
            [wire.LIST, [wire.INT, "f" * 5000]],
            [wire.LIST, [wire.INT, "f" * wire.MAX_HEX]],
            [wire.LIST, [wire.INT, 5]],
            [wire.LIST, [wire.BYTES, "\u20ac"]],
            [wire.LIST, [wire.BYTES]],
            [wire.LIST, [wire.REF, 1, 2, "x", True]],
            [wire.LIST, [wire.REF, True, 2, "x"]],
            [wire.LIST, {"a": 1}],
            [wire.LIST, b"bytes have a tag"],
            [wire.LIST, msgspec.msgpack.Ext(1, b"x")],
        ],
        ids=str,
    )
    def test_a_tree_outside_the_closed_list_is_a_wire_error(self, tree: Any) -> None:
        """Maps, extensions, unknown tags, doubled keys and the like are refused."""
        with pytest.raises(WireError):
            receive(pack(tree))

    @pytest.mark.parametrize(
        "head",
        [
            struct.pack("!IH", 0xFFFFFFFF, 0),
            struct.pack("!IH", 1, 0xFFFF),
            struct.pack("!IHQ", 1, 1, 1 << 63),
            struct.pack("!IHQQ", 1, 2, 1 << 30, 1 << 30),
        ],
    )
    def test_oversized_lengths_are_refused_unread(self, head: bytes) -> None:
        """A head that promises too much is refused at once, though the rest never comes."""
        began = time.monotonic()
        with pytest.raises(WireError, match="at most"):
            receive(head, close=False)
        assert time.monotonic() - began < 2

    @pytest.mark.parametrize("chunk", [1, 7])
    def test_a_slow_drip_meets_the_deadline(self, chunk: int) -> None:
        """Bytes that keep coming do not extend the time that a message has."""
        ours, theirs = socket.socketpair()
        stop = threading.Event()

        def drip() -> None:
            data = frame(b"\xc0" * 1000)
            for position in itertools.count(0, chunk):
                if stop.wait(0.02):
                    return
                ours.sendall(data[position : position + chunk])

        dripper = threading.Thread(target=drip)
        dripper.start()
        began = time.monotonic()
        try:
            with pytest.raises(TimeoutError):
                Wire(theirs).receive(keep, Deadline(0.3))
        finally:
            stop.set()
            dripper.join()
            ours.close()
            theirs.close()
        assert 0.25 < time.monotonic() - began < 2

    def test_a_peer_that_never_reads_meets_the_deadline(self) -> None:
        """Sending to a worker that does not listen ends, too."""
        ours, theirs = socket.socketpair()
        with ours, theirs, pytest.raises(TimeoutError):
            Wire(ours).send([Array("numpy", "uint8", (1 << 24,), bytes(1 << 24))], refuse, Deadline(0.2))

    def test_an_expired_deadline_is_a_timeout_at_once(self) -> None:
        """No time left means no reading at all."""
        ours, theirs = socket.socketpair()
        deadline = Deadline(0.001)
        time.sleep(0.01)
        with ours, theirs, pytest.raises(TimeoutError):
            Wire(ours).receive(keep, deadline)

    def test_a_line_closed_at_our_own_end_is_a_closed_line(self) -> None:
        """A socket that was closed while nobody looked is no other error than one closed by the peer."""
        ours, theirs = socket.socketpair()
        ours.close()
        theirs.close()
        with pytest.raises(WireClosed):
            Wire(ours).receive(keep, Deadline(1))
        with pytest.raises(WireClosed):
            Wire(ours).send([1], refuse, Deadline(1))

    def test_keys_that_all_hash_alike_meet_the_deadline(self) -> None:
        """-1 and -2 have one hash, so tuples of them make a dict quadratic; the deadline holds while it is built."""
        pairs: Iterator[Any] = itertools.product([-1, -2], repeat=15)
        keys = [part for pair in pairs for part in ([wire.TUPLE, *pair], None)]
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            receive(pack([wire.LIST, [wire.DICT, *keys]]), seconds=1)
        assert time.monotonic() - began < 3

    def test_maps_are_refused_before_they_are_built(self) -> None:
        """The same attack in msgpack's own maps, which the library builds without looking at a clock, gets nowhere."""
        keys = b"".join(b"\x9d" + bytes(key) + b"\xc0" for key in itertools.product((0xFF, 0xFE), repeat=13))
        body = b"\x92\x00\xdf" + struct.pack("!I", 1 << 13) + keys
        began = time.monotonic()
        with pytest.raises(WireError):
            receive(frame(body))
        assert time.monotonic() - began < 0.5


BOMBS = """
import resource, socket, struct, sys, threading
from autograder.worker.wire import Deadline, Wire, WireClosed, WireError, MAX_MESSAGE

def bomb(data):
    ours, theirs = socket.socketpair()
    def feed():
        try:
            ours.sendall(data)
        except OSError:
            pass
        ours.close()
    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        Wire(theirs).receive(lambda item: item, Deadline(20))
        print("accepted")
    except (WireError, WireClosed):
        pass
    theirs.close()
    feeder.join()

def frame(body):
    return struct.pack("!IH", len(body), 0) + body

def array32(count):
    return b"\\xdd" + struct.pack("!I", count)

rest = MAX_MESSAGE - 16
bomb(frame(b"\\x91" * 1_000_000 + b"\\xc0"))             # a million lists in each other
bomb(frame(b"\\x81\\xc0" * 1_000_000 + b"\\xc0"))         # a million maps in each other
bomb(frame(array32(rest) + b"\\x90" * rest))             # four million empty lists
bomb(frame(array32(1 << 31)))                            # two thousand million items that never come
bomb(frame(b"\\xdb" + struct.pack("!I", 1 << 31)))        # a text of 2 GiB that never comes
bomb(frame(b"\\x92\\x00" + array32(rest) + b"\\xcb" * rest)) # numbers, cut short
bomb(struct.pack("!IHQ", 1, 1, 1 << 30) + b"\\xc0")       # a tensor of 1 GiB that never comes
bomb(frame(b"\\x92\\x00\\x92\\x06\\xdb" + struct.pack("!I", 1000) + "\\u20ac".encode() * 400))
if sys.platform == "linux":  # not ru_maxrss: a child inherits the peak of the process that it was forked from
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print(int(status["VmHWM"].split()[0]) // 1024)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="getrusage")
def test_bombs_cost_bounded_memory_and_stack() -> None:
    """A million nested lists, promised gigabytes and millions of values neither crash the reader nor fill memory."""
    done = subprocess.run([sys.executable, "-c", BOMBS], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 700, "MiB; a message of 4 MiB is allowed about 80 times its size, once"
