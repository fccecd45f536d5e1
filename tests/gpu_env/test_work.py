"""Counted work is exact, the same in every run, and what escapes the counters is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedModel,
    StaticCache,
)
from transformers.cache_utils import QuantizedLayer

from gpu_env.work import Flops, count_flops, count_forwards, kv_cache_bytes, weight_bytes

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
places = pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=on_cuda)])
LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, MLP, VOCABULARY, WINDOW = 2, 4, 2, 16, 64, 96, 128, 8
TOKEN_BYTES = 2 * LAYERS * KV_HEADS * HEAD_DIM * 4
"""KV cache of one token, float32."""


def llama(where: str = "cpu", **options: Any) -> PreTrainedModel:
    """A small model with random weights."""
    shape = {
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "vocab_size": VOCABULARY,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**shape, **options)).to(where).eval()


def ids(rows: int, width: int, where: str = "cpu") -> torch.Tensor:
    """Tokens."""
    return torch.arange(rows * width, device=where).view(rows, width) % VOCABULARY


# ------------------------------------------------------------------------------------ FLOPs


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(2, 8), st.integers(2, 8), st.integers(2, 3))  # torch multiplies where a size is 1
def test_products_count_two_flops_for_each_multiply_and_add(m: int, k: int, n: int, batch: int) -> None:
    """However a product is spelt: matrices, batches, einsum, a linear layer, a vector on either side."""
    a, b, many = torch.ones(m, k), torch.ones(k, n), torch.ones(batch, m, k)
    spelt: list[tuple[Callable[[], object], int]] = [
        (lambda: a @ b, 2 * m * k * n),
        (lambda: many @ b, 2 * batch * m * k * n),
        (lambda: torch.einsum("bmk,kn->bnm", many, b), 2 * batch * m * k * n),
        (lambda: F.linear(many, b.t(), torch.ones(n)), 2 * batch * m * k * n),
        (lambda: a @ b[:, 0], 2 * m * k),
        (lambda: torch.addmv(torch.ones(m), a, b[:, 0]), 2 * m * k),
        (lambda: a[0] @ b[:, 0], 2 * k),
        (lambda: torch.vdot(a[0], b[:, 0]), 2 * k),
    ]
    for call, expected in spelt:
        with count_flops() as flops:
            call()
        assert flops.total == expected


@places
@pytest.mark.parametrize("grad", [True, False])
def test_attention_counts_wherever_it_runs(where: str, grad: bool) -> None:
    """Fused attention on a CPU, for which torch has no formula, counts as on a GPU; causal as full."""
    query, key = torch.ones(2, 4, 32, 16, device=where), torch.ones(2, 4, 48, 16, device=where)
    with torch.set_grad_enabled(grad), count_flops() as flops:
        F.scaled_dot_product_attention(query, key, key)
    assert flops.total == 2 * 2 * 4 * 32 * 48 * (16 + 16)
    with torch.set_grad_enabled(grad), count_flops() as causal:
        F.scaled_dot_product_attention(query, query, query, is_causal=True)
    assert causal.total == 2 * 2 * 4 * 32 * 32 * (16 + 16)


@places
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 32])
def test_attention_with_grouped_heads_counts_every_query_head(where: str, dtype: torch.dtype, queries: int) -> None:
    """Eight query heads that share two KV heads do the work of eight, in whichever kernel the type leads to."""
    query = torch.ones(1, 8, queries, 64, device=where, dtype=dtype)
    key = torch.ones(1, 2, 48, 64, device=where, dtype=dtype)
    with torch.inference_mode(), count_flops() as flops:
        F.scaled_dot_product_attention(query, key, key, enable_gqa=True)
    assert flops.total == 2 * 8 * queries * 48 * (64 + 64)


@places
def test_int8_products_count(where: str) -> None:
    """An int8 product does the work of any other."""
    a = torch.ones(32, 64, dtype=torch.int8, device=where)
    with count_flops() as flops:
        torch._int_mm(a, torch.ones(64, 16, dtype=torch.int8, device=where))
    assert flops.total == 2 * 32 * 64 * 16


@places
def test_flops_of_a_model_follow_from_its_shape(where: str) -> None:
    """A forward of T tokens after C cached ones costs what the formula says."""

    def formula(tokens: int, cached: int) -> int:
        projections = HIDDEN * HEAD_DIM * (2 * HEADS + 2 * KV_HEADS) + 3 * HIDDEN * MLP
        attention = HEADS * (cached + tokens) * (HEAD_DIM + HEAD_DIM)
        return 2 * tokens * (LAYERS * (projections + attention) + HIDDEN * VOCABULARY)

    model = llama(where)
    with torch.inference_mode():
        with count_flops() as prompt:
            output = model(ids(1, 12, where))
        with count_flops() as step:
            model(ids(1, 1, where), past_key_values=output.past_key_values)
    angles = 2 * (HEAD_DIM // 2)  # of rotary embedding: an outer product, for which torch may choose a multiplication
    assert prompt.total - formula(12, 0) in (0, 12 * angles)
    assert step.total - formula(1, 12) in (0, angles)


@places
def test_counts_are_the_same_in_every_run(where: str) -> None:
    """Two runs of one generation count alike, operator by operator."""
    model = llama(where)
    counts = []
    for _ in range(2):
        with torch.inference_mode(), count_flops() as flops:
            model.generate(ids(2, 6, where), max_new_tokens=4, do_sample=False, pad_token_id=0)
        counts.append((flops.by_operator, flops.uncounted))
    assert counts[0] == counts[1]
    assert counts[0][0]


def test_without_a_cache_flops_grow_with_the_square() -> None:
    """Generating twice as much costs twice the FLOPs with a cache, and nearly four times without."""
    model = llama()

    def flops(tokens: int, use_cache: bool) -> int:
        with torch.inference_mode(), count_flops() as counted:
            model.generate(
                ids(1, 2),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                use_cache=use_cache,
                pad_token_id=0,
            )
        return counted.total

    assert flops(32, True) / flops(16, True) < 2.5
    assert flops(32, False) / flops(16, False) > 3


def test_product_in_disguise_leaves_a_trace() -> None:
    """Multiplying and summing counts no FLOPs, but the elements that it wrote show; views and products do not."""
    a = torch.ones(8, 8)
    with count_flops() as flops:
        (a[:, :, None] * a[None]).sum(1)
        a.t().unsqueeze(0).expand(3, 8, 8)
        a @ a
    assert flops.by_operator == {"aten.mm": 2 * 8**3}
    assert flops.uncounted == {"aten.mul": 8**3, "aten.sum": 64}
    assert flops.foreign == {}


def test_operators_of_others_are_named() -> None:
    """A custom operator does uncounted work under its own name."""

    @torch.library.custom_op("gpu_env_tests::product", mutates_args=())
    def product(a: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(a.numpy() @ a.numpy())

    a = torch.ones(8, 8)
    with torch.no_grad(), count_flops() as flops:
        product(a)
    assert flops.total == 0
    assert flops.foreign == {"gpu_env_tests.product": 64}


def test_numpy_is_invisible() -> None:
    """The module head says so: what runs outside torch leaves no trace at all (so time must be looked at too)."""
    a = np.ones((64, 64))
    with count_flops() as flops:
        a @ a
    assert (flops.total, flops.uncounted) == (0, {})


def test_error_inside_is_passed_on_with_what_was_counted() -> None:
    """Work before an error counts, and nothing counts after it."""
    a = torch.ones(8, 8)

    def fail() -> None:
        with count_flops() as flops:
            seen.append(flops)
            a @ a
            raise ZeroDivisionError

    seen: list[Flops] = []
    with pytest.raises(ZeroDivisionError):
        fail()
    a @ a
    assert seen[0].total == 2 * 8**3


# ------------------------------------------------------------------------------------ forwards


@places
@pytest.mark.parametrize("use_cache", [True, False])
def test_forwards_of_a_generation(where: str, use_cache: bool) -> None:
    """With a cache each step takes one token after those that the cache holds; without, the whole text again."""
    model = llama(where)
    with torch.inference_mode(), count_forwards(model) as forwards:
        model.generate(ids(3, 5, where), max_new_tokens=4, min_new_tokens=4, use_cache=use_cache, pad_token_id=0)
    assert forwards.calls == 4
    assert forwards.tokens == ([5, 1, 1, 1] if use_cache else [5, 6, 7, 8])
    assert [one.cached for one in forwards.each] == ([0, 5, 6, 7] if use_cache else [0] * 4)
    assert [one.rows for one in forwards.each] == [3] * 4
    assert forwards.positions == 3 * sum(forwards.tokens)


def test_static_cache_says_what_it_holds() -> None:
    """A preallocated cache counts as holding what was written, not its room."""
    model = llama()
    cache = StaticCache(config=model.config, max_cache_len=32)
    with torch.inference_mode(), count_forwards(model) as forwards:
        model(ids(1, 5), past_key_values=cache)
        model(ids(1, 2), past_key_values=cache)
    assert [(one.width, one.cached) for one in forwards.each] == [(5, 0), (2, 5)]


def test_any_module_can_be_counted() -> None:
    """Layers see (rows, width, hidden), embeddings a row of tokens, and embedded prompts come by name."""
    model = llama()
    with torch.inference_mode(), count_forwards(model.model.layers[1]) as layer, count_forwards(model) as whole:
        model(inputs_embeds=torch.zeros(2, 7, HIDDEN), attention_mask=torch.ones(2, 7))
    assert (layer.calls, layer.tokens, layer.positions) == (1, [7], 14)
    assert whole.tokens == [7]
    with count_forwards(model.model.embed_tokens) as embedding:
        model.model.embed_tokens(torch.arange(9))
    assert (embedding.each[0].rows, embedding.each[0].width) == (1, 9)


def test_counting_ends_with_its_block() -> None:
    """The hook is gone afterwards, also after an error, and counters do not disturb each other."""
    layer = torch.nn.Linear(4, 4)
    with count_forwards(layer) as outer:
        with pytest.raises(RuntimeError, match="shapes"), count_forwards(layer) as inner:
            layer(torch.ones(2, 3))
        layer(torch.ones(2, 4))
    layer(torch.ones(2, 4))
    assert (outer.calls, inner.calls) == (2, 1)
    assert not layer._forward_pre_hooks


def test_call_without_a_tensor_is_refused() -> None:
    """A call whose tokens cannot be counted says so."""
    identity = torch.nn.Identity()
    with count_forwards(identity) as forwards, pytest.raises(TypeError, match="call the module with input_ids"):
        identity([1, 2, 3])
    assert forwards.calls == 0


def test_forward_called_by_name_passes_by_but_its_flops_count() -> None:
    """The module head says so: only calls of the module are forwards, and FLOPs tell of the others."""
    layer = torch.nn.Linear(4, 4)
    with torch.inference_mode(), count_forwards(layer) as forwards, count_flops() as flops:
        layer.forward(torch.ones(2, 4))
    assert (forwards.calls, flops.total) == (0, 2 * 2 * 4 * 4)


# ------------------------------------------------------------------------------------ caches and weights


@places
def test_dynamic_cache_grows_by_the_formula(where: str) -> None:
    """Each token of each row costs keys and values of every layer and KV head, and cropping alone frees nothing."""
    model = llama(where)
    with torch.inference_mode():
        cache = model(ids(3, 10, where), use_cache=True).past_key_values
        assert kv_cache_bytes(cache) == 3 * 10 * TOKEN_BYTES
        model(ids(3, 1, where), past_key_values=cache)
        assert kv_cache_bytes(cache) == 3 * 11 * TOKEN_BYTES
        cache.crop(-5)
        assert kv_cache_bytes(cache) == 3 * 11 * TOKEN_BYTES, "what crop leaves is a view of the whole"
        model(ids(3, 1, where), past_key_values=cache)
    assert kv_cache_bytes(cache) == 3 * 7 * TOKEN_BYTES
    assert kv_cache_bytes(DynamicCache()) == 0


def test_sliding_cache_holds_its_prompt_until_the_next_step() -> None:
    """A window that is a slice of a long prompt keeps the prompt alive; afterwards it is a window and the new token."""
    shape = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
    config = MistralConfig(num_hidden_layers=LAYERS, sliding_window=WINDOW, **shape)
    cache = DynamicCache(config=config)
    seen = []
    for width in (100, 1, 1):
        for layer in range(LAYERS):
            cache.update(*(torch.zeros(1, KV_HEADS, width, HEAD_DIM) for _ in range(2)), layer)
        seen.append(kv_cache_bytes(cache) / TOKEN_BYTES)
    assert seen == [100, WINDOW, WINDOW]


def test_static_cache_costs_its_room() -> None:
    """A preallocated cache costs the same before and after it is filled."""
    model = llama()
    cache = StaticCache(config=model.config, max_cache_len=32)
    with torch.inference_mode():
        model(ids(1, 3), past_key_values=cache)
    assert kv_cache_bytes(cache) == 32 * TOKEN_BYTES


def test_both_halves_of_an_encoder_decoder_cache_count() -> None:
    """Cross attention's keys and values are held too."""
    halves = DynamicCache(), DynamicCache()
    for half, width in zip(halves, (3, 20), strict=True):
        half.update(*(torch.zeros(1, 2, width, 4) for _ in range(2)), 0)
    assert kv_cache_bytes(EncoderDecoderCache(*halves)) == 2 * (3 + 20) * 2 * 4 * 4


def test_quantised_cache_costs_its_codes_and_scales() -> None:
    """Codes, block maxima and code books of a 4-bit layer count, and so does the part that is not quantised yet."""
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes (extra grading) is not installed")

    class FourBitLayer(QuantizedLayer):  # type: ignore[misc]
        def _quantize(self, tensor: torch.Tensor, axis: int) -> Any:
            return functional.quantize_4bit(tensor, quant_type="nf4")

        def _dequantize(self, quantised: Any) -> torch.Tensor:
            return functional.dequantize_4bit(*quantised)  # type: ignore[no-any-return]

    cache = DynamicCache()
    cache.layers = [FourBitLayer(residual_length=16)]
    states = [torch.randn(1, KV_HEADS, 32, HEAD_DIM) for _ in range(2)]
    cache.update(*states, 0)
    elements = KV_HEADS * 32 * HEAD_DIM
    quantised = 2 * (elements // 2 + elements // 64 * 4 + 16 * 4)
    assert kv_cache_bytes(cache) == quantised
    cache.update(*(state[:, :, :5] for state in states), 0)
    assert kv_cache_bytes(cache) == quantised + 2 * KV_HEADS * 5 * HEAD_DIM * 4


def test_quanto_cache_costs_its_codes_and_scales() -> None:
    """transformers' own 4-bit cache holds half a byte for each element, and two numbers for each group of 64."""
    pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    from transformers import QuantizedCache

    cache = QuantizedCache("quanto", llama().config, nbits=4, q_group_size=64, residual_length=16)
    states = [torch.randn(1, KV_HEADS, 32, HEAD_DIM) for _ in range(2)]
    for layer in range(LAYERS):
        cache.update(*states, layer)
    elements = 32 * TOKEN_BYTES // 4
    assert elements // 2 < kv_cache_bytes(cache) <= elements // 2 + elements // 64 * 8


def test_object_without_layers_is_no_cache() -> None:
    """A plain tuple of tensors is refused with what to use instead."""
    with pytest.raises(TypeError, match=r"tuple is no transformers Cache.*tensor_bytes"):
        kv_cache_bytes(((torch.ones(1), torch.ones(1)),))


@pytest.mark.parametrize("tied", [True, False])
def test_weights_of_a_model(tied: bool) -> None:
    """Parameters and buffers, a tied head only once; neither a forward nor a cache changes them."""
    model = llama(tie_word_embeddings=tied)
    held = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    assert weight_bytes(model) == sum(held.values())
    with torch.inference_mode():
        model(ids(1, 4))
    assert weight_bytes(model) == sum(held.values())
