"""Where the hidden checks of `batched_inference` get expected values from: transformers, numpy, a real vLLM.

`tiny`      a small Llama or GPT-2 with random weights, in the judge
`alone`     greedy text after one prompt alone, by transformers' `generate`: no batch, no pad
`Prompts`   what SmolLM2 says after a few dozen prompts, in fp32, once for all submissions
`server`    a real vLLM with SmolLM2 in fp32, once for all submissions
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import httpx
import torch

from autograder.checks import fail
from autograder.judging.oracle import oracle
from autograder.judging.timed import NotHere
from gpu_env import models, vllm_engine
from grading.batched_inference.test_public import Watched

MODEL = "SmolLM2-135M-Instruct"
SIZE = 48
"""Tokens of the tiny models."""
LLAMA = {
    "vocab_size": SIZE, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 3, "max_position_embeddings": 128, "tie_word_embeddings": False, "initializer_range": 0.15,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
GPT2 = {
    "vocab_size": SIZE, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "initializer_range": 0.15,
    "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
GAP = 1e-3
"""By how much the largest logit must be ahead, so that no order of fp32 operations changes it: errors are below 1e-4."""
SMOL_GAP = 2e-2
"""The same for 30 layers and logits of about 20, in transformers and in vLLM."""


@oracle
def transformers() -> Any:
    """The package, imported once per run."""
    import transformers
    import transformers.models.gpt2.modeling_gpt2
    import transformers.models.llama.modeling_llama

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # what the checks compute is small, and a second thread would only be waited for
    return transformers


def tiny(kind: str, rng: random.Random) -> Any:
    """A model of `kind`, "Llama" or "GPT2", with random weights in fp32."""
    package = transformers()
    config = package.LlamaConfig(**LLAMA) if kind == "Llama" else package.GPT2Config(**GPT2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.getrandbits(60))
        made = package.LlamaForCausalLM(config) if kind == "Llama" else package.GPT2LMHeadModel(config)
    return made.eval()


def watched(model: Any) -> Watched:
    """The model as checks give it to submissions."""

    def read(ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        cache = transformers().DynamicCache(config=model.config) if cache is None else cache
        with torch.inference_mode():
            out = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
        return out.logits.clone(), cache

    return Watched(read, model.config.vocab_size, model.config.max_position_embeddings)


def alone(model: Any, prompt: list[int], most: int, gap: float = GAP) -> list[int] | None:
    """What transformers writes after one prompt, without any end; `None` where it hangs on less than `gap`."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        said = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=most, eos_token_id=None,
            pad_token_id=0, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    best = torch.cat(said.logits).topk(2).values
    if float((best[:, 0] - best[:, 1]).min()) < gap:
        return None
    found: list[int] = said.sequences[0, len(prompt) :].tolist()
    return found


def ended(text: list[int], eos: int | None) -> list[int]:
    """The text up to and with its end."""
    return text[: text.index(eos) + 1] if eos is not None and eos in text else text


def rows(model: Any, rng: random.Random, lengths: list[int], most: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of these lengths, and what the model writes after each."""
    prompts, texts = [], []
    for length in lengths:
        text = None
        while text is None:
            tokens = [rng.randrange(SIZE) for _ in range(length)]
            text = alone(model, tokens, most)
        prompts.append(tokens)
        texts.append(text)
    return prompts, texts


def an_end(texts: list[list[int]], rng: random.Random) -> int:
    """A token that ends one of the texts in its first half, and if it can be not all of them."""
    early = sorted({token for text in texts for token in text[: len(text) // 2] if token})
    some = [token for token in early if not all(token in text for text in texts)]
    return rng.choice(some or early)


# --------------------------------------------------------------------------------------------------------------- SmolLM2

EOS, PAD = 2, 0
"""SmolLM2's end of text, and a token that stands in no prompt."""
NEW = 10
QUESTIONS = (
    "What is the capital of {}?",
    "In which continent is {}?",
    "Name one food from {}.",
    "Which language do people speak in {}?",
)
PLACES = (
    "France", "Japan", "Egypt", "Brazil", "Norway", "Kenya", "Peru", "Italy", "India", "Canada", "Greece", "Thailand",
)  # fmt: skip
BEGINNINGS = (
    "The {} is a large animal that lives in",
    "Once upon a time there was a little {} who",
    "To keep a {} healthy, you should first",
    "My neighbour's {} likes to",
)
ANIMALS = ("cat", "horse", "fox", "whale", "mouse", "camel", "duck", "wolf", "goat", "bear", "owl", "frog")
MANY = 6
LENGTH = 16
"""Tokens of a question; a beginning has fewer. So every batch of both has pads."""


@dataclass(frozen=True)
class Prompt:
    """Tokens, and the `NEW` tokens that SmolLM2 writes after them, or fewer if the last is `EOS`."""

    tokens: list[int]
    text: list[int]


@oracle
def smollm_prompts() -> list[Prompt]:
    """Questions in SmolLM2's chat format, whose answers end early, and beginnings of texts, which go on."""
    package = transformers()
    folder = models.find(MODEL)
    model = package.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = package.AutoTokenizer.from_pretrained(folder)
    draw, found = random.Random(7), []
    for ends in (True, False):
        many = 0
        while many < MANY // 2:
            if ends:
                question = draw.choice(QUESTIONS).format(draw.choice(PLACES))
                written = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            else:
                written = draw.choice(BEGINNINGS).format(draw.choice(ANIMALS))
            tokens = tokenizer(written)["input_ids"]
            text = alone(model, tokens, NEW, SMOL_GAP)
            if text is None or (EOS in text) != ends or any(tokens == prompt.tokens for prompt in found):
                continue
            if ends != (len(tokens) == LENGTH):
                continue
            if not ends and alone(model, [PAD] * (LENGTH - len(tokens)) + tokens, NEW, 0.0) == text:
                continue  # who sees the pads must write another text
            found.append(Prompt(tokens, ended(text, EOS)))
            many += 1
    return found


def smollm_choice(rng: random.Random, many: int) -> tuple[list[list[int]], int, list[list[int]]]:
    """Prompts, the most new tokens, and what SmolLM2 writes after each. Some texts end before that, some do not end."""
    prompts = smollm_prompts()
    while True:
        chosen, most = rng.sample(prompts, many), rng.randint(NEW - 3, NEW)
        chosen.sort(key=lambda prompt: prompt.text[-1] != EOS)  # the longer ones first
        texts = [prompt.text[:most] for prompt in chosen]
        if any(len(text) < most for text in texts) and any(text[-1] != EOS for text in texts):
            return [prompt.tokens for prompt in chosen], most, texts


# ------------------------------------------------------------------------------------------------------------------ vLLM


@oracle
def server() -> vllm_engine.Server:
    """A real server in fp32 for the whole run, beside the sandbox. Ends with this process."""
    try:
        return vllm_engine.Server(models.find(MODEL), ("--dtype", "float32"))
    except vllm_engine.EngineUnavailable as error:
        if vllm_engine.obstacle():
            raise NotHere(f"No real vLLM here. {error}") from None
        raise


SETTINGS = {
    "temperature": (int, float), "top_p": (int, float), "top_k": (int,), "min_p": (int, float), "max_tokens": (int,),
    "min_tokens": (int,), "ignore_eos": (bool,), "repetition_penalty": (int, float), "presence_penalty": (int, float),
    "frequency_penalty": (int, float),
}  # fmt: skip
"""What of SamplingParams is handed on, and of which types it is."""
MOST = 64


def generated(prompts: list[list[int]], params: list[dict[str, Any]]) -> list[Any]:
    """What the real server writes after each prompt: tokens, the reason why they end, text."""
    engine = server()
    for each in params:
        if each.keys() != SETTINGS.keys() or any(type(each[name]) not in kinds for name, kinds in SETTINGS.items()):
            fail("The engine was asked with SamplingParams that it does not understand.", value=each)
        if each["max_tokens"] > MOST:
            fail("The engine was asked for far too many tokens.", value=each["max_tokens"], expected=f"at most {MOST}")
    groups = [(prompts, params[0])] if all(each == params[0] for each in params) else None
    groups = groups or [([prompt], each) for prompt, each in zip(prompts, params, strict=True)]
    answers = []
    with httpx.Client(transport=httpx.HTTPTransport(uds=engine.socket), base_url=engine.url, timeout=60) as client:
        for group, settings in groups:
            body = {"model": engine.model, "prompt": group, "return_token_ids": True, **settings}
            response = client.post("/v1/completions", json=body)
            if response.status_code == 400:
                fail("vLLM refuses these SamplingParams, or prompts.", value=response.text)
            response.raise_for_status()
            choices = sorted(response.json()["choices"], key=lambda choice: choice["index"])
            answers += [[choice["token_ids"], choice["finish_reason"], choice["text"]] for choice in choices]
    return answers


# ----------------------------------------------------------------------------------------------------------------- speed


@oracle
def speed() -> Any:
    """The models whose speed is measured, and the sizes: the module that both sides load."""
    transformers()
    from grading.batched_inference import speed

    return speed


def speed_text(model: Any, size: int, length: int, new: int, rng: random.Random) -> tuple[list[int], list[int]]:
    """A prompt of `length` tokens for one of the models whose speed is measured, and what it writes after it."""
    while True:
        prompt = [rng.randrange(1, size) for _ in range(length)]
        if (text := alone(model, prompt, new)) is not None and 0 not in text:  # 0 is the pad token there
            return prompt, text
