"""A target that costs many times its draft and mostly agrees with it: the draft's layers, and more that change little.

The layers that are added have output projections near 0, so they cost what layers cost and say almost nothing. Not nothing:
whoever leaves them out writes another text. Loaded on both sides of the measurement, and in the judge.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE = {
    "vocab_size": 48, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "tie_word_embeddings": False, "initializer_range": 0.15,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
DRAFT_LAYERS, ADDED_LAYERS = 1, 14
NOISE = 0.002
GAMMA, NEW_TOKENS = 4, 24


def make_pair():
    """Target and draft, in fp32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        target = LlamaForCausalLM(LlamaConfig(**SHAPE, num_hidden_layers=DRAFT_LAYERS + ADDED_LAYERS)).eval()
        draft = LlamaForCausalLM(LlamaConfig(**SHAPE, num_hidden_layers=DRAFT_LAYERS)).eval()
        with torch.no_grad():
            for layer in target.model.layers[DRAFT_LAYERS:]:
                layer.self_attn.o_proj.weight.normal_(0, NOISE)
                layer.mlp.down_proj.weight.normal_(0, NOISE)
    weights = target.state_dict()
    draft.load_state_dict({name: weights[name] for name in draft.state_dict()})
    return target, draft


TARGET, DRAFT = make_pair()


def generate(ids):
    """Greedy text after `ids`: on the one side the submission's, on the other the plain loop. Each defines what is called."""
    models = from_transformers(TARGET), from_transformers(DRAFT)  # noqa: F821
    return speculative_generate(*models, ids, GAMMA, NEW_TOKENS, make_generator(0))[0]  # noqa: F821
