"""The models on which speed is measured, and what is called. Loaded on both sides of a measurement, and in the judge.

The one for long prompts is narrow, so that 512 tokens take milliseconds. The one for batches has weights of 14 MB: to read
them is most of a step, as it is for large models.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

NARROW = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "tie_word_embeddings": False, "initializer_range": 0.1,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
WIDE = NARROW | {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 768}
CONTEXT, AFTER_CONTEXT = 512, 8
BATCH, SHORTEST, LONGEST, AFTER_SHORT = 8, 12, 16, 8


def make(config):
    """A Llama in fp32, the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**config)).eval()


MODELS = {"narrow": make(NARROW), "wide": make(WIDE)}


def after_context(ids):
    """New tokens after one long prompt, [1, CONTEXT]."""
    new = greedy_generate(MODELS["narrow"], ids, torch.ones_like(ids), AFTER_CONTEXT, None, 0)  # noqa: F821
    return new.tolist()


def after_prompts(prompts):
    """New tokens after each of eight short prompts."""
    return batched_generate(MODELS["wide"], prompts, BATCH, AFTER_SHORT, None, 0)  # noqa: F821
