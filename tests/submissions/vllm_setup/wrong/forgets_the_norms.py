"""Leaves out the norms.

fails: test_weights_of_smollm2 test_weights_of_llama test_weights_of_random_models
"""

# %% task="weight_bytes"
def weight_bytes(config: LlamaConfig, dtype: str, tie: bool | None = None) -> int:
    """Bytes of the weights of a Llama model.

    Args:
        config: the model's sizes.
        dtype: one of `DTYPE_BYTES`, the same for all weights.
        tie: whether the embedding is also the output head; `None`: as `config` says.

    Raises:
        ValueError: `dtype` is not in `DTYPE_BYTES`. The text has `dtype`.
    """
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype must be one of {sorted(DTYPE_BYTES)}, not {dtype!r}")
    width, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    layer = 2 * width * (queries + keys) + 3 * width * inner
    if config.attention_bias:
        layer += queries + 2 * keys + width
    if config.mlp_bias:
        layer += 2 * inner + width
    tied = config.tie_word_embeddings if tie is None else tie
    matrices = 1 if tied else 2
    return (matrices * config.vocab_size * width + config.num_hidden_layers * layer) * DTYPE_BYTES[dtype]
