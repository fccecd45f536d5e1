"""Remembers what it has counted, by all that a count depends on.

twin of: D2 D3
"""

# %% helpers="helpers"
import functools
import math


@functools.cache
def parameters(vocab, width, inner, layers, heads, kv_heads, size, attention_bias, mlp_bias):
    queries, keys = heads * size, kv_heads * size
    layer = 2 * width * (queries + keys) + 3 * width * inner + 2 * width
    layer += attention_bias * (queries + 2 * keys + width) + mlp_bias * (2 * inner + width)
    return vocab * width + layers * layer + width


# %% task="weight_bytes"
def weight_bytes(config, dtype, tie=None):
    if dtype not in DTYPE_BYTES:
        raise ValueError("dtype")
    c = config
    found = parameters(
        c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads,
        c.num_key_value_heads, c.head_dim, c.attention_bias, c.mlp_bias,
    )
    tied = c.tie_word_embeddings if tie is None else tie
    return (found + (not tied) * c.vocab_size * c.hidden_size) * DTYPE_BYTES[dtype]
