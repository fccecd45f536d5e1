# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quantised inference: fewer bytes per weight, and what they cost
#
# A model that writes one token at a time reads all of its weights for each token. Fewer bytes per weight mean that a
# larger model fits into the same memory. **Quantisation** stores each weight as a small whole number (a *code*) and
# keeps, for each group of weights, one floating-point number (the *scale*) that turns codes back into weights. In this
# assignment you
#
# 1. quantise to 8 bits around zero (`absmax_int8`) and
# 2. over any range (`zeropoint_uint8`),
# 3. to 4 bits in groups, and put two codes into a byte (`groupwise_int4`),
# 4. to NF4, the 4-bit levels of QLoRA and bitsandbytes (`quantize_nf4`),
# 5. and quantise the scales too (`double_quantize`);
# 6. multiply in 8 bits although a few activations are huge (`llm_int8_matmul`),
# 7. build a layer that holds codes only, and put it into a real model (`WeightOnlyLinear`),
# 8. serve that model: answer requests, and report its memory and its tokens per second (`generate`),
# 9. measure what the model has lost (`perplexity`),
# 10. and compute what a model of any size would gain (`quantized_bytes`).
#
# Tasks 1, 2, 6, 8 and 9 take about 25 minutes each, 3 and 4 about 35, 5 and 10 about 20, and 7 about 50. No GPU is
# needed.
# You should know Python and PyTorch tensors, and what a linear layer does: `y = x @ weight.T + bias`, with a `weight`
# of shape `[out_features, in_features]`.
#
# | term | means |
# |---|---|
# | quantise, dequantise | from numbers to codes and scales; from codes and scales back to numbers (not quite the same) |
# | code | the whole number that is stored for a weight, in 8 or 4 bits |
# | scale | what one step of the code is worth; kept in fp32 (4 bytes) here |
# | zero point | the code that stands for the number 0 |
# | absmax | the largest absolute value of a group of numbers |
# | symmetric | the zero point is in the middle, so only a scale is needed |
# | group, block | the numbers that share one scale: within a row (task 3), or in reading order (tasks 4 and 5) |
# | fp32, fp16, bf16 | floating-point numbers of 4, 2 and 2 bytes |
# | MB, MiB | $10^6$ bytes, $2^{20}$ bytes. Functions here give plain bytes |
#
# **How it is graded.** Only the cells of the ten tasks and the one cell of imports and helpers count. The next cell is
# replaced by the original when grading; all others are yours. The cell `check(...)` after each task runs its public
# checks. Hidden checks look at the same rules on other inputs: everything they ask for is written here. Only tasks 7
# and 8 need other ones: task 7 uses your `absmax_int8`, `quantize_nf4` and `dequantize_nf4`; one check of task
# 8 serves SmolLM2 with your `quantize_model`. Elsewhere you may call what you wrote before (`pack_int4` in task 4, say);
# it is yours, so its mistakes cost points there too. Use tensor operations: one call of your code may take 30 s, and some
# hidden calls work on millions of numbers, for which a loop over single numbers is too slow. (A loop over rows or blocks
# is fast enough.)
#
# **Rules for all tasks.** Codes are rounded to the nearest whole number; exactly between two, to the even one, as
# `torch.round` does (it never just cuts off: that would shift all weights towards zero). Compute in fp32, whatever the
# input's type is. Inputs are never changed. A tensor that must hold numbers and is no floating-point tensor is a
# `TypeError`; an empty one, or one with NaN or infinity in it, a `ValueError`. A count that is no `int`, or a `bool`,
# is a `TypeError`; a count outside its range a `ValueError`. The text of the error contains the argument's name.
# `check_floats` and `check_count`, below, do this for you. What the `Raises` of a docstring does not name needs no check.
# Numbers to quantise are 0 or between $10^{-20}$ and $10^{20}$ in size: nothing overflows or vanishes in fp32.

# %% given="quantization_kit"
import contextlib
import copy
import ctypes
import functools
import gc
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

torch.set_num_threads(1)  # where other programs run, threads that wait for each other would cost most of the time


def check_floats(x: torch.Tensor, name: str) -> None:
    """Raise `TypeError` if `x` is no floating-point tensor, `ValueError` if empty or not finite; the text has `name`."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise TypeError(
            f"{name} must be a tensor of floating-point numbers, not {getattr(x, 'dtype', type(x).__name__)}"
        )
    if x.numel() == 0:
        raise ValueError(f"{name} is empty")
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} holds NaN or infinity, for which there is no code")


def check_count(value: int, name: str, minimum: int = 0) -> None:
    """Raise `TypeError` if `value` is no int (a bool is none), `ValueError` if below `minimum`; the text has `name`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r} of type {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {value}")


def dynamic_map() -> torch.Tensor:
    """The 256 levels that bitsandbytes quantises scales to: fp32, ascending, from -0.993 to 1, fine near 0.

    Seven decades; the highest, from 0.1 to 1, has 64 levels of each sign, the one below 32, and so on down to one.
    """
    levels = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32)
        centres = 10.0 ** (decade - 6) * (edges[:-1] + edges[1:]) / 2
        levels += centres.tolist() + (-centres).tolist()
    return torch.tensor(sorted(levels), dtype=torch.float32)


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    """A linear layer with copies of `weight` [out_features, in_features] and `bias` [out_features], of their dtype."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return layer


def make_llama(config: dict, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """A small Llama in fp32, of the sizes in `config` and with the weights in `tensors`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    model.load_state_dict(tensors)
    return model


@functools.cache
def read_model(path: str) -> nn.Module:
    """The language model in the folder `path`, in fp32, read only once."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def load_model(path: str) -> nn.Module:
    """A model of its own, whose layers can be replaced; its tensors are shared by all that this gives for `path`."""
    model = read_model(path)
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers of a module, by their full names."""
    return dict(module.state_dict())


def load_tensors(module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Put other values into a module's parameters and buffers."""
    module.load_state_dict(tensors)


def give_memory_back() -> None:
    """Let go of what nobody uses, and have malloc return what it keeps for later (where it can: glibc)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def take_apart(model: nn.Module) -> None:
    """Take everything out of a model that is not needed any more."""
    model._modules.clear()
    give_memory_back()


def quantized_layers(weight: torch.Tensor, scheme: str, count: int) -> nn.ModuleList:
    """`count` layers of yours, each made of a layer with a copy of `weight` that is gone afterwards."""
    return nn.ModuleList(WeightOnlyLinear(make_linear(weight), scheme) for _ in range(count))


@torch.inference_mode()
def outputs_of(layers: nn.ModuleList, x: torch.Tensor) -> list[torch.Tensor]:
    """What each of the layers makes of `x`."""
    return [layer(x) for layer in layers]


@torch.inference_mode()
def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """What `model` says about the token after each of `ids`: [1, tokens] to [1, tokens, vocabulary]."""
    return model(input_ids=ids, use_cache=False).logits


def stepper(model: nn.Module) -> Callable[[torch.Tensor, Any], tuple[torch.Tensor, Any]]:
    """One run of a language model as a function `step(ids, cache)`.

    `ids`, int64 [1, n], are the next tokens of a text, and `cache` stands for all tokens before them (`None`: there are
    none). Gives the logits [vocabulary] of the token that follows, and a cache that stands for all tokens so far.
    """

    @torch.inference_mode()
    def step(ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        return out.logits[0, -1], out.past_key_values

    return step


# %% helpers="helpers"
# Your imports and helpers. Everything that several tasks share goes here; this cell is graded together with them.

# %% [markdown]
# ## Task 1: 8 bits around zero (about 25 minutes)
#
# The largest absolute value of a row gets the code 127, zero gets 0, everything else lies between:
#
# $$\text{scale} = \frac{\max_i |x_i|}{127}, \qquad \text{code}_i = \text{round}(x_i / \text{scale}), \qquad
# x_i \approx \text{code}_i \cdot \text{scale}.$$
#
# int8 could hold -128 too, but then the range would not be symmetric: codes go from -127 to 127. The error of one
# number is at most half a scale.
#
# `dim` says along which dimension the maximum is taken: `dim=1` gives each row of a matrix a scale of its own,
# `dim=0` each column, and `dim=None` the whole tensor a single one. The scale keeps the dimensions of `x`, with size 1
# where the maximum was taken, so that `codes * scale` is the dequantised tensor. A row of zeros has absmax 0: give it
# scale 1 (anything divided by 0 would be NaN) and codes 0.
#
# *Example.* `x = [[0.5, -2.54, 1.0], [0, 0, 0]]` with `dim=1`: scales `[[0.02], [1.0]]`, codes
# `[[25, -127, 50], [0, 0, 0]]`. With `dim=0` the scales are `[[0.5/127, 0.02, 1/127]]`, and the codes
# `[[127, -127, 127], [0, 0, 0]]`.
#
# *Example of rounding.* `x = [127, 0.5, 1.5, 2.5, -0.5, -1.5]` with `dim=0`: the scale is exactly 1, the codes are
# `[127, 0, 2, 2, 0, -2]`.
#
# *Common mistakes:* one scale for the whole matrix where each row should have one: a single large weight then costs
# all other rows their precision. `.to(torch.int8)` without rounding, which cuts off. Computing in fp16, where 127/absmax
# may be infinite.


# %% task="absmax_int8"
def absmax_int8(x: torch.Tensor, dim: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise to int8 codes from -127 to 127 with one scale per slice.

    Args:
        x: floating-point numbers of any shape (at least one dimension).
        dim: the dimension along which a maximum is taken, from `-x.ndim` to `x.ndim - 1`; `None`: over all of `x`.

    Returns:
        The codes (int8, the shape of `x`) and the scales (fp32, the shape of `x` with size 1 in `dim`, or in all
        dimensions). Where all numbers of a slice are 0: scale 1, codes 0.

    Raises:
        TypeError, ValueError: `x` is no floating-point tensor, is empty or not finite. The text names `x`.
    """
    ### BEGIN SOLUTION
    check_floats(x, "x")
    x = x.float()
    absmax = x.abs().amax(dim=tuple(range(x.ndim)) if dim is None else dim, keepdim=True)
    scale = torch.where(absmax == 0, 1.0, absmax / 127)
    return torch.round(x / scale).clamp(-127, 127).to(torch.int8), scale
    ### END SOLUTION


# %% [markdown]
# What a single outlier does, with one scale for all and with one scale per row:

# %%
weights = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
weights[2, 17] = 40.0
for dim in (None, 1):
    codes, scale = absmax_int8(weights, dim)
    error = (codes * scale - weights).norm(dim=1) / weights.norm(dim=1)
    print(f"dim={dim}: relative error of the four rows", [f"{value:.4f}" for value in error.tolist()])

# %% [markdown]
# ## Task 2: 8 bits over any range (about 25 minutes)
#
# Outputs of a ReLU are never negative: around zero, half of the codes would be wasted. With a **zero point** the codes
# 0 to 255 are spread over the range that is really used:
#
# $$\text{lo} = \min(0, \min_i x_i), \quad \text{hi} = \max(0, \max_i x_i), \quad
# \text{scale} = \frac{\text{hi} - \text{lo}}{255}, \quad \text{zero point} = \text{round}(-\text{lo} / \text{scale}),$$
#
# $$\text{code}_i = \text{round}(x_i / \text{scale}) + \text{zero point, cut to } 0 \dots 255, \qquad
# x_i \approx (\text{code}_i - \text{zero point}) \cdot \text{scale}.$$
#
# The range **always contains 0**, even if all numbers are positive. So the number 0 has a code of its own and comes
# back exactly: padding and the outputs of ReLU stay 0.
#
# *Examples.* `[-1.0, 0.0, 1.55]`: scale 0.01, zero point 100, codes `[0, 100, 255]`. `[1.0, 2.0, 5.1]`: lo is 0, not 1;
# scale 0.02, zero point 0, codes `[50, 100, 255]`. `[-5.1, -1.0]`: hi is 0; scale 0.02, zero point 255, codes
# `[0, 205]`. Only zeros: scale 1.0, zero point 0, codes 0.
#
# *Common mistakes:* a range from min to max without 0; a zero point that is not rounded; codes below 0 or above 255
# that wrap around in uint8 (256 becomes 0).


# %% task="zeropoint_uint8"
def zeropoint_uint8(x: torch.Tensor) -> tuple[torch.Tensor, float, int]:
    """Quantise to uint8 codes from 0 to 255 over the range of `x` and 0.

    Returns:
        The codes (uint8, the shape of `x`), the scale (a Python float above 0) and the zero point (a Python int,
        0 to 255). Where all numbers are 0: codes 0, scale 1.0, zero point 0.

    Raises:
        TypeError, ValueError: `x` is no floating-point tensor, is empty or not finite. The text names `x`.
    """
    ### BEGIN SOLUTION
    check_floats(x, "x")
    x = x.float()
    low, high = min(0.0, x.min().item()), max(0.0, x.max().item())
    if low == high:
        return torch.zeros(x.shape, dtype=torch.uint8), 1.0, 0
    scale = (high - low) / 255
    zero_point = round(-low / scale)
    return (torch.round(x / scale) + zero_point).clamp(0, 255).to(torch.uint8), scale, zero_point
    ### END SOLUTION


# %%
activations = torch.randn(10_000, generator=torch.Generator().manual_seed(0)).relu()
codes, scale, zero_point = zeropoint_uint8(activations)
print(
    "codes in use with a zero point:",
    codes.unique().numel(),
    "and around zero:",
    absmax_int8(activations, 0)[0].unique().numel(),
)

# %% [markdown]
# ## Task 3: 4 bits in groups, two in a byte (about 35 minutes)
#
# Four bits give 16 codes. That is so few that a whole row cannot share one scale: each row is cut into **groups** of
# `group_size` neighbours, each with a scale and a zero point. A group never crosses rows. Codes are 0 to 15, and in both
# kinds $w_i \approx (\text{code}_i - \text{zero}) \cdot \text{scale}$:
#
# - **symmetric**: the zero point is 8 for all groups. $\text{scale} = \max|w_i|/7$,
#   $\text{code}_i = \text{round}(w_i/\text{scale}) + 8$. This uses the codes 1 to 15 (that is -7 to 7), never 0.
# - **asymmetric**: as in task 2 with 15 in place of 255, for each group: the range contains 0,
#   $\text{scale} = (\text{hi} - \text{lo})/15$, $\text{zero} = \text{round}(-\text{lo}/\text{scale})$,
#   $\text{code}_i = \text{round}(w_i/\text{scale}) + \text{zero}$, cut to 0 … 15.
#
# A group of zeros has scale 1 in both kinds; its zero point and codes are 8 if symmetric, 0 if asymmetric.
#
# Memory is addressed in bytes, not in halves of them, so **two codes share a byte: the first in the high four bits**, as
# in bitsandbytes. `pack_int4` puts them together along the last dimension, `unpack_int4` takes them apart.
#
# *Examples.* Symmetric, `[0.8, -1.4, 0.16, 0.32]` as one group: scale 0.2, codes `[12, 1, 9, 10]`; packed
# `[0xC1, 0x9A]` = `[193, 154]`. Asymmetric, `[-0.5, 1.0, 0.22, 0.0]`: scale 0.1, zero 5, codes `[0, 15, 7, 5]`.
#
# *Common mistakes:* groups across rows (`w.reshape(-1, group_size)` is right only if the group size divides a row);
# the low bits first; shifting an int8 that is negative; a scale of $\max|w|/8$ with a code of 16 for the maximum.


# %% task="groupwise_int4"
def groupwise_int4(
    w: torch.Tensor, group_size: int, symmetric: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantise a matrix to codes from 0 to 15, in groups of `group_size` neighbours of a row.

    Args:
        w: floating-point numbers of shape [rows, cols].
        group_size: numbers per group, at least 1; divides `cols`.

    Returns:
        Codes (uint8, [rows, cols]), scales (fp32, [rows, cols / group_size]) and zero points (uint8, the same shape).

    Raises:
        TypeError, ValueError: `w` is no floating-point tensor, is empty, not finite, or has not two dimensions (a
            ValueError). The text names `w`.
        TypeError, ValueError: `group_size` is no int, is below 1, or does not divide `cols`. The text names
            `group_size`.
    """
    ### BEGIN SOLUTION
    check_floats(w, "w")
    check_count(group_size, "group_size", 1)
    if w.ndim != 2:
        raise ValueError(f"w must have two dimensions, not {w.ndim}")
    rows, cols = w.shape
    if cols % group_size:
        raise ValueError(f"group_size={group_size} does not divide a row of {cols}")
    groups = w.float().reshape(rows, cols // group_size, group_size)
    if symmetric:
        span = groups.abs().amax(2) / 7
    else:
        low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
        span = (high - low) / 15
    scale = torch.where(span == 0, 1.0, span)
    zero = torch.full_like(scale, 8) if symmetric else torch.round(-low / scale)
    codes = (torch.round(groups / scale[:, :, None]) + zero[:, :, None]).clamp(1 if symmetric else 0, 15)
    return codes.to(torch.uint8).reshape(rows, cols), scale, zero.to(torch.uint8)
    ### END SOLUTION


def dequantize_int4(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """The numbers (fp32, [rows, cols]) that codes, scales and zero points of `groupwise_int4` stand for."""
    ### BEGIN SOLUTION
    group_size = codes.shape[1] // scale.shape[1]
    zero, scale = zero.repeat_interleave(group_size, dim=1), scale.repeat_interleave(group_size, dim=1)
    return (codes.float() - zero.float()) * scale
    ### END SOLUTION


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    """Two codes per byte: uint8 [..., n] to uint8 [..., n / 2], n at least 1, the first of a pair in the high four bits.

    Raises:
        ValueError: n is odd, or a code is above 15. The text names `codes`.
    """
    ### BEGIN SOLUTION
    if codes.shape[-1] % 2 or (codes > 15).any():
        raise ValueError("codes must be an even number of values from 0 to 15")
    return codes[..., ::2] << 4 | codes[..., 1::2]
    ### END SOLUTION


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_int4`: uint8 [..., n] to codes, uint8 [..., 2 n]."""
    ### BEGIN SOLUTION
    return torch.stack([packed >> 4, packed & 15], dim=-1).flatten(-2)
    ### END SOLUTION


# %% [markdown]
# Smaller groups follow the weights more closely, and cost more scales. Bits per weight are counted with 4-byte scales:

# %%
import matplotlib.pyplot as plt

weights = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))
fig, ax = plt.subplots(figsize=(6, 3))
for symmetric in (True, False):
    points = []
    for size in (16, 32, 64, 128, 256, 1024, 4096):
        back = dequantize_int4(*groupwise_int4(weights, size, symmetric))
        bits = 4 + (32 if symmetric else 40) / size
        points.append((bits, float((back - weights).norm() / weights.norm())))
    ax.plot(*zip(*points, strict=True), "o-", label="symmetric" if symmetric else "asymmetric")
ax.set(
    xlabel="bits per weight, scales and zero points included",
    ylabel="relative error",
    title="int4 in groups of 16 to 4,096",
)
ax.legend()
plt.show()

# %% [markdown]
# ## Task 4: NF4 (about 35 minutes)
#
# Weights of a trained layer are spread roughly like a normal distribution: many near 0, few far out. Evenly spaced
# codes waste levels on the tails. NF4 ("normal float", from the QLoRA paper, Dettmers et al. 2023) takes 16 levels at
# equally spaced *probabilities* of that distribution, so that each is used about equally often. Let $\Phi^{-1}$ be the
# quantile function of the normal distribution (`torch.special.ndtri`, or `statistics.NormalDist().inv_cdf`) and
# $o = 0.9677083$:
#
# - 8 positive levels: $\Phi^{-1}$ of 9 equally spaced probabilities from $o$ to 0.5, without the last (0.5),
# - 7 negative levels: minus $\Phi^{-1}$ of 8 equally spaced probabilities from $o$ to 0.5, without the last,
# - the level 0, exactly;
# - all sorted in ascending order and divided by the largest.
#
# So the first level is -1, the eighth (code 7) exactly 0, the last (code 15) 1. The others begin with
# -0.6961928, -0.5250731 and end with 0.5626170, 0.7229568.
#
# **Quantise.** The numbers of a tensor are taken in reading order (`w.reshape(-1)`), in **blocks** of `blocksize`; the
# last block may be shorter. A block may cross rows. Each block has its absmax as scale; each number divided by it gets
# the code of the nearest level, exactly between two levels the **lower code** (no rounding to even here). A block of
# zeros has absmax 0 and all codes 7. The codes are packed as in task 3; where their number is odd, a code 7 (the level
# 0) is added at the end to fill the last byte. Block sizes are those of bitsandbytes: 32, 64, 128, ... 4096.
#
# *Example.* `w = [2.0, -1.0, 0.1, 0.0]`, one short block: absmax 2, divided `[1, -0.5, 0.05, 0]`, codes `[15, 2, 8, 7]`,
# packed `[242, 135]`; dequantised `[2.0, -1.0501462, 0.1591606, 0.0]`.
#
# Your codes will be those of bitsandbytes bit for bit, except for numbers that lie within rounding of the middle
# between two levels. (Its table holds these levels rounded to fp32.)
#
# *Common mistakes:* a codebook without an exact 0; a table of all distances to 16 levels for a large tensor at once
# (16 times the memory: `torch.bucketize` with the middles between the levels needs none of it); losing the last block.


# %% task="quantize_nf4"
def nf4_codebook() -> torch.Tensor:
    """The 16 levels of NF4: fp32, shape [16], ascending from -1 to 1."""
    ### BEGIN SOLUTION
    above = torch.special.ndtri(torch.linspace(0.9677083, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(0.9677083, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([below, torch.zeros(1, dtype=torch.float64), above]).sort().values
    return (levels / levels.max()).float()
    ### END SOLUTION


def quantize_nf4(w: torch.Tensor, blocksize: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise to NF4.

    Args:
        w: floating-point numbers of any shape, n of them.
        blocksize: numbers per block: 32, 64, 128, 256, 512, 1024, 2048 or 4096.

    Returns:
        The packed codes (uint8, [ceil(n / 2)], the first code of a byte in the high four bits) and the absmax of each
        block (fp32, [ceil(n / blocksize)]).

    Raises:
        TypeError, ValueError: `w` is no floating-point tensor, is empty or not finite. The text names `w`.
        TypeError, ValueError: `blocksize` is no int, or none of those. The text names `blocksize`.
    """
    ### BEGIN SOLUTION
    check_floats(w, "w")
    check_count(blocksize, "blocksize", 32)
    if blocksize > 4096 or blocksize & (blocksize - 1):
        raise ValueError(f"blocksize must be a power of two from 32 to 4096, not {blocksize}")
    numbers = w.float().reshape(-1)
    count = len(numbers)
    blocks = nn.functional.pad(numbers, (0, -count % blocksize)).reshape(-1, blocksize)
    absmax = blocks.abs().amax(1)
    normed = (blocks / torch.where(absmax == 0, 1.0, absmax)[:, None]).reshape(-1)[:count]
    codebook = nf4_codebook()
    codes = torch.bucketize(normed, (codebook[1:] + codebook[:-1]) / 2, out_int32=True).to(torch.uint8)
    codes = nn.functional.pad(codes, (0, count % 2), value=7)
    return codes[::2] << 4 | codes[1::2], absmax
    ### END SOLUTION


def dequantize_nf4(
    packed: torch.Tensor, absmax: torch.Tensor, shape: tuple[int, ...], blocksize: int = 64
) -> torch.Tensor:
    """The numbers (fp32, of the given shape) that packed codes and absmax of `quantize_nf4` stand for."""
    ### BEGIN SOLUTION
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).reshape(-1)
    count = math.prod(shape)
    levels = nn.functional.pad(nf4_codebook()[codes[:count].int()], (0, -count % blocksize))
    return (levels.reshape(-1, blocksize) * absmax[:, None]).reshape(-1)[:count].reshape(tuple(shape))
    ### END SOLUTION


# %% [markdown]
# Weights and levels: where there are many weights, there are many levels. (With SmolLM2 on your machine, look at a real
# layer: `load_model(str(gpu_env.models.find("SmolLM2-135M-Instruct")))`.) The printed errors of NF4 and asymmetric int4
# are close to each other; but int4 stores a zero point for each group too.

# %%
weights = torch.randn(64 * 2000, generator=torch.Generator().manual_seed(0)).reshape(-1, 64)
normed = (weights / weights.abs().amax(1, keepdim=True)).reshape(-1)
fig, ax = plt.subplots(figsize=(6, 3))
ax.hist(normed.numpy(), bins=200, density=True, color="lightgray")
for level in nf4_codebook().tolist():
    ax.axvline(level, color="tab:blue", linewidth=1)
for level in range(-7, 8):
    ax.axvline(level / 7, ymax=0.1, color="tab:red", linewidth=1)
ax.set(
    xlabel="weight / absmax of its block", ylabel="density", title="Levels of NF4 (blue) and of symmetric int4 (red)"
)
plt.show()

matrix = weights.reshape(-1, 64)
nf4_error = (dequantize_nf4(*quantize_nf4(matrix), tuple(matrix.shape)) - matrix).norm() / matrix.norm()
for symmetric in (True, False):
    int4_error = (dequantize_int4(*groupwise_int4(matrix, 64, symmetric)) - matrix).norm() / matrix.norm()
    print(f"int4, symmetric={symmetric}: {int4_error:.4f}")
print(f"NF4: {nf4_error:.4f}, each of them relative to the weights, 64 in a block")

# %% [markdown]
# ## Task 5: quantise the scales too (about 20 minutes)
#
# One fp32 scale for 64 weights is half a bit per weight. **Double quantisation** stores the scales themselves in 8 bits:
#
# 1. `offset` = the mean of all `absmax`; it is subtracted, because absmax values are all positive and close together.
# 2. The differences are cut into blocks of 256 (the last may be shorter). The absmax of each block, `absmax2`, is kept
#    in fp32.
# 3. Each difference divided by its `absmax2` gets the number (0 to 255) of the nearest of the 256 levels of
#    `dynamic_map()`, which is in the first cell. A difference that is exactly between two may get either. Where
#    `absmax2` is 0, the code is that of the level 0: 127. (Equal scales are asked for only where their mean is exact.)
#
# Back: `dynamic_map()[code] * absmax2 + offset`. The cost falls from $4 + 32/64 = 4.5$ to
# $4 + 8/64 + 32/(64 \cdot 256) \approx 4.127$ bits per weight.
#
# *Example.* `absmax = [1, 2, 3]`: offset 2, differences `[-1, 0, 1]`, `absmax2 = [1]`, codes `[0, 127, 255]`. Back:
# `[1.0070, 2, 3]`; the map has a level 1, but none at -1 (its first is -0.9930).
#
# *Common mistakes:* no mean subtracted (then half of the map, its negative levels, is never used); a block size of 64
# here too.


# %% task="double_quantize"
def double_quantize(absmax: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Quantise scales to 8 bits.

    Args:
        absmax: floating-point numbers of shape [n].

    Returns:
        The codes (uint8, [n]), `absmax2` (fp32, [ceil(n / 256)]) and the offset (a Python float).

    Raises:
        TypeError, ValueError: `absmax` is no floating-point tensor, is empty or not finite. The text names `absmax`.
    """
    ### BEGIN SOLUTION
    check_floats(absmax, "absmax")
    absmax = absmax.float()
    offset = absmax.mean()
    blocks = nn.functional.pad(absmax - offset, (0, -len(absmax) % 256)).reshape(-1, 256)
    absmax2 = blocks.abs().amax(1)
    normed = (blocks / torch.where(absmax2 == 0, 1.0, absmax2)[:, None]).reshape(-1)[: len(absmax)]
    levels = dynamic_map()
    codes = torch.bucketize(normed, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    return codes, absmax2, offset.item()
    ### END SOLUTION


def double_dequantize(codes: torch.Tensor, absmax2: torch.Tensor, offset: float) -> torch.Tensor:
    """The scales (fp32, [n]) that the results of `double_quantize` stand for."""
    ### BEGIN SOLUTION
    return dynamic_map()[codes.int()] * absmax2.repeat_interleave(256)[: len(codes)] + offset
    ### END SOLUTION


# %%
matrix = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0)) * 0.02
packed, absmax = quantize_nf4(matrix)
codes, absmax2, offset = double_quantize(absmax)
for what, scales, scale_bytes in (
    ("fp32 scales", absmax, 4 * len(absmax)),
    ("8-bit scales", double_dequantize(codes, absmax2, offset), len(codes) + 4 * len(absmax2) + 4),
):
    error = (dequantize_nf4(packed, scales, (1024, 1024)) - matrix).norm() / matrix.norm()
    print(f"NF4 with {what}: {8 * (len(packed) + scale_bytes) / matrix.numel():.3f} bits per weight, error {error:.4f}")

# %% [markdown]
# ## Task 6: multiply in 8 bits in spite of outliers (about 25 minutes)
#
# Until now only weights were quantised. LLM.int8() (Dettmers et al. 2022) quantises the activations too, and multiplies
# whole numbers. The trouble: in large models a few **columns** of the activations (features) are 20 times larger than
# all others. They would set the scale of every row, and the others would lose their bits. So they are taken out:
#
# 1. A column of `x` is an *outlier column* if **any** of its values has $|x| \ge$ `threshold`.
#    With `threshold=0.0` there is none (the method is off).
# 2. Everything else: set the outlier columns of `x` to 0 and quantise each **row** (token) as in task 1. Multiply the
#    codes with the codes of the weights **as whole numbers of 32 bits or more** (or in any other way that is exact, such
#    as fp64), and multiply the result with the scale
#    of the row of `x` and the scale of the row of the weight.
#    (The outlier columns are left out whole when the largest value of a row is taken. bitsandbytes leaves only the
#    outlier values out there; the difference is small.)
# 3. The outlier columns: multiply the numbers of `x`, not quantised, with the dequantised weights of these columns.
# 4. Add both.
#
# *Example.* `x = [[1.27, 0.5, 8.0]]`, `w_int8 = [[100, 50, -20]]`, `scale = [[0.01]]`. Column 2 is an outlier. The rest
# has scale 0.01 and codes `[127, 50, 0]`: $127 \cdot 100 + 50 \cdot 50 = 15{,}200$, times $0.01 \cdot 0.01$ is 1.52. The
# outlier adds $8 \cdot (-0.2) = -1.6$. Result: `[[-0.08]]`, which is exact. With `threshold=0.0` the scale would be
# 8/127, the codes `[20, 8, 127]`, and the result -0.0882.
#
# *Common mistakes:* multiplying int8 tensors as they are: the sum of int8 products wraps around at 128 (use
# `.to(torch.int32)` or `.long()` first; fp32 is exact only up to $2^{24}$, fp16 only up to 2,048). Looking for outliers
# in rows. Forgetting to remove them before the maximum is taken.


# %% task="llm_int8_matmul"
def llm_int8_matmul(x: torch.Tensor, w_int8: torch.Tensor, scale: torch.Tensor, threshold: float = 6.0) -> torch.Tensor:
    """`x @ weight.T` with 8-bit codes of both, and unquantised outlier columns.

    Args:
        x: activations, floating-point, [tokens, in_features].
        w_int8: codes of the weight, int8, [out_features, in_features].
        scale: its scales, fp32, [out_features, 1], as `absmax_int8(weight, dim=1)` gives them.
        threshold: outlier columns have a value of at least this size, or 0.0: none has.

    Returns:
        fp32, [tokens, out_features].

    Raises:
        TypeError, ValueError: `x` is no floating-point tensor, is empty or not finite. The text names `x`.
        ValueError: `threshold` is negative. The text names `threshold`.
    """
    ### BEGIN SOLUTION
    check_floats(x, "x")
    if threshold < 0:
        raise ValueError(f"threshold must not be negative, but is {threshold}")
    x = x.float()
    outlier = (x.abs() >= threshold).any(0) if threshold else torch.zeros(x.shape[1], dtype=torch.bool)
    rest = x.masked_fill(outlier, 0.0)
    absmax = rest.abs().amax(1, keepdim=True)
    x_scale = torch.where(absmax == 0, 1.0, absmax / 127)
    codes = torch.round(rest / x_scale).to(torch.int32)
    product = (codes @ w_int8.to(torch.int32).T).float() * x_scale * scale.reshape(1, -1)
    return product + x[:, outlier] @ (w_int8[:, outlier] * scale.reshape(-1, 1)).T
    ### END SOLUTION


# %% [markdown]
# Outlier columns, and the error with and without taking them out:

# %%
noise = torch.Generator().manual_seed(0)
x = torch.randn(32, 256, generator=noise)
x[:, [40, 200]] *= 30
w = torch.randn(128, 256, generator=noise) * 0.02
w_codes, w_scale = absmax_int8(w, 1)
fig, ax = plt.subplots(figsize=(7, 2))
ax.imshow(x.abs().numpy(), aspect="auto", vmax=30, cmap="magma")
ax.set(xlabel="feature", ylabel="token", title="|activation|: two outlier columns")
plt.show()
for threshold in (0.0, 6.0):
    error = (llm_int8_matmul(x, w_codes, w_scale, threshold) - x @ w.T).norm() / (x @ w.T).norm()
    print(f"threshold {threshold}: relative error {error:.4f}")

# %% [markdown]
# ## Task 7: a layer that holds codes only (about 50 minutes)
#
# `WeightOnlyLinear(linear, scheme)` replaces an `nn.Linear`. It holds the codes and scales as **buffers**
# (`self.register_buffer(name, tensor)`), so that `state_dict` saves them and `.to(device)` moves them:
#
# | scheme | buffers |
# |---|---|
# | `"int8"` | `codes` (int8, [out, in]) and `scale` (fp32, [out, 1]), from `absmax_int8(weight, dim=1)` |
# | `"nf4"` | `packed` (uint8) and `absmax` (fp32), from `quantize_nf4(weight, blocksize)` |
#
# and `bias`, the old one or a copy, as a parameter or buffer of that name and with its old dtype, if the layer has one
# (otherwise `bias` is `None`). **Each** call of `forward(x)` makes the weight anew from the buffers, turns it and the bias
# to `x`'s dtype, computes `nn.functional.linear`, and forgets the weight. That is slower than keeping it, and it is the
# point: a copy of the weight in floating point that stays alive would cost more memory than was saved. Activations are
# not quantised here.
#
# `quantize_model(model, scheme, skip)` puts such layers in place of all `nn.Linear` of a model, however deep, and
# nothing else: embeddings and norms stay as they are. A layer whose own name (the last part of its full name) is in
# `skip` stays too. By default that is `lm_head`: it decides between all tokens, and in many models (SmolLM2 too) its
# weight *is* the table of embeddings. Quantising it would not free that table; it would only add a copy.
# The function changes the model and gives the full names of the layers that it replaced, in the order in which
# `model.named_modules()` gives them. You may assume that no layer stands in two places, that there is no
# `nn.MultiheadAttention` (it reads the weight of a linear layer of its own), and that nobody turns a layer to another
# dtype later (`.to(torch.bfloat16)` would turn the scales too).
#
# *Example.* In a Llama, the first names are `model.layers.0.self_attn.q_proj`, `...k_proj`, `...v_proj`, `...o_proj`,
# `model.layers.0.mlp.gate_proj`, `...up_proj`, `...down_proj`; SmolLM2 has 30 times 7 = 210 of them.
#
# *Hint.* `setattr(parent, "q_proj", new_layer)` replaces a layer; `model.get_submodule("model.layers.0.self_attn")`
# gives the parent. Take the list of names before you change anything.
#
# *Quality* is graded with SmolLM2 where it lies on the grading machine: the perplexity of a text (task 9) may grow by
# at most 5 % with int8 and by at most 60 % with NF4. Memory is measured from outside of your process.
#
# *Is it faster?* There is no check of speed. On one H100, bitsandbytes' NF4 layer (14,336 × 4,096 weights) reached
# 1.04, 0.58 and 0.35 times the speed of a bf16 layer for 1, 8 and 64 tokens at once, and its LLM.int8() layer 0.36, 0.46
# and 0.37 times. Fewer bytes are only read faster by a kernel that is written for them and dequantises in registers. What
# you surely gain is memory, and so room for a larger model or for more requests at once.
#
# *Common mistakes:* keeping `self.linear = linear` (nothing was saved); quantising a weight that still asks for gradients
# (what PyTorch notes for them keeps the weight alive: take `linear.weight.detach()`); dequantising once in `__init__`
# or at the first call; codes as plain attributes, which `state_dict` does not know; quantising the `lm_head`.


# %% task="WeightOnlyLinear"
class WeightOnlyLinear(nn.Module):
    """A linear layer that holds its weight as codes and scales.

    Args:
        linear: the layer to replace. It is not changed, and its weight is not kept.
        scheme: "int8" or "nf4".
        blocksize: of "nf4".

    Raises:
        TypeError: `linear` is no `nn.Linear`. The text names `linear`.
        ValueError: `scheme` is another one. The text names `scheme`.
    """

    def __init__(self, linear: nn.Linear, scheme: str = "int8", blocksize: int = 64) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be an nn.Linear, not {type(linear).__name__}")
        if scheme not in ("int8", "nf4"):
            raise ValueError(f"scheme must be 'int8' or 'nf4', not {scheme!r}")
        self.scheme, self.blocksize, self.shape = scheme, blocksize, tuple(linear.weight.shape)
        weight = linear.weight.detach()
        if scheme == "int8":
            parts = dict(zip(("codes", "scale"), absmax_int8(weight, dim=1), strict=True))
        else:
            parts = dict(zip(("packed", "absmax"), quantize_nf4(weight, blocksize), strict=True))
        for name, tensor in parts.items():
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())
        ### END SOLUTION

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x @ weight.T + bias`: [..., in_features] to [..., out_features], in the dtype of `x`."""
        ### BEGIN SOLUTION
        if self.scheme == "int8":
            weight = self.codes * self.scale
        else:
            weight = dequantize_nf4(self.packed, self.absmax, self.shape, self.blocksize)
        return nn.functional.linear(x, weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        ### END SOLUTION


def quantize_model(
    model: nn.Module, scheme: str = "int8", skip: tuple[str, ...] = ("lm_head",), blocksize: int = 64
) -> list[str]:
    """Replace the linear layers of `model`, which is changed; gives their full names.

    Args:
        model: any module; is itself no `nn.Linear`.
        scheme, blocksize: as in `WeightOnlyLinear`.
        skip: own names (last parts of the full names) of layers that stay as they are.
    """
    ### BEGIN SOLUTION
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] not in skip
    ]
    for name in names:
        parent, _, own = name.rpartition(".")
        layer = model.get_submodule(name)
        setattr(model.get_submodule(parent), own, WeightOnlyLinear(layer, scheme, blocksize))
    return names
    ### END SOLUTION


# %% [markdown]
# ## Task 8: serve it (about 25 minutes)
#
# Now put a model to work: it answers a request, and you report what an operator asks first: how much memory does the
# model hold, how long does a user wait for the first token, and how many tokens per second follow?
#
# **Generate.** `step`, which `stepper(model)` of the first cell gives, is one run of a model. Give it the whole prompt
# once. Then append the most likely token (the largest logit; no two are equal) to the answer, give `step` this **one
# token** with the cache, and so on, until the answer has `max_new_tokens` tokens or its last token is `eos_id` ("end of
# sequence"; it belongs to the answer). The cache holds what attention has computed for all earlier tokens. (It is
# called KV cache.) With it each token is read only once. Hand on what `step` gave last; what it is, is not your
# concern. `step` is called once per token of the answer, and not once more after the last.
#
# **Report.** Read `clock` when you begin, when you have the first token, and when you have the last one:
#
# - `first_token_s`: seconds from the beginning to the first token. (Reading the prompt is called *prefill*.)
# - `tokens_per_s`: the tokens *after* the first, divided by the seconds *since* the first. With only one token: 0.0, and
#   whether you read the clock a third time does not matter. (Each `step` takes time: the seconds are never 0.)
#
# *Example.* The prompt is `[5, 6]`; the first `step` takes 2 s, each other one 0.25 s; the most likely tokens are 7, 8, 9,
# and `max_new_tokens=3`. `step` is called with `[[5, 6]]`, `[[7]]`, `[[8]]`. The report is `{"tokens": [7, 8, 9],
# "first_token_s": 2.0, "tokens_per_s": 4.0}`: 2 tokens in 0.5 s, not 3 tokens in 2.5 s. If the second token were 0 and
# `eos_id=0`, the answer would be `[7, 0]`.
#
# **Memory.** `held_bytes(model)` counts the bytes of all parameters and buffers of a model. A tensor that stands in two
# places (the same object, as with tied embeddings) counts once. Buffers that no `state_dict` shows (`persistent=False`)
# count too.
#
# *Example.* A linear layer from 4 to 3 numbers with a bias has 12 + 3 numbers: 60 bytes in fp32, 30 in bf16.
#
# *Common mistakes:* giving `step` the whole text again and again; running the model once more after the last token;
# counting the first token in `tokens_per_s`, so that a long prompt looks like slow writing; counting tied embeddings
# twice. On a GPU also: reading the clock before the result is there. (`int(logits.argmax())` waits for it.) And do not
# expect more tokens per second from your quantised model: your layers make all weights anew for each token. What falls is
# the memory.


# %% task="generate"
def generate(
    step: Callable[[torch.Tensor, Any], tuple[torch.Tensor, Any]],
    prompt: list[int],
    max_new_tokens: int,
    eos_id: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Answer one request, always with the most likely token, and say how fast.

    Args:
        step: as `stepper` gives it: `step(ids, cache)` with int64 [1, n] and a cache gives logits [vocabulary] and the
            cache of the next call. The cache of the first call is `None`.
        prompt: the tokens of the request, at least one.
        max_new_tokens: tokens of the answer, at least 1.
        eos_id: the token that ends an answer; `None`: none does.
        clock: gives the time in seconds.

    Returns:
        A dict of `tokens` (a list of int: the answer), `first_token_s` and `tokens_per_s` (floats).

    Raises:
        ValueError: `prompt` is empty. The text names `prompt`.
        TypeError, ValueError: `max_new_tokens` is no int or below 1. The text names `max_new_tokens`.
    """
    ### BEGIN SOLUTION
    check_count(max_new_tokens, "max_new_tokens", 1)
    if not prompt:
        raise ValueError("prompt is empty: there is nothing to go on from")
    began = clock()
    logits, cache = step(torch.tensor([prompt]), None)
    tokens = [int(logits.argmax())]
    first = clock()
    while len(tokens) < max_new_tokens and tokens[-1] != eos_id:
        logits, cache = step(torch.tensor([tokens[-1:]]), cache)
        tokens.append(int(logits.argmax()))
    later = len(tokens) - 1
    speed = later / (clock() - first) if later else 0.0
    return {"tokens": tokens, "first_token_s": first - began, "tokens_per_s": speed}
    ### END SOLUTION


def held_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers of `model`, each tensor once."""
    ### BEGIN SOLUTION
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    ### END SOLUTION


# %% [markdown]
# The same model in three forms. Get SmolLM2 once with `autograder models fetch`; without it there is nothing to see here.

# %%
from gpu_env import models

try:
    model_path = str(models.find("SmolLM2-135M-Instruct"))
except models.ModelMissing as error:
    model_path = None
    print(error)

if model_path:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    request = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    prompt = tokenizer(request)["input_ids"]
    for scheme in (None, "int8", "nf4"):
        model = load_model(model_path)
        if scheme:
            quantize_model(model, scheme)
        report = generate(stepper(model), prompt, 12, tokenizer.eos_token_id)
        print(
            f"{scheme or 'fp32':5} {held_bytes(model) / 1e6:6.1f} MB, first token after {report['first_token_s']:.2f} s, "
            f"then {report['tokens_per_s']:.1f} tokens/s: {tokenizer.decode(report['tokens'])!r}"
        )

# %% [markdown]
# ## Task 9: what was lost (about 25 minutes)
#
# The **perplexity** of a text under a model is $\exp$ of the mean of $-\ln p(\text{token} \mid \text{tokens before})$.
# A model that guesses among $V$ tokens at random has perplexity $V$; a perfect one 1. It is the usual measure of what
# quantisation costs, because it moves long before answers look wrong.
#
# A long text does not fit into a model at once, so it is read in **windows** of `window` tokens that begin at 0, `stride`,
# 2 `stride`, ..., each as long as the text allows, up to the first that reaches the end of the text. Overlap gives tokens
# context. **Every token but the very first is scored exactly once**, in the first window that contains it: the first
# window scores all of its tokens but token 0, each later one only the tokens that no window before it contained. Since
# `stride < window`, each of these has at least one token before it in its window.
#
# $$\text{perplexity} = \exp\Big(\frac{1}{T - 1} \sum_{t=1}^{T-1} -\ln p_t(\text{ids}[t])\Big)$$
#
# The logits at position $i$ of a window are about the token at position $i + 1$. $p$ is the softmax of the logits,
# computed in fp32, whatever the dtype of the logits is, so that large logits do not overflow (`nn.functional.cross_entropy` or
# `torch.log_softmax` do that). The mean is below 100, so that $\exp$ does not overflow.
#
# *Example.* $T = 7$, `window=4`, `stride=2`: the windows are tokens 0 to 3 (scores 1, 2, 3), 2 to 5 (scores 4, 5) and
# 4 to 6 (scores 6). Three calls of the model, 3 + 2 + 1 = 6 scores. With `window=7` or more there is one call. If a model
# gives each token up to place 3 probability 1/2, and each later one 1/4, the mean of $-\ln p$ is
# $(3 \ln 2 + 3 \ln 4) / 6$ and the perplexity $\sqrt 8 \approx 2.83$, whatever the windows are.
#
# *How much is lost?* You may read that 8 bits cost less than 5 % and 4 bits 5 to 10 %. It depends on model and text, so
# measure it. The perplexity of SmolLM2-135M on 256 tokens of a licence was 0.994 times that of fp32 with int8, and 1.49
# times with NF4: a model this small has nothing to spare.
#
# *Common mistakes:* the mean of the windows' perplexities, or of their mean losses (the last window is shorter, so its
# tokens would count more); scoring the overlap twice; logits compared with the token at the *same* position; a window
# beyond the end that scores nothing.


# %% task="perplexity"
def perplexity(model: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor, window: int, stride: int) -> float:
    """Perplexity of a text, read in overlapping windows.

    Args:
        model: called as `model(ids)` with int64 [1, tokens]; gives logits [1, tokens, vocabulary] in any
            floating-point dtype. Called once per window.
        ids: the tokens, int64, [T], T at least 2.
        window: tokens per window, at least 2.
        stride: tokens from the beginning of a window to that of the next, at least 1 and less than `window`.

    Raises:
        ValueError: `ids` has fewer than 2 tokens, or not one dimension. The text names `ids`.
        TypeError, ValueError: `window` or `stride` is no int or out of range. The text names it.
    """
    ### BEGIN SOLUTION
    if ids.ndim != 1 or len(ids) < 2:
        raise ValueError(f"ids must be one row of at least 2 tokens, not of shape {tuple(ids.shape)}")
    check_count(window, "window", 2)
    check_count(stride, "stride", 1)
    if stride >= window:
        raise ValueError(f"stride={stride} must be less than window={window}, or tokens would be without context")
    total, done, start = 0.0, 1, 0
    while done < len(ids):
        end = min(start + window, len(ids))
        said = model(ids[None, start:end])[0].float()
        total += nn.functional.cross_entropy(said[done - start - 1 : -1], ids[done:end], reduction="sum").item()
        start, done = start + stride, end
    return math.exp(total / (len(ids) - 1))
    ### END SOLUTION


# %% [markdown]
# Quality against memory, on a short text that lies on every machine (the documentation of one of Python's modules).
# Half a minute, or more on a busy machine; nothing to see without SmolLM2.

# %%
import statistics

if model_path:
    ids = tokenizer(statistics.__doc__, return_tensors="pt")["input_ids"][0][:512]
    fig, ax = plt.subplots(figsize=(6, 3))
    for scheme in (None, "int8", "nf4"):
        model = load_model(model_path)
        if scheme:
            quantize_model(model, scheme)
        value = perplexity(lambda ids, model=model: logits(model, ids), ids, window=256, stride=128)
        megabytes = held_bytes(model) / 1e6
        print(f"{scheme or 'fp32'}: {megabytes:.1f} MB, perplexity {value:.2f}")
        ax.plot(megabytes, value, "o")
        ax.annotate(scheme or "fp32", (megabytes, value))
    ax.set(xlabel="model (MB)", ylabel="perplexity (lower is better)", title="SmolLM2-135M")
    plt.show()

# %% [markdown]
# ## Task 10: what was gained (about 20 minutes)
#
# Count the bytes of a quantised model from the shapes of its tensors, before you download anything. Tensors with two
# dimensions whose name is not in `skip` are quantised; all others (norms, biases, what you skip) take `other_bytes` per
# number. With $n$ = rows · cols numbers:
#
# | scheme | bytes of one matrix |
# |---|---|
# | `"int8"` | 1 per number, and a 4-byte scale per row |
# | `"int4"` | half a byte per number, and a 4-byte scale per symmetric group of `blocksize` in a row (no zero points) |
# | `"nf4"` | $\lceil n/2 \rceil$, and a 4-byte absmax for each of the $\lceil n/\text{blocksize} \rceil$ blocks |
# | `"nf4"`, `double=True` | $\lceil n/2 \rceil$, 1 byte per block, 4 per 256 blocks (or part of them), 4 for the offset |
#
# *Example.* One matrix of 1,024 × 1,024 has 1,048,576 numbers: bf16 2,097,152 bytes; int8 1,052,672; int4 and NF4 with
# blocks of 64 589,824 (4.5 bits per number); NF4 with double quantisation 540,932 (4.127 bits).
#
# *Common mistakes:* "4 bits is an eighth of fp32": not with its scales, and not for the embeddings, which are a fifth of
# SmolLM2. Trusting `model.get_memory_footprint()` of transformers for a bitsandbytes model: it leaves the absmax out
# (it gives the same number with and without double quantisation).


# %% task="quantized_bytes"
def quantized_bytes(
    shapes: dict[str, tuple[int, ...]],
    scheme: str,
    blocksize: int = 64,
    double: bool = False,
    skip: tuple[str, ...] = (),
    other_bytes: int = 2,
) -> int:
    """Bytes of a model with quantised matrices.

    Args:
        shapes: the shape of each tensor by its full name. Tied tensors stand there once.
        scheme: "int8", "int4" or "nf4".
        blocksize: numbers per scale of "int4" and "nf4", at least 1 (any number, here).
        double: quantise the absmax of "nf4" too.
        skip: full names of matrices that are not quantised.
        other_bytes: bytes per number of what is not quantised, at least 1.

    Raises:
        ValueError: `scheme` is another one, or `double` is true and it is not "nf4". The text names the argument.
        ValueError: with "int4", `blocksize` does not divide the columns of a matrix that is to be quantised, or the
            matrix has an odd number of columns. The text names `blocksize`.
        TypeError, ValueError: `blocksize` or `other_bytes` is no int or below 1. The text names it.
    """
    ### BEGIN SOLUTION
    if scheme not in ("int8", "int4", "nf4"):
        raise ValueError(f"scheme must be 'int8', 'int4' or 'nf4', not {scheme!r}")
    if double and scheme != "nf4":
        raise ValueError(f"double quantisation is for nf4, not for {scheme}")
    check_count(blocksize, "blocksize", 1)
    check_count(other_bytes, "other_bytes", 1)
    total = 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        if len(shape) != 2 or name in skip:
            total += count * other_bytes
        elif scheme == "int8":
            total += count + 4 * shape[0]
        elif scheme == "int4":
            if shape[1] % blocksize or shape[1] % 2:
                raise ValueError(f"blocksize={blocksize} does not divide rows of {shape[1]} into groups and bytes")
            total += count // 2 + 4 * count // blocksize
        else:
            blocks = -(-count // blocksize)
            total += -(-count // 2) + (blocks + 4 * -(-blocks // 256) + 4 if double else 4 * blocks)
    return total
    ### END SOLUTION


# %% [markdown]
# SmolLM2-135M and Llama-3-8B. The embeddings of SmolLM2 are tied to its `lm_head`, those of Llama-3-8B are not.


# %%
def llama_shapes(
    layers: int, hidden: int, kv: int, inner: int, vocabulary: int, tied: bool
) -> dict[str, tuple[int, ...]]:
    """Shapes of a Llama's tensors; `kv` is the width of keys and of values."""
    shapes = {"embed_tokens": (vocabulary, hidden), "norm": (hidden,)} | (
        {} if tied else {"lm_head": (vocabulary, hidden)}
    )
    for i in range(layers):
        shapes |= {f"{i}.q_proj": (hidden, hidden), f"{i}.k_proj": (kv, hidden), f"{i}.v_proj": (kv, hidden)}
        shapes |= {f"{i}.o_proj": (hidden, hidden), f"{i}.gate_proj": (inner, hidden), f"{i}.up_proj": (inner, hidden)}
        shapes |= {f"{i}.down_proj": (hidden, inner), f"{i}.norm_1": (hidden,), f"{i}.norm_2": (hidden,)}
    return shapes


for name, shapes in {
    "SmolLM2-135M": llama_shapes(30, 576, 192, 1536, 49_152, tied=True),
    "Llama-3-8B": llama_shapes(32, 4096, 1024, 14_336, 128_256, tied=False),
}.items():
    skip = ("embed_tokens", "lm_head")
    figures = {"bf16": quantized_bytes(shapes, "nf4", skip=tuple(shapes))}
    figures |= {scheme: quantized_bytes(shapes, scheme, skip=skip) for scheme in ("int8", "int4", "nf4")}
    figures["nf4, double"] = quantized_bytes(shapes, "nf4", double=True, skip=skip)
    print(name, {scheme: f"{value / 1e6:,.1f} MB" for scheme, value in figures.items()})
