"""Counted work: FLOPs, forwards, and bytes of caches and weights, the same on every machine and in every run.

What `count_flops` cannot see, and how one evades it:
    a library of its own    numpy, numba, ctypes, C++ extensions: no operator of torch runs, nothing is counted
    an operator without a formula
                            custom operators (Triton, bitsandbytes, xformers), fused recurrent layers, products spelt as
                            multiply-and-sum: zero FLOPs, but named in `uncounted` with the elements that they wrote
    compiled code           what torch.compile fused is one opaque call: count in eager mode
    another process         only this thread's operators are counted
So a limit on FLOPs needs a second one on `uncounted`, and on time where numpy is at hand.

`count_forwards` sees calls of the module that it is given. `model.forward(...)` and calls of its parts pass it by: hand
out a model whose parts were counted too, or compare with the FLOPs.

Not covered: what the work costs (`gpu_env.roofline`), backward passes.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpu_env.memory import tensor_bytes

if TYPE_CHECKING:
    import torch


@dataclass
class Flops:
    """What ran inside `count_flops`; complete when its block ends. A multiply and an add are two FLOPs.

    `by_operator` holds the FLOPs of every operator with a formula, such as {"aten.mm": 4096}; `uncounted` the elements
    that every other operator wrote, views left out, such as {"aten.softmax": 512}.
    """

    by_operator: dict[str, int] = field(default_factory=dict)
    uncounted: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All FLOPs counted."""
        return sum(self.by_operator.values())

    @property
    def foreign(self) -> dict[str, int]:
        """Those of `uncounted` that are not torch's own operators."""
        return {name: elements for name, elements in self.uncounted.items() if not name.startswith(("aten.", "prim"))}


@contextlib.contextmanager
def count_flops() -> Iterator[Flops]:
    """Count the FLOPs of torch's operators in this thread: `with count_flops() as flops: model(ids)`, then `flops.total`.

    Counted by `torch.utils.flop_counter.FlopCounterMode`, with formulas added for what it leaves out: attention on the
    CPU and with grouped heads, products of vectors, int8 products. As there, causal attention counts as full attention.
    """
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    wrote: Counter[str] = Counter()
    formulas = _formulas()

    class Rest(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Entered first, so it sees what FlopCounterMode executes after decomposing it."""

        supports_higher_order_operators = True

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            packet = getattr(func, "_overloadpacket", func)
            if packet not in counter.flop_registry and not getattr(func, "is_view", False):
                wrote[_name(packet)] += _elements(out)
            return out

    flops = Flops()
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    try:
        with Rest(), counter:  # type: ignore[no-untyped-call]
            yield flops
    finally:
        flops.by_operator = {
            _name(packet): count for packet, count in counter.get_flop_counts().get("Global", {}).items()
        }
        flops.uncounted = {name: elements for name, elements in wrote.items() if elements}


def _name(packet: Any) -> str:
    return str(packet).replace("::", ".")


def _elements(out: Any) -> int:
    import torch

    if isinstance(out, torch.Tensor):
        return out.numel()
    return sum(map(_elements, out)) if isinstance(out, list | tuple) else 0


def _formulas() -> dict[Any, Callable[..., int]]:
    """FLOPs from the shapes of an operator's arguments, where torch has no formula, or fails for grouped heads (2.11)."""
    import torch

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        """(batch, heads, queries, d), (batch, KV heads, keys, d), (batch, KV heads, keys, d_value)."""
        batch, heads, queries, width = query
        return int(2 * batch * heads * queries * key[2] * (width + value[3]))

    def product(a: Any, b: Any, *_: Any, **__: Any) -> int:
        """(..., m, k) times (k) or (k, n), and (k) times (k)."""
        outputs = 1
        for size in (*a[:-1], *b[1:]):
            outputs *= size
        return 2 * outputs * int(a[-1])

    def added_product(_: Any, a: Any, b: Any, *__: Any, **___: Any) -> int:
        return product(a, b)

    aten = torch.ops.aten
    known: dict[str, Callable[..., int]] = {
        "_scaled_dot_product_flash_attention_for_cpu": attention,
        "_scaled_dot_product_fused_attention_overrideable": attention,
        "_scaled_dot_product_flash_attention": attention,
        "_scaled_dot_product_efficient_attention": attention,
        "_scaled_dot_product_cudnn_attention": attention,
        "mv": product,
        "dot": product,
        "vdot": product,
        "_int_mm": product,
        "addmv": added_product,
    }
    return {getattr(aten, name): formula for name, formula in known.items() if hasattr(aten, name)}


@dataclass(frozen=True)
class Forward:
    """One call of a module: `rows` sequences of `width` tokens each, after `cached` tokens that a cache held already."""

    rows: int
    width: int
    cached: int


@dataclass
class Forwards:
    """The calls of a module so far, in their order."""

    each: list[Forward] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """How many there were."""
        return len(self.each)

    @property
    def tokens(self) -> list[int]:
        """The input width of each call: (prompt, 1, 1, ...) with a cache, (prompt, prompt + 1, ...) without."""
        return [one.width for one in self.each]

    @property
    def positions(self) -> int:
        """Token positions computed in all calls and rows: grows as n with a cache and as n² without."""
        return sum(one.rows * one.width for one in self.each)


@contextlib.contextmanager
def count_forwards(module: torch.nn.Module) -> Iterator[Forwards]:
    """Record every call of a module: `with count_forwards(model) as forwards: generate(model)`, then `forwards.calls`.

    The first tensor among the arguments gives the shape: (rows, width, ...), or (width) for one row. A tensor of
    transformers' `past_key_values` is asked how many tokens it holds.

    Raises:
        TypeError: (from the call) the module was called without a tensor of at least one dimension.
    """
    forwards = Forwards()

    def record(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shape = _shape(
            [*args, *(kwargs[name] for name in ("input_ids", "inputs_embeds") if name in kwargs), *kwargs.values()]
        )
        rows, width = (shape[0], shape[1]) if len(shape) > 1 else (1, shape[0])
        cache = kwargs.get("past_key_values")
        forwards.each.append(Forward(rows, width, 0 if cache is None else int(cache.get_seq_length())))

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield forwards
    finally:
        handle.remove()


def _shape(arguments: list[Any]) -> tuple[int, ...]:
    import torch

    for one in arguments:
        if isinstance(one, torch.Tensor) and one.dim():
            return tuple(one.shape)
    raise TypeError(
        "count_forwards counts tokens of a tensor, and this call passed none: call the module with input_ids"
    )


def kv_cache_bytes(cache: Any) -> int:
    """Bytes that a transformers `Cache` of any kind keeps alive: dynamic, sliding, static, quantised, encoder-decoder.

    That is what its layers hold, not what attention reads: a static cache counts its empty room, a sliding one counts
    the whole prompt as long as its window is a slice of it, a quantised one its scales and zero points. Scalars in which
    layers keep their length are left out, so that a dynamic cache of n tokens has exactly n times the bytes of one.

    Raises:
        TypeError: the object has no layers, so it is no `Cache`.
    """
    import torch

    parts = [getattr(cache, name) for name in ("self_attention_cache", "cross_attention_cache") if hasattr(cache, name)]
    if not parts and not hasattr(cache, "layers"):
        raise TypeError(
            f"{type(cache).__name__} is no transformers Cache: it has no layers. For other objects: tensor_bytes"
        )
    states = (state for part in parts or [cache] for layer in part.layers for state in vars(layer).values())
    return tensor_bytes([state for state in states if not (isinstance(state, torch.Tensor) and state.dim() == 0)])


def weight_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's weights and buffers as they lie in memory, quantisation state included, each byte once."""
    return tensor_bytes(module)
