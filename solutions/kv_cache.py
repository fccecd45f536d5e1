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
# # The KV cache: how many bytes, how many users, which block
#
# A language model that writes its 1,000th token needs the attention keys and values of the 999 before it. Keeping them
# is the **KV cache**. Without it, each new token would compute all earlier ones again. With it, memory becomes the
# limit: how many people a server can serve at once is decided by the bytes per token and by how well they are packed.
# In this assignment you
#
# 1. count the bytes that one token costs, for every kind of attention layer in use today (`kv_bytes_per_token`),
# 2. count the bytes that a set of sequences occupies, laid out contiguously or in pages (`kv_cache_bytes`),
# 3. say how many requests a given memory serves at once (`max_concurrency`),
# 4. and how long they may be (`max_model_len_that_fits`),
# 5. build the allocator that hands out the pages, shares them between requests and remembers prefixes (`BlockPool`).
#
# Tasks 1 to 4 take about 25 minutes each, task 5 about 80. No GPU is needed: you compute what a GPU would have to hold.
# You should know Python, and what the query, key and value of an attention head are.
#
# | term | means |
# |---|---|
# | `n_heads`, `n_kv_heads` | heads that ask (queries), and heads that are stored (keys and values), in one layer |
# | MHA, GQA, MQA | multi-head, grouped-query, multi-query attention: `n_kv_heads` = `n_heads`, fewer, one |
# | MLA | multi-head latent attention (DeepSeek): one compressed vector per token instead of keys and values |
# | sliding window $W$ | a layer whose token attends to itself and the $W - 1$ tokens before it |
# | tensor parallelism, `tp` | one model split over `tp` devices ("ranks"); each holds some heads of every layer |
# | block (page) | room for `block_size` tokens in all layers; sequences get whole blocks |
# | prefix caching | blocks of an earlier request are used again by a later one that begins with the same tokens |
# | GiB, GB | $2^{30}$ bytes, $10^9$ bytes. All functions here take and return plain bytes |
#
# **How it is graded.** Only the cells of the five tasks and the one cell of imports and helpers count. The next cell,
# with the course's classes, is replaced by the original when grading; all others are yours, change them freely. The
# cell `check(...)` after each task runs its public checks. One that fails shows the last lines that your code printed.
# Hidden checks look at the same rules on other inputs: everything they ask for is written here. One call of your code
# may take 5 s. A later task that calls an earlier one calls *your* earlier one, so an error in task 1 may cost points
# in tasks 2 to 4 too.
#
# **Rules for all tasks.** A count that is no `int`, or a `bool`, is a `TypeError`; a count outside its range is a
# `ValueError`. `check_count`, below, does this for you. Where a docstring says that the text names an argument, the
# error's text contains that name; other errors may say what they like. If several errors apply to one call, any of them
# is right. Inputs are never changed.

# %% given="kv_spec"
import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass


class OutOfBlocksError(ValueError):
    """More blocks were asked for than are free."""


class InfeasibleError(ValueError):
    """The memory does not suffice. `shortfall_bytes` more would."""

    def __init__(self, message: str, shortfall_bytes: int) -> None:
        super().__init__(message)
        self.shortfall_bytes = shortfall_bytes


def check_count(value: int, name: str, minimum: int = 0) -> None:
    """Raise `TypeError` if `value` is no int (a bool is none), `ValueError` if below `minimum`; the text has `name`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r} of type {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {value}")


@dataclass(frozen=True)
class Quantization:
    """How keys and values are stored in fewer bits: groups of `group_size` neighbours in a head share one scale.

    `bits` per value (2, 4 or 8); `scale_bytes` and `zero_point_bytes` per group (0 bytes: symmetric, no zero point).
    """

    bits: int
    group_size: int
    scale_bytes: int = 2
    zero_point_bytes: int = 0

    def __post_init__(self) -> None:
        check_count(self.bits, "bits")
        if self.bits not in (2, 4, 8):
            raise ValueError(f"bits must be 2, 4 or 8, not {self.bits}")
        check_count(self.group_size, "group_size", 1)
        check_count(self.scale_bytes, "scale_bytes", 1)
        check_count(self.zero_point_bytes, "zero_point_bytes")


@dataclass(frozen=True)
class AttentionLayer:
    """A layer that caches a key and a value per KV head and token: MHA, GQA or MQA.

    `head_dim` is the length of a key, `value_head_dim` that of a value (`None`: the same). `dtype_bytes` is the size of
    one number (fp32 4, fp16 and bf16 2, fp8 1); with `quantization` it does not matter. `window` is the sliding window
    in tokens, `None`: full attention.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    value_head_dim: int | None = None
    dtype_bytes: int = 2
    window: int | None = None
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        for name in ("n_heads", "n_kv_heads", "head_dim", "dtype_bytes"):
            check_count(getattr(self, name), name, 1)
        if self.value_head_dim is None:
            object.__setattr__(self, "value_head_dim", self.head_dim)  # the way to set a field of a frozen dataclass
        check_count(self.value_head_dim, "value_head_dim", 1)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads must divide n_heads, but {self.n_heads} heads cannot share {self.n_kv_heads}")
        if self.window is not None:
            check_count(self.window, "window", 2)
        if self.quantization is not None:
            if not isinstance(self.quantization, Quantization):
                raise TypeError(f"quantization must be a Quantization or None, not {self.quantization!r}")
            for dim in (self.head_dim, self.value_head_dim):
                if dim % self.quantization.group_size or dim * self.quantization.bits % 8:
                    raise ValueError(
                        f"quantization {self.quantization} does not divide a head of {dim} into whole groups and bytes"
                    )


@dataclass(frozen=True)
class LatentLayer:
    """Multi-head latent attention: per token, `kv_lora_rank` numbers of latent and `qk_rope_head_dim` of rotary key."""

    n_heads: int
    kv_lora_rank: int
    qk_rope_head_dim: int
    dtype_bytes: int = 2

    def __post_init__(self) -> None:
        for name in ("n_heads", "kv_lora_rank", "qk_rope_head_dim", "dtype_bytes"):
            check_count(getattr(self, name), name, 1)


@dataclass(frozen=True)
class KVSpec:
    """The layers of a model, as far as its KV cache is concerned. They need not be alike."""

    layers: tuple[AttentionLayer | LatentLayer, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.layers, tuple) or not all(
            isinstance(x, AttentionLayer | LatentLayer) for x in self.layers
        ):
            raise TypeError("layers must be a tuple of AttentionLayer and LatentLayer")
        if not self.layers:
            raise ValueError("layers must not be empty")

    @classmethod
    def uniform(cls, n_layers: int, layer: AttentionLayer | LatentLayer) -> "KVSpec":
        """A model of `n_layers` equal layers."""
        check_count(n_layers, "n_layers", 1)
        return cls((layer,) * n_layers)


@dataclass(frozen=True)
class MemoryBudget:
    """The memory of one device (one rank) and what is not left for the KV cache. All in bytes but `utilization`.

    `utilization` is the share of `total_bytes` that the server may use at all, above 0 and up to 1. `weight_bytes` and
    `peak_activation_bytes` are what this rank's weights, and the largest intermediate results of a step, take.
    """

    total_bytes: int
    utilization: float
    weight_bytes: int
    peak_activation_bytes: int

    def __post_init__(self) -> None:
        check_count(self.total_bytes, "total_bytes", 1)
        if isinstance(self.utilization, bool) or not isinstance(self.utilization, int | float):
            raise TypeError(f"utilization must be a number, not {self.utilization!r}")
        if not 0 < self.utilization <= 1:
            raise ValueError(f"utilization must be above 0 and at most 1, not {self.utilization}")
        check_count(self.weight_bytes, "weight_bytes")
        check_count(self.peak_activation_bytes, "peak_activation_bytes")


HashFunction = Callable[[Hashable, tuple[int, ...], tuple[Hashable, ...]], Hashable]


def hash_block(parent_hash: Hashable, token_ids: tuple[int, ...], extra_keys: tuple[Hashable, ...]) -> str:
    """The default hash of a full block: it covers its tokens and, through `parent_hash`, all tokens before them."""
    return hashlib.sha256(repr((parent_hash, token_ids, extra_keys)).encode()).hexdigest()


# %% helpers="helpers"
# Your imports and helpers. Everything that several tasks share goes here; this cell is graded together with them.

# %% [markdown]
# Two specifications to play with. `LLAMA_3_8B` has 32 layers with 32 query heads that share 8 KV heads of 128 numbers,
# in bf16.

# %%
LLAMA_3_8B = KVSpec.uniform(32, AttentionLayer(n_heads=32, n_kv_heads=8, head_dim=128))
SMOLLM2_135M = KVSpec.uniform(30, AttentionLayer(n_heads=9, n_kv_heads=3, head_dim=64))

# %% [markdown]
# ## Task 1: bytes per token (about 25 minutes)
#
# For each token, a layer stores one key and one value **per KV head** (not per query head: that is the whole point of
# GQA). With $n$ KV heads, keys of $d_k$ numbers, values of $d_v$ and $b$ bytes per number:
#
# $$\text{bytes} = n\,(d_k + d_v)\,b \qquad\text{and for $L$ equal layers with } d_k = d_v = d:\quad 2\,L\,n\,d\,b .$$
#
# *Example.* Llama-3-8B: $2 \cdot 32 \cdot 8 \cdot 128 \cdot 2 = 131{,}072$ bytes (128 KiB). Llama-2-7B has as many
# layers and heads but no sharing (32 KV heads): 524,288 bytes (512 KiB), four times as much. SmolLM2-135M: 23,040
# bytes.
#
# **Latent layers (MLA).** Keys and values of all heads are computed from one latent vector, so only that is stored,
# with one rotary key that all heads share: $(\text{kv\_lora\_rank} + \text{qk\_rope\_head\_dim})\, b$. There is nothing
# to store twice: **no factor 2**, no heads. *Example.* DeepSeek-V3, 61 layers, bf16:
# $61 \cdot (512 + 64) \cdot 2 = 70{,}272$ bytes. As plain MHA the same model (128 heads, keys of 192 and values of 128
# numbers) would need 4,997,120.
#
# **Quantised layers.** Each number takes `bits` bits, and each group of `group_size` numbers of a head brings one scale
# (and perhaps a zero point). Keys and values are quantised separately, and a group never crosses heads: a key of one
# head takes
# $d_k \cdot \text{bits}/8 + (d_k / \text{group\_size}) \cdot (\text{scale\_bytes} + \text{zero\_point\_bytes})$ bytes,
# a value the same with $d_v$. *Example.* Llama-3-8B with 4 bits in groups of 64 and 2-byte scales: a head takes
# $64 + 2 \cdot 2 = 68$ bytes, a token $32 \cdot 8 \cdot 2 \cdot 68 = 34{,}816$. That is 3.76 times smaller than bf16,
# not 4 times: scales are not free.
#
# **Tensor parallelism.** You count what is stored on *one* of `tp` ranks. Query heads are split evenly, so `tp` must
# divide `n_heads` (of latent layers too). KV heads are split if there are enough of them, else repeated: a rank stores
# $n_\text{local} = \max(1, \lfloor n / tp \rfloor)$ of them, and `tp` must divide $n$ or be divided by it. A latent
# cannot be split by heads: every rank stores all of it. *Example.* Llama-3-8B: `tp=4` gives 2 heads and 32,768 bytes;
# `tp=8` and `tp=16` both 1 head and 16,384. On 16 ranks each head is stored twice.
#
# A sliding window changes nothing here: the new token is written all the same. How many *stay* is the business of task
# 2.
#
# *Seen in published course notebooks:* `n_heads` instead of `n_kv_heads` (4 times too much for Llama-3-8B); "0.5 KB per
# token for a 7B model", which is off by a factor of 1,000. *Other common mistakes:* a factor 2 on MLA; MLA divided by
# `tp`; no KV head at all on a rank when there are more ranks than heads; scales forgotten, or counted with the bits of
# the payload.


# %% task="kv_bytes_per_token"
def kv_bytes_per_token(spec: KVSpec, tp: int = 1) -> int:
    """Bytes that one more token writes to the KV cache of one rank, summed over all layers.

    Args:
        spec: the layers of the model. They may differ.
        tp: number of ranks of tensor parallelism, at least 1.

    Raises:
        TypeError: `tp` is a bool or no int. The text names `tp`.
        ValueError: `tp` is below 1, or the heads of some layer cannot be spread over `tp` ranks: `tp` must divide
            `n_heads`, and must divide `n_kv_heads` or be a multiple of it. The text names `tp`.
    """
    ### BEGIN SOLUTION
    check_count(tp, "tp", 1)
    total = 0
    for layer in spec.layers:
        if layer.n_heads % tp:
            raise ValueError(f"tp={tp} does not divide the {layer.n_heads} query heads of a layer")
        if isinstance(layer, LatentLayer):
            total += (layer.kv_lora_rank + layer.qk_rope_head_dim) * layer.dtype_bytes
            continue
        if layer.n_kv_heads % tp and tp % layer.n_kv_heads:
            raise ValueError(
                f"tp={tp} neither divides the {layer.n_kv_heads} KV heads of a layer nor is a multiple of them"
            )
        n_local = max(1, layer.n_kv_heads // tp)
        for dim in (layer.head_dim, layer.value_head_dim):
            if layer.quantization is None:
                total += n_local * dim * layer.dtype_bytes
            else:
                q = layer.quantization
                total += n_local * (dim * q.bits // 8 + dim // q.group_size * (q.scale_bytes + q.zero_point_bytes))
    return total
    ### END SOLUTION


# %% [markdown]
# Try it on models that you know. `n_heads`, `n_kv_heads` and `head_dim` stand in every model's `config.json` (as
# `num_attention_heads`, `num_key_value_heads`, and `head_dim` or `hidden_size / num_attention_heads`).

# %%
for name, spec in {"Llama-3-8B": LLAMA_3_8B, "SmolLM2-135M": SMOLLM2_135M}.items():
    print(f"{name}: {kv_bytes_per_token(spec):,} bytes per token")

four_bits = Quantization(bits=4, group_size=64)
llama_4_bits = KVSpec.uniform(32, AttentionLayer(n_heads=32, n_kv_heads=8, head_dim=128, quantization=four_bits))
print(f"Llama-3-8B, 4 bits: {kv_bytes_per_token(llama_4_bits):,} bytes per token, worked out above: 34,816")

# %% [markdown]
# ## Task 2: bytes of a set of sequences (about 25 minutes)
#
# **Contiguous** (`block_size=None`), as in Hugging Face transformers: each sequence holds as many tokens as it has. A
# sliding-window layer drops what no later token can see. The next token attends to itself and to the $W - 1$ before it,
# so after each step $\min(T, W - 1)$ tokens stay (`DynamicSlidingWindowLayer` in transformers' `cache_utils.py` does
# exactly this).
#
# **Paged** (`block_size=B`), as in vLLM: each sequence gets whole blocks, $\lceil T / B \rceil$ of them. The last one
# is partly empty; that waste is at most $B - 1$ tokens per sequence, while a server that reserves the maximum length
# for everybody may waste most of its memory. A sliding-window layer frees a block when its last token has left the
# window. While one token is being computed it needs the $W - 1$ old tokens and the new one, and these need not begin at
# a block's edge, hence one block more: it holds at most $\lceil W / B \rceil + 1$ blocks (`SlidingWindowSpec` in vLLM's
# `kv_cache_interface.py`, with one token in flight):
#
# $$\text{blocks} = \min\left(\lceil T/B \rceil,\; \lceil W/B \rceil + 1\right).$$
#
# In both cases the bytes are summed over sequences and layers, with the bytes per token of task 1. A sequence of length
# 0 holds nothing.
#
# *Examples.* Llama-3-8B, one sequence of 100 tokens: contiguous $100 \cdot 131{,}072 = 13{,}107{,}200$ bytes. With
# blocks of 16: 7 blocks, $112 \cdot 131{,}072 = 14{,}680{,}064$ bytes, 12 tokens wasted. Mistral-7B-v0.1 has
# Llama-3-8B's numbers and $W = 4096$ in all layers; at 32,768 tokens it keeps 4,095 tokens (536,739,840 bytes)
# contiguously, and $256 + 1$ blocks of 16 tokens (538,968,064 bytes) paged. Without the window it would be
# 4,294,967,296.
#
# *Common mistakes:* rounding down; $W$ instead of $W - 1$ (contiguous); rounding the *sum* of the lengths up instead of
# each length (two sequences never share a half-full block); applying one layer's window to all layers.


# %% task="kv_cache_bytes"
def kv_cache_bytes(spec: KVSpec, seq_lens: Sequence[int], block_size: int | None = None, tp: int = 1) -> int:
    """Bytes that the KV cache of `seq_lens` occupies on one rank.

    Args:
        spec: the layers of the model. They may differ; some may have a window.
        seq_lens: tokens of each sequence, 0 or more: a list, a tuple or another sequence of Python ints (`check_count`
            refuses numpy's). Empty: 0 bytes. Not changed.
        block_size: tokens per block, at least 1; `None` for a contiguous cache.
        tp: as in `kv_bytes_per_token`.

    Raises:
        TypeError: a length, `block_size` or `tp` is a bool or no int. The text names `seq_lens`, `block_size` or `tp`.
        ValueError: a length is negative, `block_size` below 1, `tp` impossible. The text names it.
    """
    ### BEGIN SOLUTION
    if block_size is not None:
        check_count(block_size, "block_size", 1)
    for length in seq_lens:
        check_count(length, "seq_lens")
    kv_bytes_per_token(spec, tp)  # an impossible tp is an error for an empty batch too
    total = 0
    for layer in spec.layers:
        window = layer.window if isinstance(layer, AttentionLayer) else None
        slots = 0
        for length in seq_lens:
            if block_size is None:
                slots += length if window is None else min(length, window - 1)
            else:
                blocks = -(-length // block_size)
                if window is not None:
                    blocks = min(blocks, -(-window // block_size) + 1)
                slots += blocks * block_size
        total += slots * kv_bytes_per_token(KVSpec((layer,)), tp)
    return total
    ### END SOLUTION


# %% [markdown]
# How much does paging waste? Draw it: a batch of random lengths, laid out in blocks of different sizes.

# %%
import random

import matplotlib.pyplot as plt

lengths = [random.randint(1, 2048) for _ in range(64)]
sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256]
used = kv_cache_bytes(SMOLLM2_135M, lengths)
waste = [kv_cache_bytes(SMOLLM2_135M, lengths, block_size=size) / used - 1 for size in sizes]
reserved = kv_cache_bytes(SMOLLM2_135M, [2048] * len(lengths)) / used - 1

fig, ax = plt.subplots(figsize=(6, 3.5))
ax.semilogx(sizes, [100 * share for share in waste], "o-", base=2, label="paged")
ax.axhline(100 * reserved, color="tab:red", linestyle="--", label="maximum length reserved for everybody")
ax.set(xlabel="block size (tokens)", ylabel="waste (% of what is used)", title="64 sequences of 1 to 2,048 tokens")
ax.legend()
plt.show()

# %% [markdown]
# And what do the kinds of attention differ by? The same model (32 layers, 32 heads of 128), with each of them:

# %%
kinds = {
    "MHA": AttentionLayer(32, 32, 128),
    "GQA, 8 KV heads": AttentionLayer(32, 8, 128),
    "GQA, 8 KV heads, int8": AttentionLayer(32, 8, 128, quantization=Quantization(bits=8, group_size=128)),
    "GQA, 8 KV heads, window 4,096": AttentionLayer(32, 8, 128, window=4096),
    "MQA": AttentionLayer(32, 1, 128),
    "MLA, 512 + 64": LatentLayer(32, kv_lora_rank=512, qk_rope_head_dim=64),
}
tokens = [2**power for power in range(9, 18)]

fig, ax = plt.subplots(figsize=(6, 4))
for kind, layer in kinds.items():
    gib = [kv_cache_bytes(KVSpec.uniform(32, layer), [length], block_size=16) / 2**30 for length in tokens]
    ax.loglog(tokens, gib, "o-", base=2, markersize=3, label=kind)
ax.set(xlabel="sequence length (tokens)", ylabel="KV cache (GiB)", title="One sequence, 32 layers, 16-bit unless int8")
ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Task 3: how many requests at once (about 25 minutes)
#
# A server measures once, at its start, what is left for the KV cache, and cuts it into blocks (nano-vllm's
# `allocate_kv_cache` and vLLM do the same):
#
# $$\begin{aligned}
# \text{budget} &= \lfloor \text{total} \cdot \text{utilization} \rfloor - \text{weights} - \text{peak activation} \\
# \text{page} &= B \cdot \text{kv\_bytes\_per\_token} \\
# \text{num\_blocks} &= \lfloor \text{budget} / \text{page} \rfloor \\
# \text{blocks per request} &= \lceil \text{kv\_cache\_bytes}([\text{max\_model\_len}], B) / \text{page} \rceil \\
# \text{concurrency} &= \text{num\_blocks} / \text{blocks per request}
# \end{aligned}$$
#
# In Python the first line begins `math.floor(total_bytes * utilization)`.
#
# A page is one block's share of *all* layers together. With full attention everywhere, a request takes
# $\lceil \text{max\_model\_len} / B \rceil$ of them; layers with a window need less than a whole page per block, which
# is why the bytes are divided and rounded up. (For models that mix kinds of layers, vLLM keeps a block table per kind;
# its figure may then differ a little from this one.) The utilization applies to the total only: weights do not shrink
# with it.
#
# The answer is a `float`, not rounded, as in vLLM's log. Below 1 it is an answer too: a request of that length cannot
# be served, but shorter ones can. Only if not a single page fits, there is nothing to say: raise `InfeasibleError` with
# the bytes that are missing to one page. A wrong argument is its own error even then: check the arguments first.
#
# *Example from a real log* (vLLM 0.32 on a CPU; SmolLM2-135M in bf16, 1 GiB for the cache, $B = 32$): a page has
# $32 \cdot 23{,}040 = 737{,}280$ bytes, so $\lfloor 2^{30} / 737{,}280 \rfloor = 1456$ blocks. The log says "CPU KV
# cache size: 46,592 tokens" ($= 1456 \cdot 32$), and "Maximum concurrency for 1,024 tokens per request: 45.50x"
# ($= 1456 / 32$).
#
# *Another* (vLLM issue 12330; Llama-3-8B on an A100, $B = 16$): 39.50 GiB · 0.90 − 14.96 GiB of weights − 0.10 GiB of
# other things − 9.37 GiB peak = 11.12 GiB. The log's rounded figures give 5,693 blocks (it says 5,691) and, for 8,192
# tokens, $5693 / 512 = 11.12$, as it says.
#
# *Shortfall.* With a budget of 700,000 bytes in the first example, one page does not fit; 37,280 bytes are missing. The
# budget may even be negative (weights larger than the memory); then more than a page is missing.


# %% task="max_concurrency"
def max_concurrency(spec: KVSpec, budget: MemoryBudget, max_model_len: int, block_size: int, tp: int = 1) -> float:
    """How many requests of `max_model_len` tokens the memory of one rank holds at once; not rounded, may be below 1.

    Args:
        spec: the layers of the model.
        budget: the memory of one rank.
        max_model_len: tokens of each request, at least 1.
        block_size: tokens per block, at least 1. `None` is a `TypeError` here.
        tp: as in `kv_bytes_per_token`; `budget` is that of one of these ranks.

    Raises:
        InfeasibleError: not one page fits; its `shortfall_bytes` is page bytes minus budget bytes.
        TypeError, ValueError: an argument is wrong, as in `kv_cache_bytes`, also where not one page fits. The text
            names `max_model_len`, `block_size` or `tp`.
    """
    ### BEGIN SOLUTION
    check_count(max_model_len, "max_model_len", 1)
    check_count(block_size, "block_size", 1)
    budget_bytes = int(budget.total_bytes * budget.utilization) - budget.weight_bytes - budget.peak_activation_bytes
    page_bytes = block_size * kv_bytes_per_token(spec, tp)
    if budget_bytes < page_bytes:
        shortfall = page_bytes - budget_bytes
        raise InfeasibleError(f"one page needs {page_bytes:,} bytes, {shortfall:,} more than there are", shortfall)
    blocks_per_request = -(-kv_cache_bytes(spec, [max_model_len], block_size, tp) // page_bytes)
    return (budget_bytes // page_bytes) / blocks_per_request
    ### END SOLUTION


# %%
one_gib = MemoryBudget(total_bytes=2**30, utilization=1.0, weight_bytes=0, peak_activation_bytes=0)
print(f"{max_concurrency(SMOLLM2_135M, one_gib, max_model_len=1024, block_size=32):.2f}x, the log says 45.50x")

# %% [markdown]
# ## Task 4: how long they may be (about 25 minutes)
#
# The same question turned round: `concurrency` requests have to be served at once; what is the longest `max_model_len`
# you can promise? Requests of $L$ tokens *fit* if
#
# $$\text{concurrency} \cdot \text{blocks per request}(L) \le \text{num\_blocks},$$
#
# with both quantities as in task 3. Return the largest such $L$ up to `limit` (what the model was trained for), and 0
# if there is none: here nothing is raised if nothing fits, not even a single page. Wrong arguments are errors all the
# same, also where nothing fits.
#
# A longer request never needs fewer blocks, so what fits is $1, 2, \dots, L$ and nothing beyond. This is what makes
# bisection possible: `limit` may be $10^9$ (a model with windows everywhere has no longest length), and trying one
# length after the other then takes hours. A formula would do for full attention; layers with windows, or mixed, are
# easier to search.
#
# *Example.* SmolLM2-135M with the 1,456 blocks of task 3 and 16 requests: $\lfloor 1456 / 16 \rfloor = 91$ blocks each,
# so $91 \cdot 32 = 2912$ tokens. One request alone could have 46,592, but `limit=8192` makes it 8192. For 1,457
# requests the answer is 0.


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(
    spec: KVSpec, budget: MemoryBudget, concurrency: int, block_size: int, limit: int, tp: int = 1
) -> int:
    """The largest number of tokens, at most `limit`, that each of `concurrency` requests can have at once; 0 if none.

    Looks at about log2(`limit`) lengths.

    Args:
        spec: the layers of the model.
        budget: the memory of one rank.
        concurrency: requests at once, at least 1.
        block_size: tokens per block, at least 1. `None` is a `TypeError` here.
        limit: the largest answer that is of interest, at least 1.
        tp: as in `kv_bytes_per_token`.

    Raises:
        TypeError, ValueError: an argument is wrong, as in `kv_cache_bytes`, also where nothing fits. The text names
            `concurrency`, `block_size`, `limit` or `tp`.
    """
    ### BEGIN SOLUTION
    check_count(concurrency, "concurrency", 1)
    check_count(block_size, "block_size", 1)
    check_count(limit, "limit", 1)
    kv_bytes_per_token(spec, tp)

    def fits(length: int) -> bool:
        try:
            return max_concurrency(spec, budget, length, block_size, tp) >= concurrency
        except InfeasibleError:
            return False

    low, high = 0, limit  # low fits (0 always does), everything above high does not
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
    ### END SOLUTION


# %%
for users in (1, 16, 100, 1457):
    print(
        users, "requests of", max_model_len_that_fits(SMOLLM2_135M, one_gib, users, block_size=32, limit=8192), "tokens"
    )

# %% [markdown]
# ## Task 5: the block pool (about 80 minutes)
#
# Who hands out the blocks? A pool that knows, for each block, how many requests hold it (its **reference count**), and
# keeps those that nobody holds in a **free queue**. This is vLLM's `v1/core/block_pool.py` in small; the rules are
# those of its `docs/design/prefix_caching.md`.
#
# **Blocks** are numbered 0 to `num_blocks - 1`. Block 0 is the **null block**: a place-holder in block tables. It is
# never handed out, never free and never used.
#
# **Free queue.** At first 1, 2, 3, … in this order. Blocks are taken at the head, and return to the tail. `free_blocks`
# gets the blocks of a request in the order of its tokens, and frees them *from the last to the first*: the last block
# of a sequence is worth the least (a later request can only use it if it also shares everything before), so it must be
# evicted first. (This is the order of the design document. Newer versions of vLLM put blocks that were never cached
# back at the head; here all go to the tail.)
#
# **Prefix caching.** When a block is full, `cache_full_block` makes it findable by what is in it: the hash of the block
# before it, its token ids, and `extra_keys` (whatever else must be equal: a LoRA adapter, an image, a tenant's salt).
# Through `parent_hash` the key covers the *whole prefix*, and it must: the keys and values of a token depend on
# everything before it. A cached block stays findable when its count falls to 0, for as long as it lies in the free
# queue. If a later request finds it, `touch` takes it out of the queue, from wherever it is, and counts one more
# holder. If it reaches the head first and is handed out, it is **evicted**: from then on it must not be found.
#
# Why `token_ids` and not the hash alone? Hash functions collide, by accident or because somebody wants to read another
# user's answer. `get_cached_block` must compare `parent_hash`, `token_ids` and `extra_keys` with what was cached. (Two
# different prefixes with the same `parent_hash` it cannot tell apart; that is why the real `parent_hash` is a SHA-256.)
#
# **Duplicates.** Two requests that compute the same prefix at the same time fill two blocks with equal content. Both
# stay, for block tables only ever grow at their end; a lookup gives the one that was cached first of those that still
# are.
#
# *Example*, 6 blocks of 4 tokens (letters stand for token ids):
#
# | step | returns | free queue after | |
# |---|---|---|---|
# | `BlockPool(6, 4)` | | 1 2 3 4 5 | |
# | `get_new_blocks(3)` | `[1, 2, 3]` | 4 5 | |
# | `h1 = cache_full_block(1, None, ABCD)` | a hash | 4 5 | |
# | `h2 = cache_full_block(2, h1, EFGH)` | a hash | 4 5 | block 3 is not full yet |
# | `free_blocks([1, 2, 3])` | | 4 5 3 2 1 | last block first |
# | `get_cached_block(None, ABCD)` | `1` | 4 5 3 2 1 | looking changes nothing |
# | `touch([1])` | | 4 5 3 2 | from the middle or the end of the queue, in constant time |
# | `get_new_blocks(3)` | `[4, 5, 3]` | 2 | |
# | `get_cached_block(h1, EFGH)` | `2` | 2 | still there |
# | `get_new_blocks(1)` | `[2]` | empty | evicts it |
# | `get_cached_block(h1, EFGH)` | `None` | empty | |
# | `get_new_blocks(1)` | `OutOfBlocksError` | empty | |
#
# **An id that stands twice** in a list counts twice. *Example.* If block 1 has two holders and block 2 has one,
# `free_blocks([1, 2, 1])` appends 2 and then 1 to the queue: from the last to the first, block 1 loses a holder, block
# 2 its only one, block 1 its other one.
#
# **Errors change nothing.** A call that raises leaves the pool as it was, even if the bad block is the last of its
# list. An id outside 0 … `num_blocks - 1` is a `KeyError` (beware: `-1` is a valid index of a Python list, but no
# block). The null block, and a block in the wrong state, is a `ValueError`. If both apply, as in
# `free_blocks([0, 99])`, either is right. Ids are always ints; other types are not tested.
#
# **Speed.** The pool of an 80-GB GPU has tens of thousands of blocks, and a scheduler calls it in every step, tens of
# times per second. Each step per block must take constant time, also the removal of a touched block from the *middle*
# of the queue (`list.remove` and `deque.remove` search from the front). Think of a doubly linked list, or of what the
# standard library has that keeps an order, deletes by key and finds its first key at once. (A plain `dict` is slow at
# its head: `next(iter(d))` walks past the keys that were deleted there.) Only blocks with equal hashes, which are
# duplicates or collisions, may be searched one by one. That is what the hash is for: it leaves few blocks to compare.
# A hidden check compares a pool of 2,000 blocks with one of 200,000, which is made in one call.
#
# *Common mistakes:* freeing at count 1; first block first; a hash without the parent; caching a block that is not full;
# evicting a block that is in use; forgetting to evict; taking some blocks before noticing that there are too few;
# accepting a second `free`; merging duplicates.


# %% task="BlockPool"
class BlockPool:
    """Hands out the blocks of a paged KV cache, counts who holds them, and finds them again by their content.

    Args:
        num_blocks: blocks in all, the null block 0 included; at least 2.
        block_size: tokens per block; at least 1.
        enable_caching: if false, nothing is ever cached or found.
        hash_fn: called as `hash_fn(parent_hash, token_ids, extra_keys)`, the last two as tuples, once per call of
            `cache_full_block` and at most once per call of `get_cached_block`. Different blocks may have the same hash.

    Raises:
        TypeError, ValueError: `num_blocks` or `block_size` is no int or too small. The text names it.
    """

    def __init__(
        self, num_blocks: int, block_size: int, enable_caching: bool = True, hash_fn: HashFunction = hash_block
    ) -> None:
        ### BEGIN SOLUTION
        check_count(num_blocks, "num_blocks", 2)
        check_count(block_size, "block_size", 1)
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._enable_caching = enable_caching
        self._hash_fn = hash_fn
        self._refs = [0] * num_blocks
        # The free queue is a ring of links in which the null block is the fixed point: head = next[0], tail = prev[0].
        self._next = [*range(1, num_blocks), 0]
        self._prev = [num_blocks - 1, *range(num_blocks - 1)]
        self._num_free = num_blocks - 1
        # Of a cached block: its hash, and what the hash was made of. Of a hash: its blocks, the earliest cached first.
        self._content: dict[int, tuple[Hashable, tuple[Hashable, ...]]] = {}
        self._by_hash: dict[Hashable, dict[int, None]] = {}
        ### END SOLUTION

    def get_new_blocks(self, n: int) -> list[int]:
        """Take `n` blocks from the head of the free queue, in its order. Cached ones are evicted; each gets count 1.

        Raises:
            OutOfBlocksError: fewer than `n` are free. Nothing has changed then.
            TypeError, ValueError: `n` is no int or negative. The text names `n`.
        """
        ### BEGIN SOLUTION
        check_count(n, "n")
        if n > self._num_free:
            raise OutOfBlocksError(f"{n} blocks were asked for, {self._num_free} are free")
        blocks = []
        for _ in range(n):
            block = self._next[0]
            self._unlink(block)
            self._forget(block)
            self._refs[block] = 1
            blocks.append(block)
        return blocks
        ### END SOLUTION

    def touch(self, block_ids: Sequence[int]) -> None:
        """Add one holder to each block; a cached block that had none leaves the free queue.

        An id that stands twice gets two holders.

        Raises:
            KeyError: there is no such block.
            ValueError: the null block, or a block that has no holder and is not cached (its content is gone).
                If both apply, either. Nothing has changed then.
        """
        ### BEGIN SOLUTION
        for block in block_ids:
            self._require_block(block)
            if self._refs[block] == 0 and block not in self._content:
                raise ValueError(f"block {block} is free and not cached, so there is nothing in it to use again")
        for block in block_ids:
            if self._refs[block] == 0:
                self._unlink(block)
            self._refs[block] += 1
        ### END SOLUTION

    def free_blocks(self, block_ids: Sequence[int]) -> None:
        """Take one holder from each block, from the last to the first.

        A block that has no holder any more joins the tail of the free queue; if it is cached, it stays so. An id that
        stands twice loses two holders.

        Raises:
            KeyError: there is no such block.
            ValueError: the null block, or a block freed more often than it is held.
                If both apply, either. Nothing has changed then.
        """
        ### BEGIN SOLUTION
        wanted: dict[int, int] = {}
        for block in block_ids:
            self._require_block(block)
            wanted[block] = wanted.get(block, 0) + 1
            if wanted[block] > self._refs[block]:
                raise ValueError(f"block {block} is freed more often than it is held ({self._refs[block]} times)")
        for block in reversed(block_ids):
            self._refs[block] -= 1
            if self._refs[block] == 0:
                self._append(block)
        ### END SOLUTION

    def cache_full_block(
        self, block_id: int, parent_hash: Hashable, token_ids: Sequence[int], extra_keys: Sequence[Hashable] = ()
    ) -> Hashable:
        """Make a full block findable by its content, and return its hash: the `parent_hash` of the block after it.

        With `enable_caching=False` the arguments are checked and the hash is returned, but nothing is kept.

        Args:
            block_id: a block that is in use.
            parent_hash: hash of the block before it in its sequence; `None` for the first.
            token_ids: the tokens in it, exactly `block_size` of them. They are ints; you need not check that.
            extra_keys: whatever else must be equal for the block to be used again.

        Raises:
            KeyError: there is no such block.
            ValueError: the null block, a block without holders, one that is cached already, or one that is not full
                (the text names `token_ids`). Nothing has changed then.
        """
        ### BEGIN SOLUTION
        self._require_block(block_id)
        if self._refs[block_id] == 0:
            raise ValueError(f"block {block_id} is not in use")
        if block_id in self._content:
            raise ValueError(f"block {block_id} is cached already")
        if len(token_ids) != self._block_size:
            raise ValueError(
                f"token_ids has {len(token_ids)} tokens; only full blocks, of {self._block_size}, are cached"
            )
        key = (parent_hash, tuple(token_ids), tuple(extra_keys))
        block_hash = self._hash_fn(*key)
        if self._enable_caching:
            self._content[block_id] = (block_hash, key)
            self._by_hash.setdefault(block_hash, {})[block_id] = None
        return block_hash
        ### END SOLUTION

    def get_cached_block(
        self, parent_hash: Hashable, token_ids: Sequence[int], extra_keys: Sequence[Hashable] = ()
    ) -> int | None:
        """The block with this content, in use or not; `None` if there is none. Changes nothing.

        Parent, tokens and extra keys must all be those that were cached; an equal hash is not enough. Of several such
        blocks, the one that was cached first. A wrong number of tokens is no error: no such block was ever cached, so
        the answer is `None`.
        """
        ### BEGIN SOLUTION
        if not self._by_hash:
            return None
        key = (parent_hash, tuple(token_ids), tuple(extra_keys))
        for block in self._by_hash.get(self._hash_fn(*key), ()):
            if self._content[block][1] == key:
                return block
        return None
        ### END SOLUTION

    def reset(self) -> bool:
        """Forget everything that is cached and return True; while any block is in use, do nothing and return False.

        The free queue stays as it is.
        """
        ### BEGIN SOLUTION
        if self._num_free < self._num_blocks - 1:
            return False
        self._content.clear()
        self._by_hash.clear()
        return True
        ### END SOLUTION

    def usage(self) -> float:
        """Share of the blocks that are in use, 0.0 to 1.0; the null block does not count."""
        ### BEGIN SOLUTION
        return (self._num_blocks - 1 - self._num_free) / (self._num_blocks - 1)
        ### END SOLUTION

    def num_free_blocks(self) -> int:
        """Blocks that `get_new_blocks` could hand out now."""
        ### BEGIN SOLUTION
        return self._num_free
        ### END SOLUTION

    def ref_count(self, block_id: int) -> int:
        """How many holders a block has; 0 for the null block. `KeyError` if there is no such block."""
        ### BEGIN SOLUTION
        if not 0 <= block_id < self._num_blocks:
            raise KeyError(block_id)
        return self._refs[block_id]

    def _require_block(self, block: int) -> None:
        if not 0 <= block < self._num_blocks:
            raise KeyError(block)
        if block == 0:
            raise ValueError("block 0 is the null block")

    def _unlink(self, block: int) -> None:
        before, after = self._prev[block], self._next[block]
        self._next[before], self._prev[after] = after, before
        self._num_free -= 1

    def _append(self, block: int) -> None:
        tail = self._prev[0]
        self._next[tail] = self._prev[0] = block
        self._prev[block], self._next[block] = tail, 0
        self._num_free += 1

    def _forget(self, block: int) -> None:
        if block in self._content:
            block_hash, _ = self._content.pop(block)
            del self._by_hash[block_hash][block]
            if not self._by_hash[block_hash]:
                del self._by_hash[block_hash]
        ### END SOLUTION


# %% [markdown]
# The example of the table, step by step, and then what prefix caching brings: 200 requests, each of which begins with
# one of five system prompts. With fewer blocks the pool has to forget prompts before they come again.

# %%
pool = BlockPool(num_blocks=6, block_size=4)
blocks = pool.get_new_blocks(3)
h1 = pool.cache_full_block(1, None, [65, 66, 67, 68])
h2 = pool.cache_full_block(2, h1, [69, 70, 71, 72])
pool.free_blocks(blocks)
pool.touch([pool.get_cached_block(None, [65, 66, 67, 68])])
print(blocks, pool.get_new_blocks(3), f"{pool.usage():.0%} in use")


# %%
import random

import matplotlib.pyplot as plt


def found_share(num_blocks: int, block_size: int = 16) -> float:
    """Share of full prompt blocks that 200 requests, four at a time, find in the pool."""
    pool, running, found, looked = BlockPool(num_blocks, block_size), [], 0, 0
    draw = random.Random(0)
    prompts = [[draw.randrange(1000) for _ in range(160)] for _ in range(5)]  # five different system prompts
    for _ in range(200):
        tokens = draw.choice(prompts) + [draw.randrange(1000) for _ in range(80)]
        table, parent = [], None
        for start in range(0, len(tokens), block_size):
            content = tokens[start : start + block_size]
            block = pool.get_cached_block(parent, content)
            looked += 1
            if block is None:
                (block,) = pool.get_new_blocks(1)
                parent = pool.cache_full_block(block, parent, content)
            else:
                found += 1
                pool.touch([block])
                parent = hash_block(parent, tuple(content), ())
            table.append(block)
        running.append(table)
        if len(running) == 4:
            pool.free_blocks(running.pop(0))
    return found / looked


sizes = [70, 90, 110, 130, 150, 200, 300, 400]
plt.figure(figsize=(6, 3))
plt.plot(sizes, [100 * found_share(size) for size in sizes], "o-")
plt.xlabel("blocks in the pool")
plt.ylabel("blocks found (%)")
plt.ylim(bottom=0)
plt.title("Prefix caching needs room to remember")
plt.show()
