"""The public checks of `quantization`: worked examples with the numbers of the handout. Released with the assignment."""

from __future__ import annotations

from typing import Any

import torch

from autograder.checks import expect_close, expect_equal, expect_type, fail, show


def numbers(*values: Any) -> torch.Tensor:
    """An fp32 tensor."""
    return torch.tensor(list(values), dtype=torch.float32)


def parts(value: Any, count: int, what: str) -> Any:
    """`value`, which must be a tuple of `count` parts."""
    expect_type(value, tuple, what)
    if len(value) != count:
        fail(f"{what} must be a tuple of {count}.", value=value, expected=f"{count} parts")
    return value


def expect_tensor(value: Any, dtype: torch.dtype, shape: Any, what: str) -> None:
    """`value` must be a tensor of that dtype and shape."""
    wanted = f"tensor of shape {tuple(shape)}, {dtype}"
    if type(value) is not torch.Tensor or value.dtype != dtype or tuple(value.shape) != tuple(shape):
        fail(f"{what} must be a {wanted}.", value=value, expected=wanted)


def expect_codes(value: Any, expected: list[Any], dtype: torch.dtype, what: str) -> None:
    """`value` must be a tensor of exactly these whole numbers."""
    wanted = torch.tensor(expected, dtype=dtype)
    expect_tensor(value, dtype, wanted.shape, what)
    if not torch.equal(value, wanted):
        fail(f"{what}: wrong value.", value=value.tolist(), expected=show(expected))


def expect_near(value: Any, expected: torch.Tensor, what: str, tolerance: float = 1e-5) -> None:
    """`value` must be an fp32 tensor like `expected`; `tolerance` is relative to the largest number of `expected`.

    1e-5 is some fifty times the rounding of fp32, so the order of operations does not matter.
    """
    expect_tensor(value, torch.float32, expected.shape, what)
    off = (value.double() - expected.double()).abs().max().item()
    if not off <= tolerance * max(expected.abs().max().item(), 1e-30):
        few = value.numel() <= 12
        like = str([round(number, 6) for number in expected.reshape(-1).tolist()]) if few else ""
        fail(
            f"{what.rstrip(',')} is off by up to {off:.3g}.",
            value=[round(number, 6) for number in value.reshape(-1).tolist()] if few else value,
            expected=like or f"off by at most {tolerance:g} of the largest",
        )


# -------------------------------------------------------------------------------------------------------- absmax_int8


def test_absmax_examples(submission):
    """Each row, each column or the whole tensor gets its largest absolute value as 127, and zeros get scale 1.

    Hint: amax of the absolute values, with keepdim=True, over the dimension `dim`.
    """
    x = numbers([0.5, -2.54, 1.0], [0, 0, 0])
    for dim, wanted, scales in (
        (1, [[25, -127, 50], [0, 0, 0]], numbers([2.54 / 127], [1.0])),
        (0, [[127, -127, 127], [0, 0, 0]], numbers([0.5 / 127, 0.02, 1 / 127])),
        (None, [[25, -127, 50], [0, 0, 0]], numbers([0.02])),
    ):
        codes, scale = parts(submission.absmax_int8(x, dim), 2, f"The result with dim={dim}")
        expect_near(scale, scales, f"The scale with dim={dim}")
        expect_codes(codes, wanted, torch.int8, f"The codes with dim={dim}")


def test_absmax_rounds_to_even(submission):
    """Codes are rounded to the nearest whole number, and exactly between two to the even one.

    Hint: torch.round does both; a conversion to int8 alone cuts off.
    """
    codes, scale = parts(submission.absmax_int8(numbers(127, 0.5, 1.5, 2.5, -0.5, -1.5, 99.9), 0), 2, "The result")
    expect_near(scale, numbers(1.0), "The scale of numbers up to 127")
    expect_codes(codes, [127, 0, 2, 2, 0, -2, 100], torch.int8, "The codes of 127, 0.5, 1.5, 2.5, -0.5, -1.5, 99.9")


# ---------------------------------------------------------------------------------------------------- zeropoint_uint8


def test_zeropoint_examples(submission):
    """The range of the numbers and 0 is spread over the codes 0 to 255.

    Hint: lo = min(0, smallest), hi = max(0, largest). `.item()` makes a Python number of a tensor that holds one.
    """
    for values, scale, zero_point, wanted in (
        ((-1.0, 0.0, 1.55), 0.01, 100, [0, 100, 255]),
        ((1.0, 2.0, 5.1), 0.02, 0, [50, 100, 255]),
        ((-5.1, -1.0), 0.02, 255, [0, 205]),
        ((0.0, 0.0), 1.0, 0, [0, 0]),
    ):
        codes, got, zero = parts(submission.zeropoint_uint8(numbers(*values)), 3, f"The result for {values}")
        expect_close(got, scale, f"The scale of {values}", rel=1e-6)
        expect_equal(zero, zero_point, f"The zero point of {values}")
        expect_codes(codes, wanted, torch.uint8, f"The codes of {values}")


# ----------------------------------------------------------------------------------------------------- groupwise_int4


def test_int4_examples(submission):
    """Each group of a row gets a scale and a zero point, and dequantising gives nearly the same numbers.

    Hint: Reshape to [rows, groups, group_size] and work along the last dimension.
    """
    for symmetric, row, scale, zero, wanted in (
        (True, [0.8, -1.4, 0.16, 0.32], 0.2, 8, [12, 1, 9, 10]),
        (False, [-0.5, 1.0, 0.22, 0.0], 0.1, 5, [0, 15, 7, 5]),
    ):
        w = numbers([*row, 0, 0, 0, 0], [*row[::-1], *row])
        what = f"with symmetric={symmetric} and groups of 4"
        codes, scales, zeros = parts(submission.groupwise_int4(w, 4, symmetric), 3, f"The result {what}")
        empty = 8 if symmetric else 0
        expect_near(scales, numbers([scale, 1.0], [scale, scale]), f"The scales {what}")
        expect_codes(zeros, [[zero, empty], [zero, zero]], torch.uint8, f"The zero points {what}")
        expect_codes(codes, [[*wanted, *[empty] * 4], [*wanted[::-1], *wanted]], torch.uint8, f"The codes {what}")
        back = [(code - zero) * scale for code in wanted]
        expect_near(
            submission.dequantize_int4(codes, scales, zeros),
            numbers([*back, 0, 0, 0, 0], [*back[::-1], *back]),
            f"What dequantize_int4 gives {what}",
        )


def test_int4_packing_examples(submission):
    """Two codes share a byte, the first in the high four bits.

    Hint: Four bits to the left, then the other one beside it.
    """
    codes = torch.tensor([[12, 1, 9, 10], [0, 15, 15, 0]], dtype=torch.uint8)
    packed = submission.pack_int4(codes)
    expect_codes(
        packed, [[0xC1, 0x9A], [0x0F, 0xF0]], torch.uint8, "The packed codes of [12, 1, 9, 10] and [0, 15, 15, 0]"
    )
    unpacked = submission.unpack_int4(torch.tensor([[0xC1, 0x9A], [0x0F, 0xF0]], dtype=torch.uint8))
    expect_codes(unpacked, codes.tolist(), torch.uint8, "The unpacked codes of 0xC1 0x9A and 0x0F 0xF0")


# ------------------------------------------------------------------------------------------------------- quantize_nf4


def test_nf4_codebook(submission):
    """The codebook has 16 ascending levels from -1 to 1, one of them exactly 0.

    Hint: 8 positive ones, 7 negative ones and 0; linspace has one point more than you keep.
    """
    book = submission.nf4_codebook()
    expect_tensor(book, torch.float32, (16,), "The codebook")
    for code, level in (
        (0, -1.0),
        (1, -0.6961928),
        (2, -0.5250731),
        (7, 0.0),
        (13, 0.5626170),
        (14, 0.7229568),
        (15, 1.0),
    ):
        if not abs(book[code].item() - level) <= (0 if level in (0, 1, -1) else 2e-6):
            fail(f"The level of code {code} is not what it should be.", value=book[code].item(), expected=show(level))


def test_nf4_example(submission):
    """Four numbers make one short block: codes of the nearest levels, packed, and back.

    Hint: Divide by the largest absolute value of the block first.
    """
    packed, absmax = parts(submission.quantize_nf4(numbers(2.0, -1.0, 0.1, 0.0)), 2, "The result")
    expect_near(absmax, numbers(2.0), "The absmax")
    expect_codes(packed, [242, 135], torch.uint8, "The packed codes of [2.0, -1.0, 0.1, 0.0]")
    back = submission.dequantize_nf4(torch.tensor([242, 135], dtype=torch.uint8), numbers(2.0), (2, 2))
    expect_near(back, numbers([2.0, -1.0501462], [0.1591606, 0.0]), "What dequantize_nf4 gives")


# ---------------------------------------------------------------------------------------------------- double_quantize


def test_double_example(submission):
    """The mean is subtracted, the rest quantised to the levels of the map, and dequantising adds the mean again.

    Hint: Look for the nearest level of dynamic_map() for each difference divided by absmax2.
    """
    codes, absmax2, offset = parts(submission.double_quantize(numbers(1.0, 2.0, 3.0)), 3, "The result")
    expect_close(offset, 2.0, "The offset of [1, 2, 3]", rel=1e-6)
    expect_near(absmax2, numbers(1.0), "absmax2 of [1, 2, 3]")
    expect_codes(codes, [0, 127, 255], torch.uint8, "The codes of [1, 2, 3]")
    back = submission.double_dequantize(torch.tensor([0, 127, 255], dtype=torch.uint8), numbers(1.0), 2.0)
    expect_near(back, numbers(1.00703125, 2.0, 3.0), "What double_dequantize gives")


# ---------------------------------------------------------------------------------------------------- llm_int8_matmul


def test_matmul_example(submission):
    """An outlier column is multiplied as it is, everything else in 8 bits.

    Hint: Set outlier columns to 0 before you look for the largest value of a row.
    """
    x, scale = numbers([1.27, 0.5, 8.0]), numbers([0.01])
    codes = torch.tensor([[100, 50, -20]], dtype=torch.int8)
    expect_near(submission.llm_int8_matmul(x, codes, scale), numbers([-0.08]), "The product of the example", 1e-4)
    without = submission.llm_int8_matmul(x, codes, scale, 0.0)
    expect_near(without, numbers([-140 * 0.01 * 8 / 127]), "The product of the example with threshold=0.0", 1e-4)


# --------------------------------------------------------------------------------------------------- WeightOnlyLinear


def test_linear_computes(submission):
    """The layer has the buffers of the table, and computes with them.

    Hint: register_buffer takes a name and a tensor; forward makes the weight from both.
    """
    weight = torch.linspace(-1, 1, 4 * 32).reshape(4, 32) ** 3
    bias, x = numbers(1, 2, 3, 4), torch.linspace(-2, 2, 3 * 32).reshape(3, 32)
    for scheme, wanted, error in (
        ("int8", {"codes": (torch.int8, (4, 32)), "scale": (torch.float32, (4, 1))}, 0.01),
        ("nf4", {"packed": (torch.uint8, (64,)), "absmax": (torch.float32, (2,))}, 0.2),
    ):
        layer = submission.WeightOnlyLinear(submission.make_linear(weight, bias), scheme)
        held = submission.tensors_of(layer)
        expect_equal(sorted(held), sorted([*wanted, "bias"]), f"The names in the state_dict of an {scheme} layer")
        for name, (dtype, shape) in wanted.items():
            expect_tensor(held[name], dtype, shape, f"The buffer {name}")
        expect_near(layer.forward(x), x @ weight.T + bias, f"The output of an {scheme} layer", error)


LLAMA = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 64, "max_position_embeddings": 128, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    "tie_word_embeddings": False,
}  # fmt: skip
LAYERS = [
    f"model.layers.{i}.{name}"
    for i in range(2)
    for name in (
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    )
]


def random_llama(seed: int, **sizes: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Sizes and random weights of a small Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = {**LLAMA, **sizes}
    model = LlamaForCausalLM(LlamaConfig(**config, initializer_range=0.2))
    return config, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_quantize_model_names(submission):
    """In a Llama, all linear layers but the lm_head are replaced, and the names are given in the model's order.

    Hint: named_modules gives full names; what belongs before the last dot is the parent's.
    """
    config, tensors = random_llama(0)
    model = submission.make_llama(config, tensors)
    expect_equal(submission.quantize_model(model, "int8"), LAYERS, "The names that quantize_model gives")
    held = submission.tensors_of(model)
    expect_equal("lm_head.weight" in held, True, "Whether lm_head still has its weight")
    expect_equal("model.layers.1.mlp.up_proj.codes" in held, True, "Whether the layer up_proj has codes")
    expect_equal("model.layers.1.mlp.up_proj.weight" in held, False, "Whether the layer up_proj still has a weight")


# ----------------------------------------------------------------------------------------------------------- generate


class ScriptedModel:
    """A model and a clock in one: what it says is a script, and time passes only while it runs."""

    def __init__(self, answer: list[int], prefill_s: float, decode_s: float, vocabulary: int = 10) -> None:
        self.answer, self.seconds, self.vocabulary = answer, (prefill_s, decode_s), vocabulary
        self.now = 100.0
        self.fed: list[list[int]] = []

    def clock(self) -> float:
        return self.now

    def step(self, ids: Any, cache: Any) -> tuple[torch.Tensor, str]:
        """The logits of the script's next token, and a cache that stands for the calls so far."""
        if type(ids) is not torch.Tensor or ids.dtype != torch.int64 or ids.ndim != 2 or len(ids) != 1:
            fail("step must be called with int64 tokens of shape [1, n].", value=ids)
        wanted = f"cache {len(self.fed)}" if self.fed else None
        if type(cache) is not type(wanted) or cache != wanted:
            fail(
                f"Call {len(self.fed) + 1} of step got another cache than the one that it must get.",
                value=cache,
                expected="the one that the call before it gave" if self.fed else "None",
            )
        if len(self.fed) == len(self.answer):
            fail("step was called once more after the last token.", value=ids.tolist())
        token = self.answer[len(self.fed)]
        self.now += self.seconds[bool(self.fed)]
        self.fed.append(ids[0].tolist())
        logits = -torch.arange(self.vocabulary, dtype=torch.float32) - 5
        logits[token] = -1.0
        return logits, f"cache {len(self.fed)}"


def report_of(value: Any, what: str) -> Any:
    """`value`, which must have the keys of a report."""
    expect_type(value, dict, f"The report {what}")
    names = ["first_token_s", "tokens", "tokens_per_s"]
    if any(type(name) is not str for name in value) or sorted(value) != names:
        fail(f"The report {what} must have other keys.", value=list(value), expected=show(names))
    return value


def expect_report(value: Any, tokens: list[int], first_token_s: float, tokens_per_s: float, what: str) -> None:
    """`value` must be what `generate` gives."""
    report_of(value, what)
    expect_equal(value["tokens"], tokens, f"The tokens of the answer {what}")
    expect_close(value["first_token_s"], first_token_s, f"first_token_s {what}", rel=1e-6)
    expect_close(value["tokens_per_s"], tokens_per_s, f"tokens_per_s {what}", rel=1e-6)


def test_generate_example(submission):
    """The prompt is read once, then each new token alone, and the report has the figures of the example.

    Hint: step gets the prompt, then one token at a time with the cache that it gave last. The speed is that after the first.
    """
    model = ScriptedModel([7, 8, 9], prefill_s=2.0, decode_s=0.25)
    report = submission.generate(model.step, [5, 6], 3, None, model.clock)
    expect_equal(model.fed, [[5, 6], [7], [8]], "The tokens that step was called with")
    expect_report(report, [7, 8, 9], 2.0, 4.0, "of the example")
    model = ScriptedModel([7, 0], prefill_s=2.0, decode_s=0.25)
    report = submission.generate(model.step, [5, 6], 3, 0, model.clock)
    expect_report(report, [7, 0], 2.0, 4.0, "of the example with eos_id=0")


def test_held_bytes_examples(submission):
    """A linear layer from 4 to 3 numbers has 60 bytes in fp32 and 30 in bf16.

    Hint: A tensor knows its nbytes. model.parameters() and model.buffers() go through all parts.
    """
    for dtype, expected in ((torch.float32, 60), (torch.bfloat16, 30)):
        layer = submission.make_linear(torch.ones(3, 4, dtype=dtype), torch.ones(3, dtype=dtype))
        expect_equal(submission.held_bytes(layer), expected, f"Bytes of a layer with 12 + 3 numbers in {dtype}")


# --------------------------------------------------------------------------------------------------------- perplexity


def expect_window(ids: Any, calls: list[Any]) -> None:
    """`ids`, which a model was called with, must be tokens; they are added to `calls`, which must have an end."""
    if type(ids) is not torch.Tensor or ids.dtype != torch.int64 or ids.ndim != 2 or len(ids) != 1:
        fail("The model must be called with int64 tokens of shape [1, tokens].", value=ids)
    calls.append(ids[0].tolist())
    if len(calls) > 100:
        fail("The model is called again and again. Does the loop end when all tokens are scored?")


def test_perplexity_uniform(submission):
    """A model that finds all V tokens equally likely has perplexity V, and a sure and right one has 1.

    Hint: The logits at position i are about the token at position i + 1.
    """
    calls: list[Any] = []

    def guesses(ids: Any) -> torch.Tensor:
        expect_window(ids, calls)
        return torch.zeros(1, ids.shape[1], 50)

    ids = torch.arange(20) % 7
    for window in (5, 20, 100):
        value = submission.perplexity(guesses, ids, window, 3)
        expect_close(value, 50.0, f"Perplexity of a model that guesses among 50, window={window},", rel=1e-5)

    def counts(ids: Any) -> torch.Tensor:
        expect_window(ids, calls)
        return 100.0 * torch.nn.functional.one_hot((ids + 1) % 7, 7)

    expect_close(submission.perplexity(counts, ids, 5, 3), 1.0, "Perplexity of a model that is always right", rel=1e-5)


def test_perplexity_windows(submission):
    """A text of 7 tokens with window=4 and stride=2 takes three calls, of the tokens 0 to 3, 2 to 5 and 4 to 6.

    Hint: The last window is the first one that reaches the end of the text. Each token counts as much as any other.
    """
    calls: list[Any] = []

    def model(ids: Any) -> torch.Tensor:
        """Finds the tokens up to 3 one of two, later ones one of four."""
        expect_window(ids, calls)
        among = torch.where(ids < 3, 2, 4)[..., None]
        likely = torch.arange(10) < among - 1  # and the right one
        return torch.where(likely | (torch.arange(10) == ids[..., None] + 1), 0.0, -200.0)

    value = submission.perplexity(model, torch.arange(7), 4, 2)
    expect_equal(sorted(calls), [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6]], "The windows that the model was called with")
    expect_close(value, 8**0.5, "The perplexity of the example", rel=1e-5)


# ---------------------------------------------------------------------------------------------------- quantized_bytes


def test_bytes_examples(submission):
    """One matrix and one vector have the bytes of the handout.

    Hint: Round blocks up, and remember the scales.
    """
    shapes = {"w": (1024, 1024), "norm": (1024,)}
    for scheme, double, expected in (
        ("int8", False, 1_052_672),
        ("int4", False, 589_824),
        ("nf4", False, 589_824),
        ("nf4", True, 540_932),
    ):
        what = f"Bytes with {scheme}, double={double}"
        expect_equal(submission.quantized_bytes(shapes, scheme, double=double), expected + 2_048, what)
    expect_equal(submission.quantized_bytes(shapes, "nf4", skip=("w",)), 2 * 1024 * 1025, "Bytes with w skipped")
