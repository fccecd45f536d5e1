"""Where the hidden checks of `quantization` get expected values from: never the reference solution or its formulas.

bitsandbytes    codes and scales on the CPU, bit for bit, of numbers that are not within rounding of a tie
levels          every code is tried, in fp64, and the nearest is taken
transformers    small Llamas whose weights bitsandbytes quantised and dequantised; SmolLM2 as it is
"""

from __future__ import annotations

import os
import random
import tempfile
from dataclasses import dataclass
from typing import Any

import torch

from autograder import suite
from autograder.judging.oracle import oracle
from gpu_env import models

MODEL = "SmolLM2-135M-Instruct"
TEXT_TOKENS = 256
REQUEST = "<|im_start|>user\nName the planets of the solar system.<|im_end|>\n<|im_start|>assistant\n"
ANSWER_TOKENS = 8


@oracle
def bnb() -> Any:
    """bitsandbytes' functions, imported once per run (6 s on a busy machine), and never compiled.

    Its import makes torch's compiler make a cache folder, which would stay in /tmp.
    """
    torch.compiler.set_stance("force_eager")
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        import bitsandbytes.functional
    if before is None:
        del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    else:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = before
    return bitsandbytes.functional


def normal(rng: random.Random, *shape: int) -> torch.Tensor:
    """Random fp32 numbers of a normal distribution."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rng.getrandbits(60)))


def off_int8_ties(x: torch.Tensor) -> torch.Tensor:
    """`x` [rows, cols] with 0 where an int8 code would depend on the order of fp32 operations (within 1e-3 of a tie)."""
    exact = x.double() * 127 / x.double().abs().amax(1, keepdim=True)
    return torch.where(((exact % 1) - 0.5).abs() < 1e-3, 0.0, x)


def off_nf4_ties(x: torch.Tensor, blocksize: int = 64) -> torch.Tensor:
    """`x` with 0 where an NF4 code would depend on the rounding of the codebook (within 1e-5 of the middle)."""
    code = bnb().get_4bit_type("nf4", device="cpu").double()
    flat = x.reshape(-1).double().clone()
    for block in flat.split(blocksize):
        normed = block / block.abs().max().clamp(min=1e-300)
        near = (normed[:, None] - ((code[1:] + code[:-1]) / 2)[None]).abs().amin(1) < 1e-5
        block[near] = 0.0
    return flat.reshape(x.shape).to(x.dtype)


def int8_codes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales [rows, 1] of bitsandbytes, for the rows of fp16 numbers `x`."""
    codes, absmax, _ = bnb().int8_vectorwise_quant(x.half())
    return codes, (absmax / 127)[:, None]


def nf4_codes(w: torch.Tensor, blocksize: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Packed codes, absmax and the dequantised numbers of bitsandbytes."""
    packed, state = bnb().quantize_4bit(w.reshape(-1), blocksize=blocksize, quant_type="nf4")
    return packed.reshape(-1), state.absmax, bnb().dequantize_4bit(packed, state).reshape(w.shape)


def nearest_error(w: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """How far each number of `w` [groups, n] is from the nearest of its group's levels [groups, k], in fp64."""
    return (w.double()[:, :, None] - levels.double()[:, None, :]).abs().amin(2)


def llama_logits(config: dict[str, Any], tensors: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """What transformers' Llama with these weights says about `ids`."""
    with torch.inference_mode():
        logits: torch.Tensor = llama(config, tensors)(input_ids=ids).logits
    return logits


def llama(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    """transformers' Llama with these weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    model.load_state_dict(tensors)
    return model


def dequantized(tensors: dict[str, torch.Tensor], names: list[str], scheme: str) -> dict[str, torch.Tensor]:
    """`tensors` with the weights of the layers `names` quantised and dequantised by bitsandbytes."""
    made = dict(tensors)
    for name in names:
        w = tensors[f"{name}.weight"]
        if scheme == "nf4":
            made[f"{name}.weight"] = nf4_codes(w)[2]
        else:
            codes, scale = int8_codes(w)
            made[f"{name}.weight"] = codes * scale
    return made


def tensor_bytes(model: torch.nn.Module) -> int:
    """Bytes of the memory that the tensors of a model lie in, each piece once."""
    pieces = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
    return sum({piece.data_ptr(): piece.nbytes() for piece in pieces}.values())


@dataclass(frozen=True)
class RealModel:
    """SmolLM2 and what it says: in fp32 about a text, and with bitsandbytes' int8 weights to a request."""

    ids: torch.Tensor
    """The text, [TEXT_TOKENS]."""
    loss: float
    """Mean loss on the text."""
    last: torch.Tensor
    """Logits after the last 8 tokens of the text."""
    prompt: list[int]
    answer: list[int]
    held: dict[str, int]
    """Bytes of all tensors, by scheme."""


@oracle
def smollm2() -> RealModel:
    """SmolLM2, loaded once per run. Raises `gpu_env.models.ModelMissing`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = models.find(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = (suite.repository() / "LICENSE").read_text(encoding="utf-8")
    ids: torch.Tensor = tokenizer(text, return_tensors="pt")["input_ids"][0][:TEXT_TOKENS]
    prompt: torch.Tensor = tokenizer(REQUEST, return_tensors="pt")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    held = dict.fromkeys(("fp32", "int8"), tensor_bytes(model))
    with torch.inference_mode():
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        for name, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear) and name != "lm_head":
                codes, scale = int8_codes(layer.weight)
                held["int8"] += codes.nbytes + scale.nbytes - layer.weight.nbytes
                layer.weight.copy_(codes * scale)
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=ANSWER_TOKENS,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    best = torch.cat(out.logits).topk(2, dim=1).values
    if (margin := float((best[:, 0] - best[:, 1]).min())) < 0.3:
        raise RuntimeError(f"A token of the answer leads by {margin:.3f} only; take another request.")
    answer = out.sequences[0, prompt.shape[1] :].tolist()
    return RealModel(ids, loss(logits, ids), logits[-8:].clone(), prompt[0].tolist(), answer, held)


def loss(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """Mean negative log-likelihood of each token but the first."""
    return torch.nn.functional.cross_entropy(logits[:-1].float(), ids[1:]).item()
