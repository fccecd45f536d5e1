"""The hidden checks of `quantization`. They ask for nothing that the handout does not say."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from autograder.checks import expect_close, expect_equal, expect_raises, expect_type, fail
from gpu_env import memory, models
from grading.quantization import oracles
from grading.quantization.oracles import bnb, normal
from grading.quantization.spec import HELD_SHARE, PERPLEXITY_GROWTH
from grading.quantization.test_public import (
    LAYERS,
    LLAMA,
    ScriptedModel,
    expect_codes,
    expect_near,
    expect_report,
    expect_tensor,
    expect_window,
    numbers,
    parts,
    random_llama,
    report_of,
)


def expect_same_codes(value: Any, expected: torch.Tensor, what: str) -> None:
    """Bit for bit."""
    expect_tensor(value, expected.dtype, expected.shape, what)
    if different := int((value != expected).sum()):
        at = (value != expected).nonzero()[0].tolist()
        got, wanted = value[tuple(at)].item(), expected[tuple(at)].item()
        fail(
            f"{what}: {different} of {value.numel()} differ, the first at {at}.",
            value=got,
            expected=str(wanted),
        )


def expect_floats_checked(call: Callable[[Any], Any], shape: tuple[int, ...], name: str) -> None:
    """`call(x)` must refuse tensors that hold no numbers that can be quantised, naming the argument."""
    good = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
    call(good)  # arguments that are right must not be refused
    expect_raises("TypeError", lambda: call(good.to(torch.int32)), f"{name} of dtype int32", naming=name)
    for bad in (math.nan, math.inf, -math.inf):
        spoilt = good.clone()
        spoilt.view(-1)[-1] = bad
        expect_raises("ValueError", partial(call, spoilt), f"{name} with {bad} in it", naming=name)
    expect_raises("ValueError", lambda: call(good[:0]), f"{name} without numbers", naming=name)


def expect_count_checked(call: Callable[..., Any], name: str, below: int) -> None:
    """`call(name=value)` must refuse what is no int, and `below`, naming the argument."""
    for value in (True, 64.0, "64"):
        expect_raises("TypeError", partial(call, **{name: value}), f"{name}={value!r}", naming=name)
    expect_raises("ValueError", partial(call, **{name: below}), f"{name}={below}", naming=name)


# -------------------------------------------------------------------------------------------------------- absmax_int8


def test_absmax_equals_bitsandbytes(submission, rng):
    """Rows are quantised to the codes of bitsandbytes, bit for bit, in fp32, fp16 and bf16.

    Hint: Turn the input into fp32 first. One scale per row; -128 is never used.
    """
    for dtype, rows, cols in ((torch.float32, 40, 100), (torch.float16, 7, 333), (torch.bfloat16, 16, 64)):
        spread = 10.0 ** torch.arange(rows).remainder(5).sub(2)[:, None]  # rows of different sizes, from 0.01 to 100
        x = (normal(rng, rows, cols) * spread).bfloat16().half()
        x[:, :2] = x[:, 1:2]  # the maximum may stand twice
        x = oracles.off_int8_ties(x).to(dtype)
        wanted, scale = oracles.int8_codes(x)
        codes, got = parts(submission.absmax_int8(x, 1), 2, "The result")
        expect_near(got / scale, torch.ones(rows, 1), f"The scales of {dtype} rows, relative to what they should be,")
        expect_same_codes(codes, wanted, f"Codes of {rows} rows of {cols} {dtype} numbers")
    small = torch.full((2, 4), 3e-7, dtype=torch.float16)  # 127 / absmax is infinite in fp16
    codes, _ = parts(submission.absmax_int8(small, 1), 2, "The result")
    expect_codes(codes, [[127] * 4] * 2, torch.int8, "The codes of rows that hold nothing but 3e-7 in fp16")


def test_absmax_any_dimension(submission, rng):
    """Along any dimension of any tensor, and with dim=None for all of it, each number is within half a scale.

    Hint: keepdim keeps the scale's dimensions, also with dim=None; rounding to the nearest costs half a scale at most.
    """
    for shape in ((5,), (3, 4), (2, 3, 4), (2, 2, 2, 5)):
        for dim in (*range(-len(shape), len(shape)), None):
            x = normal(rng, *shape) * 3
            what = f"of a tensor of shape {shape} with dim={dim}"
            codes, scale = parts(submission.absmax_int8(x, dim), 2, f"The result {what}")
            wanted = torch.linalg.vector_norm(x, math.inf, dim=dim, keepdim=True) / 127
            expect_tensor(codes, torch.int8, shape, f"The codes {what}")
            expect_near(scale, wanted, f"The scale {what}")
            if ((codes.double() * wanted - x).abs() > wanted * 0.501).any():
                fail(f"A number is more than half a scale from its dequantised value, {what}.")


def test_absmax_arguments(submission):
    """What is no tensor of finite floating-point numbers is refused, with a text that names x.

    Hint: check_floats does it.
    """
    expect_floats_checked(lambda x: submission.absmax_int8(x, 0), (6,), "x")
    expect_raises("TypeError", lambda: submission.absmax_int8([1.0, 2.0], 0), "A list in place of a tensor", naming="x")
    expect_raises("TypeError", lambda: submission.absmax_int8(None, 0), "None in place of a tensor", naming="x")


# ---------------------------------------------------------------------------------------------------- zeropoint_uint8


def test_zeropoint_nearest_code(submission, rng):
    """For any range the scale and zero point are those of the text, and each number gets its nearest code.

    Hint: Round the quotient and the zero point each for itself, and cut off below 0 and above 255.
    """
    for shape, shift in (
        ((1000,), 0.0),
        ((30, 40), 2.0),
        ((2, 3, 50), -2.0),
        ((500,), 9.0),
        ((500,), -9.0),
        ((1,), 4.0),
    ):
        x = normal(rng, *shape) + shift
        what = f"for {x.numel()} numbers from {x.min():.2f} to {x.max():.2f}"
        codes, scale, zero = parts(submission.zeropoint_uint8(x), 3, f"The result {what}")
        low, high = min(0.0, x.min().item()), max(0.0, x.max().item())
        expect_close(scale, (high - low) / 255, f"The scale {what}", rel=1e-5)
        expect_type(zero, int, f"The zero point {what}")
        if not (0 <= zero <= 255 and abs(zero + low * 255 / (high - low)) <= 0.5001):
            fail(f"The zero point {what} is wrong.", value=zero, expected=f"{-low * 255 / (high - low):.3f}, rounded")
        expect_tensor(codes, torch.uint8, shape, f"The codes {what}")
        levels = (torch.arange(256) - zero) * ((high - low) / 255)
        best = oracles.nearest_error(x.reshape(1, -1), levels[None]).reshape(shape)
        worse = (levels.double()[codes.int()] - x).abs() - best > 1e-3 * scale
        if worse.any():
            fail(
                f"{int(worse.sum())} codes {what} are not the nearest.",
                value=codes[worse][0].item(),
                expected="the nearest",
            )
    # The scale is 1, and 1.5 and 253.5 are rounded up both, which makes 256.
    codes, _, zero = parts(submission.zeropoint_uint8(numbers(-1.5, 253.5, 0.0)), 3, "The result for -1.5, 253.5 and 0")
    expect_equal(zero, 2, "The zero point for -1.5, 253.5 and 0")
    expect_codes(codes, [0, 255, 2], torch.uint8, "The codes of -1.5, 253.5 and 0")


def test_zeropoint_arguments(submission):
    """What is no tensor of finite floating-point numbers is refused; fp16 numbers are computed in fp32.

    Hint: check_floats does it. fp16 cannot tell 2,049 from 2,048.
    """
    expect_floats_checked(submission.zeropoint_uint8, (6,), "x")
    x = torch.tensor([-60_000.0, 60_000.0, 0.0], dtype=torch.float16)  # hi - lo is infinite in fp16
    codes, scale, zero = parts(submission.zeropoint_uint8(x), 3, "The result")
    expect_close(scale, 2 * x[1].item() / 255, "The scale of fp16 numbers from -60,000 to 60,000", rel=1e-5)
    expect_equal(codes[2].item(), zero, "The code of 0, which is the zero point,")


# ----------------------------------------------------------------------------------------------------- groupwise_int4


def check_int4(submission: Any, rng: random.Random, symmetric: bool) -> None:
    for rows, cols, size, dtype in (
        (5, 96, 32, torch.float32),
        (3, 30, 10, torch.float32),
        (4, 128, 128, torch.float16),
        (2, 7, 7, torch.float32),
        (6, 5, 1, torch.float32),
    ):
        w = (normal(rng, rows, cols) * 10.0 ** torch.randint(-2, 3, (rows, 1)) + rng.choice([-1, 0, 1])).to(dtype)
        w[0, :size] = 0
        what = f"of {rows} rows of {cols} with group_size={size}, symmetric={symmetric}"
        codes, scale, zero = parts(submission.groupwise_int4(w, size, symmetric), 3, f"The result {what}")
        shape = (rows, cols // size)
        expect_tensor(codes, torch.uint8, (rows, cols), f"The codes {what}")
        expect_tensor(scale, torch.float32, shape, f"The scales {what}")
        expect_tensor(zero, torch.uint8, shape, f"The zero points {what}")
        groups = w.double().reshape(-1, size)
        low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
        span = torch.maximum(high, -low) / 7 if symmetric else (high - low) / 15
        span = torch.where(span == 0, 1.0, span)
        expect_near(
            (scale.reshape(-1) / span).float(), torch.ones(len(span)), f"The scales {what}, relative to right ones,"
        )
        middle = torch.full_like(span, 8) if symmetric else -low / span
        off = (zero.reshape(-1).double() - middle).abs() > 0.5001
        if off.any():
            fail(
                f"A zero point {what} is wrong.",
                value=zero.reshape(-1)[off][0].item(),
                expected=f"{middle[off][0]:.3f}, rounded",
            )
        every = torch.arange(1 if symmetric else 0, 16)[None].double() - zero.reshape(-1, 1)
        best = oracles.nearest_error(groups, every * span[:, None])
        mine = (codes.reshape(-1, size).double() - zero.reshape(-1, 1)) * span[:, None]
        worse = (mine - groups).abs() - best > 1e-3 * span[:, None]
        if worse.any() or int(codes.max()) > 15:
            fail(
                f"{int(worse.sum())} codes {what} are not the nearest.",
                value=codes.reshape(-1, size)[worse][:1].tolist(),
                expected="the nearest",
            )
        back = submission.dequantize_int4(codes, scale, zero)
        expect_near(back, mine.reshape(rows, cols).float(), f"What dequantize_int4 makes {what}")


def test_int4_symmetric(submission, rng):
    """Symmetric groups of any size have the scale of the text, and each number its nearest code from 1 to 15.

    Hint: The largest absolute value of a group gets the code 15 or 1.
    """
    check_int4(submission, rng, True)
    _, _, zero = parts(submission.groupwise_int4(numbers([1.0, 2.0]), 2), 3, "The result without symmetric=")
    expect_codes(zero, [[8]], torch.uint8, "The zero point where nothing is said about symmetric")


def test_int4_asymmetric(submission, rng):
    """Asymmetric groups of any size have scale and zero point of the text, and each number its nearest code.

    Hint: The range of each group contains 0; its zero point is a whole number.
    """
    check_int4(submission, rng, False)
    # The scale is 1, and 1.5 and 13.5 are rounded up both, which makes 16.
    codes, _, zero = parts(submission.groupwise_int4(numbers([-1.5, 13.5, 0, 1]), 4, False), 3, "The result")
    expect_codes(zero, [[2]], torch.uint8, "The zero point of -1.5, 13.5, 0 and 1")
    expect_codes(codes, [[0, 15, 2, 3]], torch.uint8, "The codes of -1.5, 13.5, 0 and 1")


def test_int4_pack_any_shape(submission, rng):
    """Packing works along the last dimension of any tensor, and unpacking undoes it.

    Hint: [..., ::2] are the first codes of all pairs.
    """
    for shape in ((2,), (6, 10), (2, 3, 8)):
        pairs = [(rng.randrange(16), rng.randrange(16)) for _ in range(math.prod(shape) // 2)]
        codes = torch.tensor(pairs, dtype=torch.uint8).reshape(shape)
        packed = torch.tensor([16 * a + b for a, b in pairs], dtype=torch.uint8).reshape(*shape[:-1], -1)
        expect_same_codes(submission.pack_int4(codes), packed, f"Bytes of packed codes of shape {shape}")
        expect_same_codes(submission.unpack_int4(packed), codes, f"Unpacked codes of shape {shape}")


def test_int4_arguments(submission):
    """A matrix or group size that cannot be quantised, and codes that cannot be packed, are refused by name.

    Hint: Look at the dimensions of w, at what is left over of a row, and at the largest code.
    """
    expect_floats_checked(lambda w: submission.groupwise_int4(w, 3), (4, 6), "w")
    w = torch.ones(4, 6)
    expect_raises("ValueError", lambda: submission.groupwise_int4(w[0], 3), "w with one dimension", naming="w")
    expect_count_checked(partial(submission.groupwise_int4, w), "group_size", 0)
    expect_raises(
        "ValueError", lambda: submission.groupwise_int4(w, 4), "group_size=4 for rows of 6", naming="group_size"
    )
    codes = torch.arange(16, dtype=torch.uint8)
    expect_raises("ValueError", lambda: submission.pack_int4(codes[:5]), "An odd number of codes", naming="codes")
    odd = codes[:6].reshape(2, 3)
    expect_raises("ValueError", lambda: submission.pack_int4(odd), "Codes of shape (2, 3)", naming="codes")
    expect_raises("ValueError", lambda: submission.pack_int4(codes + 1), "A code of 16", naming="codes")


# ------------------------------------------------------------------------------------------------------- quantize_nf4


def test_nf4_equals_bitsandbytes(submission, rng):
    """Packed codes and absmax are those of bitsandbytes, bit for bit, for any shape and block size.

    Hint: Blocks run through the whole tensor in reading order. The last may be short, and the last byte half full.
    """
    for shape, blocksize, dtype in (
        ((16, 64), 64, torch.float32),
        ((3, 110), 64, torch.float32),
        ((5, 7, 11), 32, torch.float32),
        ((9000,), 4096, torch.float32),
        ((4, 256), 128, torch.float16),
        ((5,), 64, torch.bfloat16),
    ):
        w = oracles.off_nf4_ties((normal(rng, *shape) * 10.0 ** rng.randint(-3, 2)).bfloat16().to(dtype), blocksize)
        packed, absmax, _ = oracles.nf4_codes(w.float(), blocksize)
        what = f"of {dtype} numbers of shape {shape} with blocksize={blocksize}"
        got, scale = parts(submission.quantize_nf4(w, blocksize), 2, f"The result {what}")
        expect_same_codes(scale, absmax, f"The absmax {what}")
        expect_same_codes(got, packed, f"Packed codes {what}")


def test_nf4_ties_and_zeros(submission):
    """Exactly between two levels the lower code is taken, and a block of zeros has absmax 0 and codes 7.

    Hint: Dividing 0 by 0 gives NaN. torch.bucketize looks to the left unless told otherwise.
    """
    book = submission.nf4_codebook()  # its own, so that the middles are exactly its middles
    expect_tensor(book, torch.float32, (16,), "The codebook")
    row = torch.zeros(192)
    row[0], row[1], row[2], row[3] = 1.0, book[8] / 2, book[6] / 2, -1.0  # half of a level is exact in every precision
    row[128] = -3.0
    packed, absmax = parts(submission.quantize_nf4(row), 2, "The result")
    expect_codes(absmax, [1.0, 0.0, 3.0], torch.float32, "The absmax of three blocks, the second of zeros,")
    expect_tensor(packed, torch.uint8, (96,), "The packed codes")
    expect_equal(packed[:2].tolist(), [0xF7, 0x60], "The packed codes of 1, half of level 8, half of level 6, -1")
    expect_equal(packed[32:64].tolist(), [0x77] * 32, "The packed codes of a block of zeros")
    expect_equal(packed[64].item(), 0x07, "The packed codes of -3 and 0")


def test_nf4_dequantizes(submission, rng):
    """Packed codes of bitsandbytes are dequantised to its numbers, and the codebook is its codebook.

    Hint: Level times absmax of the block; an odd number of codes leaves half a byte.
    """
    expect_near(submission.nf4_codebook(), bnb().get_4bit_type("nf4", device="cpu"), "The codebook", 2e-6)
    for shape, blocksize in (((16, 64), 64), ((3, 110), 128), ((5, 7, 11), 32), ((4097,), 4096)):
        packed, absmax, back = oracles.nf4_codes(normal(rng, *shape), blocksize)
        got = submission.dequantize_nf4(packed, absmax, shape, blocksize)
        expect_near(got, back, f"Numbers of shape {shape} with blocksize={blocksize}", 4e-6)
    packed, absmax, back = oracles.nf4_codes(normal(rng, 8, 96))
    got = submission.dequantize_nf4(packed, absmax, (8, 96))
    expect_near(got, back, "Numbers of shape (8, 96) where nothing is said about blocksize", 4e-6)


def test_nf4_arguments(submission):
    """Numbers and block sizes that bitsandbytes has no code for are refused by name.

    Hint: Powers of two from 32 to 4096.
    """
    expect_floats_checked(submission.quantize_nf4, (40,), "w")
    w = torch.ones(100)
    expect_count_checked(partial(submission.quantize_nf4, w), "blocksize", 0)
    for blocksize in (16, 48, 96, 8192):
        what = f"blocksize={blocksize}"
        expect_raises("ValueError", partial(submission.quantize_nf4, w, blocksize), what, naming="blocksize")


# ---------------------------------------------------------------------------------------------------- double_quantize


def test_double_nearest_levels(submission, rng):
    """Offset and absmax2 are those of bitsandbytes, each code is that of the nearest level, and scales come back.

    Hint: Blocks of 256, the last may be shorter. The nearest level, not the one below.
    """
    levels = bnb().create_dynamic_map()
    for count in (5, 256, 700, 1025):
        absmax = normal(rng, count).abs() * 0.01 + 0.03
        offset = absmax.mean()
        codes, state = bnb().quantize_blockwise(absmax - offset, blocksize=256)
        back = bnb().dequantize_blockwise(codes, state) + offset
        got, absmax2, mean = parts(submission.double_quantize(absmax), 3, "The result")
        what = f"of {count} scales"
        expect_close(mean, offset.item(), f"The offset {what}", rel=1e-5)
        expect_near(absmax2, state.absmax, f"absmax2 {what}", 1e-4)
        expect_tensor(got, torch.uint8, (count,), f"The codes {what}")
        # Not bit for bit: bitsandbytes' own search on the CPU takes the farther level where both are equal to 2e-5.
        normed = (absmax - offset).double() / state.absmax.double().repeat_interleave(256)[:count]
        best = oracles.nearest_error(normed[None], levels[None])[0]
        worse = (levels.double()[got.int()] - normed).abs() - best > 1e-4
        if worse.any():
            value, wanted = got[worse][0].item(), codes[worse][0].item()
            fail(f"{int(worse.sum())} codes {what} are not the nearest.", value=value, expected=str(wanted))
        expect_near(
            submission.double_dequantize(codes, state.absmax, offset.item()), back, f"Dequantised scales {what}"
        )


def test_double_arguments(submission):
    """What is no tensor of finite numbers is refused, and equal scales come back exactly.

    Hint: If all scales are equal, all differences are 0, and so is absmax2.
    """
    expect_floats_checked(submission.double_quantize, (9,), "absmax")
    codes, absmax2, offset = parts(submission.double_quantize(torch.full((300,), 0.5)), 3, "The result")
    expect_codes(codes, [127] * 300, torch.uint8, "The codes of 300 equal scales")
    expect_codes(absmax2, [0.0, 0.0], torch.float32, "absmax2 of 300 equal scales")
    expect_close(offset, 0.5, "The offset of 300 equal scales", rel=1e-6)


# ---------------------------------------------------------------------------------------------------- llm_int8_matmul


def test_matmul_exact_sums(submission, rng):
    """Sums of whole numbers are exact, however many there are.

    Hint: 127 * 127 is far beyond int8, and a sum of thousands of them beyond fp16 and int16.
    """
    for rows, inner, outer in ((3, 64, 5), (2, 4096, 4)):
        x = torch.tensor([[rng.randint(-127, 127) for _ in range(inner)] for _ in range(rows)], dtype=torch.float32)
        x[:, 0] = 127  # the scale of every row is 1, so nothing is lost
        w = torch.tensor([[rng.randint(90, 127) for _ in range(inner)] for _ in range(outer)], dtype=torch.int8)
        x[-1] = 127
        scale = numbers(*[[rng.uniform(0.5, 2)] for _ in range(outer)])
        wanted = (x.double() @ w.double().T * scale.double().T).float()
        got = submission.llm_int8_matmul(x, w, scale, 0.0)
        expect_near(got, wanted, f"The product of {rows} x {inner} and {outer} x {inner} whole numbers", 1e-6)
    x = torch.tensor([[800.0, 127, 5, -60], [200.0, 127, -33, 1]])  # 200 is no outlier, but stands in an outlier column
    w = torch.tensor([[1, 2, 3, 4]], dtype=torch.int8)
    got = submission.llm_int8_matmul(x, w, numbers([1.0]), 500.0)
    expect_near(
        got, x @ w.float().T, "The product with a column that is an outlier column because of another row", 1e-6
    )


def test_matmul_equals_bitsandbytes(submission, rng):
    """With and without outliers the product is that of bitsandbytes' LLM.int8.

    Hint: A single value that reaches the threshold, exactly or with a minus sign, makes its whole column an outlier.
    """
    for rows, inner, outer, outliers, threshold in (
        (16, 128, 32, 0, 6.0),
        (16, 128, 32, 3, 6.0),
        (4, 96, 24, 1, 6.0),
        (8, 64, 16, 2, 0.0),
        (8, 64, 16, 64, 3.0),
    ):
        x = normal(rng, rows, inner).clamp(-4, 4).half()
        columns = rng.sample(range(inner), outliers)
        for column in columns:
            x[rng.randrange(rows), column] = rng.choice([6.0, -6.0, 90.0, -120.0])
        w = normal(rng, outer, inner).half()
        big = (x.abs() >= threshold).any(0) if threshold else torch.zeros(inner, dtype=torch.bool)
        x[:, big] = torch.where(
            x[:, big].abs() >= threshold, x[:, big], x[:, big] * 0.01
        )  # bitsandbytes looks at these
        if not big.all():
            x = torch.where(big, x, oracles.off_int8_ties(x.masked_fill(big, 0.0)))
        codes, scale = oracles.int8_codes(w)
        x_codes, x_max, marked = bnb().int8_vectorwise_quant(x, threshold=threshold)
        sums = bnb().int8_linear_matmul(x_codes, codes).double()  # exact
        product = sums * (x_max.double() / 127)[:, None] * scale.double().T
        if marked is not None:
            product += x[:, marked].double() @ (codes[:, marked].double() * scale.double()).T
        got = submission.llm_int8_matmul(x, codes, scale, threshold)
        what = f"The product with {outliers} outlier columns of {inner}, threshold={threshold},"
        # No code of x is near a tie, so what is left is the rounding of fp32.
        expect_near(got, product.float(), what, 1e-4)


def test_matmul_arguments(submission):
    """Activations that cannot be quantised and a negative threshold are refused; rows of zeros give zeros.

    Hint: A row whose values all stand in outlier columns leaves nothing to quantise: scale 1.
    """
    w, scale = torch.full((2, 6), 100, dtype=torch.int8), numbers([0.5], [0.25])
    expect_floats_checked(lambda x: submission.llm_int8_matmul(x, w, scale), (3, 6), "x")
    call = partial(submission.llm_int8_matmul, torch.ones(3, 6), w, scale, -1.0)
    expect_raises("ValueError", call, "threshold=-1.0", naming="threshold")
    w = torch.tensor([[100, 50]], dtype=torch.int8)
    for row, wanted, what in (
        ([6.0, 1.27], 6.635, "6 is an outlier where nothing is said about threshold"),
        ([5.9, 1.0], 5.9 + 0.5 * 22 * 5.9 / 127, "5.9 is none where nothing is said about threshold"),
        ([1.0, 0.4], 1 + 0.5 * 51 / 127, "the largest value of the row is 1"),
    ):
        got = submission.llm_int8_matmul(numbers(row), w, numbers([0.01]))
        expect_near(got, numbers([wanted]), f"The product of {row} and [1, 0.5], in which {what},")
    w = torch.full((2, 6), 100, dtype=torch.int8)
    x = torch.zeros(2, 6)
    x[1, 3] = 10.0
    expect_near(
        submission.llm_int8_matmul(x, w, scale),
        numbers([0, 0], [500, 250]),
        "The product of a row of zeros and one with nothing but an outlier",
    )


# --------------------------------------------------------------------------------------------------- WeightOnlyLinear


def test_linear_follows_its_buffers(submission, rng):
    """After other codes, scales and biases are loaded into a layer, it computes with those, whatever it did before.

    Hint: Make the weight in every call of forward, from the buffers alone.
    """
    rows, cols = 24, 80
    for with_bias in (True, False):
        bias = normal(rng, rows) if with_bias else None
        for scheme in ("int8", "nf4"):
            linear = submission.make_linear(normal(rng, rows, cols), bias)
            layer = submission.WeightOnlyLinear(linear, scheme)
            x = normal(rng, 5, cols)
            layer.forward(x)
            for number in range(2):
                w = normal(rng, rows, cols) * 3
                if scheme == "int8":
                    codes, scale = oracles.int8_codes(w)
                    made, weight = {"codes": codes, "scale": scale}, codes * scale
                else:
                    packed, absmax, weight = oracles.nf4_codes(w)
                    made = {"packed": packed, "absmax": absmax}
                if with_bias:
                    made["bias"] = normal(rng, rows)
                submission.load_tensors(layer, made)
                shape = ((5, cols), (2, 3, cols))[number]
                x = normal(rng, *shape)
                wanted = torch.nn.functional.linear(x, weight, made.get("bias"))
                expect_near(
                    layer.forward(x),
                    wanted,
                    f"The output of an {scheme} layer for x of shape {shape}, after codes were loaded,",
                    1e-4,
                )
            got = layer.forward(x.bfloat16())
            expect_tensor(got, torch.bfloat16, wanted.shape, f"The output of an {scheme} layer for x in bf16")
            if not (got.float() - wanted).norm() <= 0.02 * wanted.norm():
                fail(f"The output of an {scheme} layer for x in bf16 is not what it should be.")


def test_linear_memory(submission, rng, figures):
    """Layers hold their codes and nothing else: the memory of the process falls when they take the place of fp32 layers.

    Hint: Neither keep the old layer, nor its weight, nor a weight that forward has made.
    """
    for scheme, exact in (("int8", 64 * 64 + 4 * 64), ("nf4", 64 * 64 // 2 + 4 * 64)):
        held = submission.tensors_of(submission.WeightOnlyLinear(submission.make_linear(torch.ones(64, 64)), scheme))
        got = sum(tensor.nbytes for tensor in held.values() if isinstance(tensor, torch.Tensor))
        expect_equal(got, exact, f"Bytes in the state_dict of an {scheme} layer of 64 x 64 without a bias")
    rows, cols, count = 2304, 4096, 2  # 36 MiB in fp32: too large for malloc to keep when they are freed
    part = normal(rng, rows // 64, cols).half().float()  # bitsandbytes takes fp16: other numbers have other codes
    weight = oracles.off_int8_ties(oracles.off_nf4_ties(part)).repeat(64, 1)
    x = normal(rng, 2, cols)
    for scheme, allowed in HELD_SHARE.items():
        wanted = x @ (torch.mul(*oracles.int8_codes(weight)) if scheme == "int8" else oracles.nf4_codes(weight)[2]).T
        first = submission.quantized_layers(weight, scheme, 1)
        submission.outputs_of(first, x)  # libraries and malloc have taken what they keep, only once
        submission.give_memory_back()
        before = resident(submission)
        layers = submission.quantized_layers(weight, scheme, count)
        for output in submission.outputs_of(layers, x):
            expect_near(output, wanted, f"The output of a large {scheme} layer", 5e-3)
        submission.give_memory_back()  # up to 64 MiB that are free would else stay in malloc's pool
        share = (resident(submission) - before) / (count * 4 * rows * cols)
        figures[f"{scheme}_share_of_fp32"] = share
        if share > allowed:
            fail(
                f"{count} {scheme} layers of {rows} x {cols} hold too much memory after their first use.",
                expected=f"at most {allowed} times the bytes of their weights in fp32, a little more than codes and scales",
            )


def resident(submission: Any) -> int:
    """Bytes of RAM of all processes of the worker, as the kernel tells."""
    total = 0
    for pid in submission.worker().processes():
        try:
            total += memory.resident(pid)
        except ProcessLookupError:
            continue
    return total


def test_quantized_model_logits(submission, rng):
    """A quantised Llama says what transformers says with the weights that bitsandbytes quantised, and holds no others.

    Hint: Embeddings, norms and skipped layers stay exactly as they are.
    """
    for scheme, skip in (("int8", ("lm_head",)), ("nf4", ("lm_head",)), ("int8", ("lm_head", "k_proj", "down_proj"))):
        config, tensors = random_llama(rng.getrandbits(30))
        names = [name for name in LAYERS if name.rpartition(".")[2] not in skip]
        for name in LAYERS:
            w = oracles.off_int8_ties(tensors[f"{name}.weight"].half().float())
            tensors[f"{name}.weight"] = oracles.off_nf4_ties(w) if scheme == "nf4" else w
        ids = torch.tensor([[rng.randrange(LLAMA["vocab_size"]) for _ in range(24)]])
        wanted = oracles.llama_logits(config, oracles.dequantized(tensors, names, scheme), ids)
        model = submission.make_llama(config, tensors)
        expect_equal(
            submission.quantize_model(model, scheme, skip), names, f"The names of layers replaced with skip={skip}"
        )
        what = f"a Llama in {scheme}, skip={skip}"
        expect_near(submission.logits(model, ids), wanted, f"The largest difference of the logits of {what},", 1e-3)
        held = submission.tensors_of(model)
        for name, tensor in tensors.items():
            if name.removesuffix(".weight") not in names and not (name in held and torch.equal(held[name], tensor)):
                fail(f"{name} must stay as it is in {what}.")
        numbers_left = [name for name in held if name.removesuffix(".weight") in names]
        expect_equal(numbers_left, [], f"Weights in the state_dict of {what} that should be codes only")


def test_quantized_model_serves(submission, rng):
    """Run token by token with a KV cache, a quantised Llama says what transformers' generate says with such weights.

    Hint: Layers must take inputs of any number of tokens, and give the same for a token alone as in a row.
    """
    for scheme in ("int8", "nf4"):
        prompt = [rng.randrange(LLAMA["vocab_size"]) for _ in range(6)]
        for _ in range(50):  # until no step is so close that the order of additions decides
            config, tensors = random_llama(rng.getrandbits(30))
            for name in LAYERS:
                w = oracles.off_int8_ties(tensors[f"{name}.weight"].half().float())
                tensors[f"{name}.weight"] = oracles.off_nf4_ties(w) if scheme == "nf4" else w
            oracle = oracles.llama(config, oracles.dequantized(tensors, LAYERS, scheme))
            out = oracle.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, 6, dtype=torch.long), do_sample=False,
                max_new_tokens=12, return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
            best = torch.cat(out.logits).topk(2, dim=1).values
            if (best[:, 0] - best[:, 1]).min() > 0.01:
                break
        else:
            raise RuntimeError("no random model without close decisions")
        model = submission.make_llama(config, tensors)
        expect_equal(submission.quantize_model(model, scheme), LAYERS, f"The names of the layers replaced, {scheme}")
        step, ids, cache, served = submission.stepper(model), prompt, None, []
        while len(served) < 12:
            logits, cache = parts(step(torch.tensor([ids]), cache), 2, "What a step gives")
            expect_near(logits, out.logits[len(served)][0], f"The logits of token {len(served) + 1} in {scheme}", 1e-3)
            ids = [int(logits.argmax())]
            served += ids
        expect_equal(served, out.sequences[0, 6:].tolist(), f"The tokens that the {scheme} model gives")


def test_linear_arguments(submission):
    """What is no linear layer, and a scheme that is none of the two, are refused by name; a bias stays what it was.

    Hint: isinstance(linear, nn.Linear). The bias is kept as it is, under its name.
    """
    linear = submission.make_linear(torch.ones(4, 32), torch.ones(4, dtype=torch.float32))
    expect_raises("ValueError", lambda: submission.WeightOnlyLinear(linear, "int3"), "scheme='int3'", naming="scheme")
    expect_raises(
        "TypeError", lambda: submission.WeightOnlyLinear(torch.ones(4, 32)), "A tensor for a layer", naming="linear"
    )
    half = submission.make_linear(torch.ones(4, 32, dtype=torch.bfloat16), numbers(1, 2, 3, 4).bfloat16())
    for scheme in ("int8", "nf4"):
        held = submission.tensors_of(submission.WeightOnlyLinear(half, scheme))
        expect_tensor(held.get("bias"), torch.bfloat16, (4,), f"The bias of an {scheme} layer made of one in bf16")
    wide = submission.tensors_of(submission.WeightOnlyLinear(submission.make_linear(torch.ones(4, 256)), "nf4", 256))
    expect_tensor(wide.get("absmax"), torch.float32, (4,), "The absmax of an nf4 layer of 4 x 256 with blocksize=256")
    expect_same_codes(
        submission.tensors_of(linear)["weight"], torch.ones(4, 32), "The weight of the layer that was replaced"
    )


def test_smollm2_quality(submission, figures):
    """SmolLM2 still reads: the perplexity grows by at most 5 % with int8 and 60 % with NF4, and 210 layers are replaced.

    Hint: If this alone fails, compare the logits of one layer before and after. One scale per row (int8) or block (NF4).
    """
    path = str(models.find(oracles.MODEL))  # ModelMissing: cannot be graded on this machine
    known = oracles.smollm2()
    for scheme, allowed in PERPLEXITY_GROWTH.items():
        model = submission.load_model(path)
        names = submission.quantize_model(model, scheme)
        expect_type(names, list, "What quantize_model gives")
        expect_equal(len(names), 210, f"Number of layers replaced in SmolLM2, {scheme}")
        logits = submission.logits(model, known.ids[None])
        expect_tensor(logits, torch.float32, (1, len(known.ids), 49_152), f"The logits of SmolLM2 in {scheme}")
        growth = math.exp(min(oracles.loss(logits[0], known.ids) - known.loss, 50.0))
        figures[f"{scheme}_perplexity_growth"] = growth
        if not growth <= allowed:
            fail(
                f"The perplexity of SmolLM2 in {scheme} is too high.",
                value=f"{growth:.3f} times",
                expected=f"at most {allowed} times",
            )
        if (logits[0, -8:] - known.last).abs().max() < 1e-3:
            fail(f"The logits of SmolLM2 in {scheme} are those of the model before: nothing was quantised.")
        submission.take_apart(model)


# ----------------------------------------------------------------------------------------------------------- generate


def test_generate_any_request(submission, rng):
    """Every token is read once, the answer ends at eos_id or max_new_tokens, and the figures are those of the clock.

    Hint: eos_id may be 0, and may be the first token of the answer. One token has no tokens after the first.
    """
    for count, end, most in ((5, None, 5), (1, None, 1), (6, 0, 20), (4, 17, 4), (1, 0, 9), (9, 30, 40)):
        answer = [rng.randrange(1, 17) for _ in range(count)]
        if end is not None:
            answer[-1] = end
        prompt = [rng.randrange(50) for _ in range(rng.randint(1, 20))] + ([] if end is None else [end])
        model = ScriptedModel(answer, rng.uniform(0.5, 3), rng.uniform(0.01, 0.4), vocabulary=50)
        what = f"of {count} tokens, with max_new_tokens={most} and eos_id={end},"
        report = submission.generate(model.step, prompt, most, end, model.clock)
        expect_equal(model.fed, [prompt, *([token] for token in answer[:-1])], f"The tokens fed for an answer {what}")
        speed = 1 / model.seconds[1] if count > 1 else 0.0
        expect_report(report, answer, model.seconds[0], speed, what)


def test_generate_arguments(submission):
    """A request without tokens, and an answer of no tokens, are refused by name.

    Hint: check_count, and the length of the prompt.
    """
    model = ScriptedModel([1], 1.0, 1.0)
    call = partial(submission.generate, model.step)
    expect_raises("ValueError", lambda: call([], 1), "An empty prompt", naming="prompt")
    expect_count_checked(partial(call, [3]), "max_new_tokens", 0)
    expect_equal(model.fed, [], "What the model was fed although the request was refused")


def test_held_bytes_of_models(submission, rng):
    """The bytes are those of the memory that a model's tensors lie in: tied weights once, hidden buffers too.

    Hint: parameters() and buffers() give each tensor once, however many names it has; state_dict does not.
    """
    for tied in (False, True):
        sizes = {"vocab_size": rng.randint(40, 99), "tie_word_embeddings": tied}
        config, tensors = random_llama(rng.getrandbits(30), **sizes)
        held = oracles.tensor_bytes(oracles.llama(config, tensors))
        got = submission.held_bytes(submission.make_llama(config, tensors))
        expect_equal(
            got, held, f"Bytes of a Llama whose embeddings are {'tied' if tied else 'not tied'} to its lm_head"
        )


def test_smollm2_served(submission, figures):
    """SmolLM2 in int8 answers a request as with bitsandbytes' weights, and the memory and time reported are true.

    Hint: It takes a working task 7. held_bytes after quantize_model: 3 of 4 bytes of each replaced weight are gone.
    """
    path = str(models.find(oracles.MODEL))  # ModelMissing: cannot be graded on this machine
    known = oracles.smollm2()
    for scheme, held in known.held.items():
        model = submission.load_model(path)
        if scheme != "fp32":
            submission.quantize_model(model)
        expect_equal(submission.held_bytes(model), held, f"Bytes that SmolLM2 in {scheme} holds")
        step = submission.stepper(model)
        began = time.monotonic()
        count = len(known.answer) if scheme == "int8" else 4
        report = report_of(submission.generate(step, known.prompt, count), f"of SmolLM2 in {scheme}")
        waited = time.monotonic() - began
        figures |= {f"{scheme}_held_mb": held / 1e6, f"{scheme}_tokens_per_s": count / waited}
        if scheme == "int8":
            expect_equal(report["tokens"], known.answer, "The answer of SmolLM2 in int8")
        for name in ("first_token_s", "tokens_per_s"):
            expect_type(report[name], float, f"{name} of SmolLM2 in {scheme}")
            if not report[name] > 0:
                fail(f"{name} of SmolLM2 in {scheme} must be above 0.")
        told = report["first_token_s"] + (count - 1) / report["tokens_per_s"]
        if told > waited:  # it read the same clock, inside
            fail(f"By the times reported for SmolLM2 in {scheme}, generate took longer than it did.")
        submission.take_apart(model)


# --------------------------------------------------------------------------------------------------------- perplexity


def test_perplexity_of_any_model(submission, rng):
    """For any text, window and stride, every token but the first is scored once, with the context that its window gives.

    Hint: Sum the losses of all tokens, then divide once. Compute the softmax in fp32, whatever comes.
    """
    vocabulary = 12
    for length, window, stride, dtype in (
        (50, 16, 8, torch.float32),
        (50, 16, 15, torch.float32),
        (51, 10, 1, torch.float32),
        (33, 32, 7, torch.float32),
        (32, 32, 31, torch.float32),
        (20, 64, 32, torch.float32),
        (2, 2, 1, torch.float32),
        (40, 12, 5, torch.bfloat16),
        (40, 12, 5, torch.float16),
    ):
        ids = torch.tensor([rng.randrange(vocabulary) for _ in range(length)])
        table = normal(rng, vocabulary, vocabulary) * 3  # so that no probability is below 1e-38 in fp32
        calls: list[list[int]] = []

        def model(
            ids: torch.Tensor, table: torch.Tensor = table, dtype: torch.dtype = dtype, calls: Any = calls
        ) -> torch.Tensor:
            expect_window(ids, calls)
            if not ids.numel() or int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
                fail("The model was called with tokens that are not in the text.", value=ids)
            # What it says depends on all of the window so far: logits of a token and, weaker, the mean of those before.
            seen = table[ids[0]]
            mixed = seen + seen.cumsum(0) / torch.arange(1, ids.shape[1] + 1)[:, None]
            return (mixed[None] + 300.0).to(dtype)

        value = submission.perplexity(model, ids, window, stride)
        made = [each for each in calls]
        losses = []
        for position in range(1, length):
            start = next(first for first in range(0, length, stride) if position < first + window)
            logits = model(ids[None, start : start + window], calls=[])[0, position - start - 1].float()
            losses.append(torch.nn.functional.cross_entropy(logits, ids[position]).double())
        wanted = torch.stack(losses).mean().exp().item()
        what = f"with {length} tokens, window={window}, stride={stride}, logits in {dtype},"
        expect_close(value, wanted, f"Perplexity {what}", rel=1e-4)
        expect_equal(len(made), 1 + max(0, -(-(length - window) // stride)), f"Calls of the model {what}")


def test_perplexity_arguments(submission):
    """Texts without a token to score, and windows that leave tokens without context, are refused by name.

    Hint: stride must be less than window.
    """

    calls: list[Any] = []

    def model(ids: Any) -> torch.Tensor:
        expect_window(ids, calls)
        return torch.zeros(1, ids.shape[1], 5)

    ids = torch.arange(5)
    for bad in (ids[:1], ids[:0], ids[None]):
        expect_raises(
            "ValueError",
            partial(submission.perplexity, model, bad, 4, 2),
            f"ids of shape {tuple(bad.shape)}",
            naming="ids",
        )
    expect_count_checked(partial(submission.perplexity, model, ids, stride=1), "window", 1)
    expect_count_checked(partial(submission.perplexity, model, ids, window=100), "stride", 0)
    for stride in (4, 5):
        what = f"stride={stride} with window=4"
        expect_raises("ValueError", partial(submission.perplexity, model, ids, 4, stride), what, naming="stride")


# ---------------------------------------------------------------------------------------------------- quantized_bytes


def test_bytes_of_real_tensors(submission, rng):
    """The bytes are those of the tensors that bitsandbytes makes, for shapes that leave short blocks too.

    Hint: Round up per matrix, not for the whole model. Vectors and skipped matrices are not quantised.
    """
    for blocksize in (64, 128):
        shapes = {f"layer.{i}": (rng.randint(3, 90), rng.randint(3, 500)) for i in range(4)}
        shapes |= {"embed": (50, 128), "norm": (77,), "scalar": (), "conv": (4, 3, 5)}
        other = sum(math.prod(shape) for name, shape in shapes.items() if not name.startswith("layer"))
        for other_bytes in (2, 4):
            weights = {name: normal(rng, *shape) for name, shape in shapes.items() if name.startswith("layer")}
            plain = double = rows = 0
            for w in weights.values():
                packed, state = bnb().quantize_4bit(w.reshape(-1), blocksize=blocksize, quant_type="nf4")
                plain += packed.nbytes + state.absmax.nbytes
                packed, state = bnb().quantize_4bit(
                    w.reshape(-1), blocksize=blocksize, quant_type="nf4", compress_statistics=True
                )
                double += packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes + state.offset.nbytes
                codes, absmax, _ = bnb().int8_vectorwise_quant(w.half())
                rows += codes.nbytes + absmax.nbytes
            for scheme, twice, held in (("nf4", False, plain), ("nf4", True, double), ("int8", False, rows)):
                got = submission.quantized_bytes(shapes, scheme, blocksize, twice, ("embed",), other_bytes)
                what = (
                    f"Bytes of {shapes} in {scheme}, blocksize={blocksize}, double={twice}, other_bytes={other_bytes}"
                )
                expect_equal(got, held + other_bytes * other, what)
    for size, cols in ((2, 6), (32, 64), (5, 10), (6, 6)):
        held = torch.zeros(7, cols // 2, dtype=torch.uint8).nbytes + torch.zeros(7, cols // size).nbytes
        expect_equal(
            submission.quantized_bytes({"w": (7, cols)}, "int4", size),
            held,
            f"Bytes of 7 x {cols} in int4, groups of {size}",
        )
    expect_equal(submission.quantized_bytes({}, "int8"), 0, "Bytes of no tensors")
    for blocks in (256, 257):
        got = submission.quantized_bytes({"w": (blocks, 64)}, "nf4", double=True)
        expect_equal(got, 33 * blocks + 4 * -(-blocks // 256) + 4, f"Bytes of {blocks} x 64 in nf4, double=True")
    smallest = submission.quantized_bytes({"w": (2, 3), "norm": (7,)}, "nf4", 1, other_bytes=1)
    expect_equal(
        smallest, 3 + 4 * 6 + 7, "Bytes of 2 x 3 in nf4 with blocksize=1, and a vector of 7 with other_bytes=1"
    )


def test_bytes_arguments(submission):
    """Schemes, sizes and shapes that do not fit are refused by name.

    Hint: Only the matrices that are quantised must fit.
    """
    shapes = {"w": (4, 64)}
    call = partial(submission.quantized_bytes, shapes)
    expect_raises("ValueError", lambda: call("fp8"), "scheme='fp8'", naming="scheme")
    for scheme in ("int8", "int4"):
        expect_raises("ValueError", partial(call, scheme, double=True), f"double=True with {scheme}", naming="double")
    expect_raises("ValueError", lambda: call("int4", 48), "int4 in groups of 48 in rows of 64", naming="blocksize")
    odd = partial(submission.quantized_bytes, {"w": (4, 15)}, "int4", 5)
    expect_raises("ValueError", odd, "int4 of rows of 15", naming="blocksize")
    expect_equal(submission.quantized_bytes({"w": (4, 15)}, "int4", 64, skip=("w",)), 120, "Bytes of a skipped matrix")
    expect_count_checked(partial(call, "nf4"), "blocksize", 0)
    expect_count_checked(partial(call, "nf4"), "other_bytes", 0)
