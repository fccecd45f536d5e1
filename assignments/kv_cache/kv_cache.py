# ---
# jupyter:
#   autograder:
#     assignment: kv_cache
#     release: fdc016f78f1be3e2
#   jupytext:
#     cell_metadata_filter: task,given,helpers,check,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: autograder,jupytext,kernelspec,-all
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
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
# 5. build the allocator that hands out the pages, shares them between requests and remembers prefixes (`BlockPool`),
# 6. and on top of it the block tables of requests that share prefixes and fork (`PagedKVCacheManager`),
# 7. compute attention over keys and values that lie scattered in pages (`PagedAttentionLayer`),
# 8. store them in fewer bits (`QuantizedKVLayer`),
# 9. and drop what a sliding window does not need any more (`sliding_window_evict`).
#
# Tasks 1 to 4 take about 25 minutes each, task 5 about 80, tasks 6 to 9 about 90, 60, 60 and 35. Tasks 6 to 9 do not
# need each other, and none of them needs your tasks 1 to 5 to be right. No GPU is needed: you compute what a GPU would
# have to hold. You should know Python, what the query, key and value of an attention head are, and for tasks 7 and 8
# tensors in PyTorch.
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
# **How it is graded.** Only the cells of the nine tasks and the one cell of imports and helpers count. The next cell,
# with the course's classes, and the one before the stub of task 6 are replaced by the originals when grading; all
# others are yours, change them freely. The cell `check(...)` after each task runs its public checks. One that fails
# shows the last lines that your code printed. Hidden checks look at the same rules on other inputs: everything they ask
# for is written here. One call of your code may take 5 s. A later task that calls an earlier one calls *your* earlier
# one, so an error in task 1 may cost points in tasks 2 to 4 too.
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
    # YOUR CODE HERE
    raise NotImplementedError()


# %% check="kv_bytes_per_token"
from autograder import check

check("kv_bytes_per_token")

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
    # YOUR CODE HERE
    raise NotImplementedError()


# %% check="kv_cache_bytes"
from autograder import check

check("kv_cache_bytes")

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
    # YOUR CODE HERE
    raise NotImplementedError()


# %% check="max_concurrency"
from autograder import check

check("max_concurrency")

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
    # YOUR CODE HERE
    raise NotImplementedError()


# %% check="max_model_len_that_fits"
from autograder import check

check("max_model_len_that_fits")

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
        # YOUR CODE HERE
        raise NotImplementedError()

    def get_new_blocks(self, n: int) -> list[int]:
        """Take `n` blocks from the head of the free queue, in its order. Cached ones are evicted; each gets count 1.

        Raises:
            OutOfBlocksError: fewer than `n` are free. Nothing has changed then.
            TypeError, ValueError: `n` is no int or negative. The text names `n`.
        """
        # YOUR CODE HERE
        raise NotImplementedError()

    def touch(self, block_ids: Sequence[int]) -> None:
        """Add one holder to each block; a cached block that had none leaves the free queue.

        An id that stands twice gets two holders.

        Raises:
            KeyError: there is no such block.
            ValueError: the null block, or a block that has no holder and is not cached (its content is gone).
                If both apply, either. Nothing has changed then.
        """
        # YOUR CODE HERE
        raise NotImplementedError()

    def free_blocks(self, block_ids: Sequence[int]) -> None:
        """Take one holder from each block, from the last to the first.

        A block that has no holder any more joins the tail of the free queue; if it is cached, it stays so. An id that
        stands twice loses two holders.

        Raises:
            KeyError: there is no such block.
            ValueError: the null block, or a block freed more often than it is held.
                If both apply, either. Nothing has changed then.
        """
        # YOUR CODE HERE
        raise NotImplementedError()

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
        # YOUR CODE HERE
        raise NotImplementedError()

    def get_cached_block(
        self, parent_hash: Hashable, token_ids: Sequence[int], extra_keys: Sequence[Hashable] = ()
    ) -> int | None:
        """The block with this content, in use or not; `None` if there is none. Changes nothing.

        Parent, tokens and extra keys must all be those that were cached; an equal hash is not enough. Of several such
        blocks, the one that was cached first. A wrong number of tokens is no error: no such block was ever cached, so
        the answer is `None`.
        """
        # YOUR CODE HERE
        raise NotImplementedError()

    def reset(self) -> bool:
        """Forget everything that is cached and return True; while any block is in use, do nothing and return False.

        The free queue stays as it is.
        """
        # YOUR CODE HERE
        raise NotImplementedError()

    def usage(self) -> float:
        """Share of the blocks that are in use, 0.0 to 1.0; the null block does not count."""
        # YOUR CODE HERE
        raise NotImplementedError()

    def num_free_blocks(self) -> int:
        """Blocks that `get_new_blocks` could hand out now."""
        # YOUR CODE HERE
        raise NotImplementedError()

    def ref_count(self, block_id: int) -> int:
        """How many holders a block has; 0 for the null block. `KeyError` if there is no such block."""
        # YOUR CODE HERE
        raise NotImplementedError()


# %% check="BlockPool"
from autograder import check

check("BlockPool")

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

# %% [markdown]
# ## Task 6: block tables that are shared (about 90 minutes)
#
# The pool knows blocks, the scheduler knows requests. Between them stands the manager: for each request it keeps the
# tokens and the **block table**, the list of blocks in which they lie. Token $i$ of a request lies in block
# `table[i // block_size]`, at place `i % block_size`. The manager does what vLLM's `v1/core/kv_cache_manager.py` does,
# and what the PagedAttention paper (arXiv 2309.06180, section 4.4) calls *copy-on-write*.
#
# **Allocate.** A new request brings its prompt. First the manager looks for the longest prefix that is cached already:
# full blocks, from the first one on, until one is not found. Of $T$ tokens at most $T - 1$ may be found: the model has
# to compute the last one, or there are no logits to choose the next token from. So it looks at
# $\lfloor (T-1)/B \rfloor$ blocks. It touches what it found, takes new blocks for the rest, and caches every full one
# among the new. All blocks of a request have its `extra_keys`. (The keys and values are computed in this very step, so
# the blocks may be cached now. A prompt that ends with a block's edge computes its last block again, in a block of its
# own. That is one of the duplicates of task 5.)
#
# *Is there room?* A block that was found may lie in the free queue. If it is touched, it is not free any more. So a
# request needs its new blocks **and** the found ones without holders, all at once; if there are fewer free blocks,
# nothing may change. Ask before you touch: a block that was touched and freed again has lost its place in the queue.
# And touch before you take: else `get_new_blocks` may evict the very blocks that you found.
#
# **Append.** The next tokens of a request (one in a usual step, several with speculative decoding) go into the free
# places of its last block, then into new blocks. Blocks that become full are cached, as above.
#
# **Fork.** Two continuations of one text (beam search, or $n$ answers to one prompt) share all blocks, also the last
# one, which is not full. As long as they share it, nobody may write to it: the other one would read a token that is not
# his. So the first of them that appends takes a new block, has the old one *copied* into it, puts it into his table in
# the place of the old one, and frees the old one. `append` returns these copies as pairs `(from, to)`; the model's
# runner carries them out before the step. The other request is then alone with the old block and writes to it without a
# copy. Full blocks are never copied: nobody writes to them.
#
# *Example*, blocks of 4 tokens, 7 of them (letters stand for token ids):
#
# | step | returns | tables | free queue after |
# |---|---|---|---|
# | `allocate("a", ABCDEFGHIJ)` | `0` found | a: 1 2 3 | 4 5 6 7 |
# | `fork("a", "b")` | | a: 1 2 3, b: 1 2 3 | 4 5 6 7 |
# | `append("b", K)` | `[(3, 4)]` | a: 1 2 3, b: 1 2 4 | 5 6 7 |
# | `append("a", L)` | `[]` | a: 1 2 3, b: 1 2 4 | 5 6 7 |
# | `append("a", MN)` | `[]` | a: 1 2 3 5, b: 1 2 4 | 6 7 |
# | `free("a")` | | b: 1 2 4 | 6 7 5 3 |
# | `match_prefix(ABCDEFGH)` | `[1]` | b: 1 2 4 | 6 7 5 3 |
# | `match_prefix(ABCDEFGHIJLMX)` | `[1, 2, 3]` | b: 1 2 4 | 6 7 5 3 |
# | `allocate("c", ABCDEFGHXY)` | `8` found | b: 1 2 4, c: 1 2 6 | 7 5 3 |
# | `allocate("d", ABCDEFGHIJLMXYZZZ)` | `12` found | b: 1 2 4, c: 1 2 6, d: 1 2 3 7 5 | empty |
#
# In the seventh line all 8 tokens are cached, and only the first block may be used: token 8 must be computed. In the
# last one, block 3 is found in the queue, so the request needs 3 free blocks: block 3 and two new ones.
#
# **The hash of a block that was found.** `get_cached_block` gives a block and no hash, but the next block wants the
# hash of its parent. Keep what `cache_full_block` returned, or compute `hash_block(parent_hash, tokens, extra_keys)`
# with tuples: the pool uses this function.
#
# **Whose pool?** In the examples below it is yours. The checks of this task lend your manager a pool of their own,
# a `LentPool`, so an error in your `BlockPool` costs nothing here. It has the methods of `BlockPool` but `reset` and
# `usage`, and the checks see every call of it; a call with nothing in it (`touch([])`) does no harm.
#
# *Common mistakes:* using the whole prompt from the cache; taking before touching; touching before knowing that there
# is room; a fork that shares the list object, so that both tables grow; writing to a shared block; copying full blocks;
# caching the prompt's blocks only, not those that fill up later; forgetting `extra_keys`.

# %% given="lent_pool"
import torch


class LentPool:
    """A `BlockPool` that somebody else keeps: each method calls the function of that name that it was made with."""

    def __init__(self, **functions: Callable) -> None:
        self._functions = functions

    def get_new_blocks(self, n: int) -> list[int]:
        """As that of `BlockPool`."""
        blocks = self._functions["get_new_blocks"](n)
        if blocks is None:
            raise OutOfBlocksError(f"{n} blocks were asked for; fewer are free")
        return blocks

    def touch(self, block_ids: Sequence[int]) -> None:
        """As that of `BlockPool`."""
        self._functions["touch"](list(block_ids))

    def free_blocks(self, block_ids: Sequence[int]) -> None:
        """As that of `BlockPool`."""
        self._functions["free_blocks"](list(block_ids))

    def cache_full_block(
        self, block_id: int, parent_hash: Hashable, token_ids: Sequence[int], extra_keys: Sequence[Hashable] = ()
    ) -> Hashable:
        """As that of `BlockPool`."""
        return self._functions["cache_full_block"](block_id, parent_hash, tuple(token_ids), tuple(extra_keys))

    def get_cached_block(
        self, parent_hash: Hashable, token_ids: Sequence[int], extra_keys: Sequence[Hashable] = ()
    ) -> int | None:
        """As that of `BlockPool`."""
        return self._functions["get_cached_block"](parent_hash, tuple(token_ids), tuple(extra_keys))

    def num_free_blocks(self) -> int:
        """As that of `BlockPool`."""
        return self._functions["num_free_blocks"]()

    def ref_count(self, block_id: int) -> int:
        """As that of `BlockPool`."""
        return self._functions["ref_count"](block_id)


# %% task="PagedKVCacheManager"
class PagedKVCacheManager:
    """Keeps the tokens and the block table of each request, on top of a block pool.

    Args:
        pool: a new `BlockPool` with the default `hash_fn`, or a `LentPool`. Nobody else takes blocks from it.
        block_size: tokens per block, that of the pool.
    """

    def __init__(self, pool: "BlockPool | LentPool", block_size: int) -> None:
        # YOUR CODE HERE
        raise NotImplementedError()

    def match_prefix(self, token_ids: Sequence[int], extra_keys: Sequence[Hashable] = ()) -> list[int]:
        """The cached blocks with which a request of these tokens could begin, in order. Changes nothing.

        The last token is never among what is found. No tokens: `[]`.
        """
        # YOUR CODE HERE
        raise NotImplementedError()

    def allocate(self, request_id: Hashable, token_ids: Sequence[int], extra_keys: Sequence[Hashable] = ()) -> int:
        """Admit a request with its prompt, and return how many of its tokens were found in the cache.

        Raises:
            OutOfBlocksError: there is no room. Nothing has changed then, the free queue included.
            ValueError: there is such a request already; or no tokens (the text names `token_ids`). Nothing has changed.
        """
        # YOUR CODE HERE
        raise NotImplementedError()

    def append(self, request_id: Hashable, token_ids: Sequence[int]) -> list[tuple[int, int]]:
        """Add tokens to a request, and return the copies `(from, to)` that must be made before they are written.

        If a copy is needed, it goes to the first of the new blocks. There is never more than one.

        Raises:
            OutOfBlocksError: there is no room. Nothing has changed then.
            KeyError: there is no such request.
            ValueError: no tokens (the text names `token_ids`).
        """
        # YOUR CODE HERE
        raise NotImplementedError()

    def fork(self, parent_id: Hashable, child_id: Hashable) -> None:
        """Start a request with the tokens, the blocks and the extra keys of another one. It may go on otherwise.

        Raises:
            KeyError: there is no request `parent_id`.
            ValueError: there is a request `child_id` already. Nothing has changed then.
        """
        # YOUR CODE HERE
        raise NotImplementedError()

    def free(self, request_id: Hashable) -> None:
        """End a request and free its blocks. `KeyError` if there is no such request."""
        # YOUR CODE HERE
        raise NotImplementedError()

    def block_table(self, request_id: Hashable) -> list[int]:
        """The blocks of a request, in the order of its tokens. `KeyError` if there is no such request."""
        # YOUR CODE HERE
        raise NotImplementedError()

    def stats(self) -> dict[str, int]:
        """Five counts.

        `requests` that there are now, `tokens` of all of them, `blocks` that they hold (one that several hold counts
        once); `queries`, the tokens of all prompts that `allocate` has ever admitted, and `hits`, those of them found
        (vLLM's metrics `prefix_cache_queries` and `prefix_cache_hits`; a refused call counts nothing).
        """
        # YOUR CODE HERE
        raise NotImplementedError()


# %% check="PagedKVCacheManager"
from autograder import check

check("PagedKVCacheManager")

# %% [markdown]
# The example of the table, with your pool under your manager.

# %%
pool = BlockPool(num_blocks=8, block_size=4)
manager = PagedKVCacheManager(pool, block_size=4)


def letters(text: str) -> list[int]:
    """A text as token ids."""
    return [ord(letter) for letter in text]


print(manager.allocate("a", letters("ABCDEFGHIJ")), manager.block_table("a"))
manager.fork("a", "b")
print(manager.append("b", letters("K")), manager.append("a", letters("L")), manager.append("a", letters("MN")))
manager.free("a")
print(manager.match_prefix(letters("ABCDEFGH")), manager.match_prefix(letters("ABCDEFGHIJLMX")))
print(manager.allocate("c", letters("ABCDEFGHXY")), manager.allocate("d", letters("ABCDEFGHIJLMXYZZZ")))
print({name: manager.block_table(name) for name in "bcd"}, manager.stats())


# %% [markdown]
# And a picture of the memory: four requests with one system prompt, and two forks of the first. Each column is a block,
# each row a request; hatched blocks are shared.

# %%
def draw_tables(manager: PagedKVCacheManager, names: list[str], num_blocks: int) -> None:
    """The blocks that each request holds; those that several hold are hatched."""
    tables = [manager.block_table(name) for name in names]
    ax = plt.figure(figsize=(8, 2.5)).add_subplot()
    for row, table in enumerate(tables):
        for block in table:
            shared = sum(block in other for other in tables) > 1
            ax.barh(row, 1, left=block - 0.5, color=f"C{row}", edgecolor="white", hatch="///" if shared else None)
    held = sum(map(len, tables))
    ax.set(xlim=(0.5, num_blocks - 0.5), xlabel="block", yticks=range(len(names)), yticklabels=names)
    ax.set_title(f"{held} entries of block tables, {manager.stats()['blocks']} blocks")
    ax.invert_yaxis()
    plt.show()


manager = PagedKVCacheManager(BlockPool(num_blocks=24, block_size=4), block_size=4)
system_prompt = letters("You answer briefly. ")
for name, question in {"anna": "Why is it dark?", "ben": "Who is it?", "cem": "2 + 2?", "dana": "Hello!"}.items():
    manager.allocate(name, system_prompt + letters(question))
for child, answer in {"anna, 2nd": "Night.", "anna, 3rd": "No sun."}.items():
    manager.fork("anna", child)
    manager.append(child, letters(answer))
draw_tables(manager, ["anna", "anna, 2nd", "anna, 3rd", "ben", "cem", "dana"], num_blocks=24)


# %% [markdown]
# ## Task 7: attention over pages (about 60 minutes)
#
# Now the memory itself. A layer has one large tensor for keys and one for values, with room for `num_blocks` blocks of
# `block_size` tokens; every request's tokens lie scattered in it. Where a token goes is said by its **slot**:
#
# $$\text{slot} = \text{block} \cdot \text{block\_size} + \text{place in the block}.$$
#
# *Example.* With blocks of 4 and the block table `[5, 2]`, tokens 0 to 3 have the slots 20, 21, 22, 23, and tokens 4
# and 5 the slots 8 and 9.
#
# **Write** (vLLM's kernel `reshape_and_cache`). `write(k, v, slot_mapping)` puts the key and the value of token $i$
# into the slot `slot_mapping[i]`. Batches are filled up to a fixed size, so a slot may be negative: that token is
# padding and is not written. (Beware: $-1$ is a valid index of a tensor.) Keys are stored with their rotary position
# already applied.
#
# **Attend.** Each sequence has one query per head: that of its newest token, whose own key and value are written
# already. For sequence $s$ with `context_lens[s]` $= T$, gather the keys $k_0 \dots k_{T-1}$ and values of its tokens
# through its row of `block_tables`. Head $h$ of the query looks at KV head
# $\lfloor h / (n_\text{heads} / n_\text{kv}) \rfloor$: with 6 heads and 2 KV heads, heads 0, 1, 2 share KV head 0.
# Then, as always,
#
# $$w_i = \operatorname{softmax}_i(\text{scale} \cdot q \cdot k_i), \qquad \text{out} = \sum_i w_i\, v_i .$$
#
# No mask is needed: all cached tokens are older than the query, or the query's own.
#
# *Example.* One head, `head_dim` 2, scale 1, query $(1, 0)$, keys $(\ln 3, 5)$ and $(0, 7)$, values $(4, 0)$ and
# $(0, 8)$: scores $\ln 3$ and 0, weights $3/4$ and $1/4$, result $(3, 2)$.
#
# **What lies in memory counts only if it is the sequence's.** Rows of `block_tables` have equal lengths; behind the
# blocks of a sequence they are filled up with 0, the null block. Slots behind the last token hold what an earlier
# request has left there, or nothing that was ever written: any numbers, even NaN. They must not change the result. (A
# weight of 0 does not save you: $0 \cdot \text{NaN} = \text{NaN}$.)
#
# **Large scores.** $e^{100}$ is too large for fp32. Subtract the largest score first, or use a softmax that does.
#
# **Copy.** `copy_blocks([(3, 4)])` copies keys and values of block 3 to block 4: the copies that `append` of task 6
# returned.
#
# *Common mistakes:* `repeat` where `repeat_interleave` is meant (head 0 then looks at KV head 0, head 1 at KV head 1,
# head 2 at KV head 0 again); attending to the padding; blocks in the order of their numbers instead of that of the
# table; the scale forgotten; $\sqrt{d}$ of the wrong $d$.

# %% task="PagedAttentionLayer"
class PagedAttentionLayer:
    """The pages of one attention layer, and attention over them. All numbers are fp32, all on the CPU.

    Args:
        num_blocks: blocks in all, the null block 0 included.
        block_size: tokens per block.
        n_kv_heads: KV heads.
        head_dim: length of a key, and of a value.
    """

    def __init__(self, num_blocks: int, block_size: int, n_kv_heads: int, head_dim: int) -> None:
        # YOUR CODE HERE
        raise NotImplementedError()

    def write(self, k: torch.Tensor, v: torch.Tensor, slot_mapping: torch.Tensor) -> None:
        """Store the keys and values of `n` tokens.

        Args:
            k, v: `[n, n_kv_heads, head_dim]`.
            slot_mapping: `[n]`, int64; the slot of each token, all different. Negative: padding, not stored.
        """
        # YOUR CODE HERE
        raise NotImplementedError()

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy keys and values of each block `from` to the block `to`. No block stands on both sides."""
        # YOUR CODE HERE
        raise NotImplementedError()

    def attend(
        self, q: torch.Tensor, block_tables: torch.Tensor, context_lens: torch.Tensor, scale: float | None = None
    ) -> torch.Tensor:
        """What each sequence's newest token reads from the tokens of its sequence.

        Args:
            q: `[n_seqs, n_heads, head_dim]`; `n_heads` is a multiple of `n_kv_heads`.
            block_tables: `[n_seqs, most_blocks]`, int64; each row is filled up with 0.
            context_lens: `[n_seqs]`, int64; tokens of each sequence, at least 1, the newest one included.
            scale: what scores are multiplied by; `None`: 1 / sqrt(`head_dim`).

        Returns:
            `[n_seqs, n_heads, head_dim]`.
        """
        # YOUR CODE HERE
        raise NotImplementedError()


# %% check="PagedAttentionLayer"
from autograder import check

check("PagedAttentionLayer")

# %% [markdown]
# The example with two tokens, and then your manager and your layer together: a request and its fork write different
# tokens and must not disturb each other. PyTorch's own attention, on keys that lie one after the other, says what is
# right.

# %%
layer = PagedAttentionLayer(num_blocks=4, block_size=2, n_kv_heads=1, head_dim=2)
layer.write(
    torch.tensor([[[1.0986123, 5.0]], [[0.0, 7.0]]]), torch.tensor([[[4.0, 0.0]], [[0.0, 8.0]]]), torch.tensor([6, 7])
)
print(layer.attend(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[3, 0]]), torch.tensor([2]), scale=1.0), "(3, 2) above")

n_heads, n_kv_heads, head_dim, block_size = 6, 2, 8, 4
manager = PagedKVCacheManager(BlockPool(num_blocks=16, block_size=block_size), block_size)
layer = PagedAttentionLayer(16, block_size, n_kv_heads, head_dim)
contents = {}


def write_tokens(name: str, start: int, stop: int) -> None:
    """Make keys and values for these tokens of a request, and write them where its block table says."""
    k, v = torch.randn(2, stop - start, n_kv_heads, head_dim)
    table = manager.block_table(name)
    slots = [table[i // block_size] * block_size + i % block_size for i in range(start, stop)]
    layer.write(k, v, torch.tensor(slots))
    old = contents.get(name, [k[:0], v[:0]])
    contents[name] = [torch.cat([old[0], k]), torch.cat([old[1], v])]


manager.allocate("a", letters("ABCDEFGHIJ"))
write_tokens("a", 0, 10)
manager.fork("a", "b")
contents["b"] = contents["a"]
for name in "ba":
    layer.copy_blocks(manager.append(name, letters("K")))
    write_tokens(name, 10, 11)
    q = torch.randn(1, n_heads, head_dim)
    paged = layer.attend(q, torch.tensor([manager.block_table(name)]), torch.tensor([11]))
    k, v = (x.movedim(0, 1)[None] for x in contents[name])  # [1, n_kv_heads, tokens, head_dim]
    plain = torch.nn.functional.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)[:, :, 0]
    print(name, manager.block_table(name), f"largest difference to PyTorch: {(paged - plain).abs().max():.1e}")


# %% [markdown]
# ## Task 8: keys and values in fewer bits (about 60 minutes)
#
# Task 1 counted what a quantised cache takes. Now build one layer of it, for one sequence. Two ideas make it work
# (KIVI, arXiv 2402.02750, and `QuantizedCache` in transformers): groups are small, so one large number spoils few
# others; and the newest tokens stay in full precision for a while, the **residual**, because they are the ones that
# matter most.
#
# **A group** is `group_size` neighbours of a key (or a value) of one head and one token. Its numbers $x$ become codes
# from 0 to $2^\text{bits} - 1$, with a scale and a minimum:
#
# $$m = \min x, \qquad s = \frac{\max x - \min x}{2^\text{bits} - 1}, \qquad
# c = \operatorname{clamp}\left(\operatorname{round}\left(\frac{x - m}{s}\right),\ 0,\ 2^\text{bits} - 1\right), \qquad
# \hat x = m + s\,c .$$
#
# $m$ and $s$, each computed from the numbers themselves, are stored in float16. Round them first, and use the *rounded*
# ones to compute the codes, for these are what the reader has. That is also why the clamp is needed. If the rounded $s$
# is 0 (the numbers of a group are equal, or nearly so), all codes are 0; do not divide. All inputs are finite and between
# −1,000 and 1,000; $\hat x$ is fp32 again. So each number becomes the nearest that a code can express with the stored
# $m$ and $s$. Were these not rounded, the error would be at most $s/2$.
#
# *Example*, 2 bits, one group $(0, 1, 3.5, 6)$: $m = 0$, $s = 2$, codes $(0, 0, 2, 3)$ (1 is half a step, and may become
# either 0 or 1; PyTorch rounds it to the even one), back: $(0, 0, 4, 6)$.
#
# **Packing.** Codes are stored without gaps: $8 / \text{bits}$ of them in a byte, the first in the *highest* bits. The
# codes $(0, 0, 2, 3)$ of 2 bits make the byte $00\,00\,10\,11_2 = 11$. Codes of 4 bits $(5, 12)$ make
# $5 \cdot 16 + 12 = 92$.
#
# **Residual.** New tokens are kept as they are. As soon as `residual_length` of them have gathered, all of them are
# quantised, and the residual begins anew. So of $T$ tokens the first $T - (T \bmod \text{residual\_length})$ are
# quantised, however they came: one by one or a whole prompt at once. A token is quantised **once**. Whoever restores
# and quantises everything anew each time spends a time that grows with the square of the length.
#
# **Bytes.** `num_bytes` counts what is held: codes, scales (2 bytes), minima (2 bytes), and the residual in fp32.
# *Example.* 2 KV heads, `head_dim` 64, 4 bits in groups of 32, `residual_length` 16, 40 tokens: 32 are quantised, each
# takes $2 \cdot 2 \cdot (32 + 2 \cdot 4) = 160$ bytes, 8 are not, each takes $2 \cdot 2 \cdot 64 \cdot 4 = 1{,}024$:
# $5{,}120 + 8{,}192 = 13{,}312$. That the quantised part is what `kv_bytes_per_token` of task 1 says is no accident.
#
# *Common mistakes:* cutting off instead of rounding (twice the error); one scale for a whole head or tensor; no clamp,
# so that code 16 becomes 0; dividing by 0; codes computed with the scale before it was rounded; codes in a byte each.

# %% task="QuantizedKVLayer"
class QuantizedKVLayer:
    """The keys and values of one layer and one sequence: quantised, but for the newest tokens.

    Args:
        n_kv_heads: KV heads.
        head_dim: length of a key, and of a value.
        bits: 2, 4 or 8.
        group_size: numbers that share a scale and a minimum.
        residual_length: so many tokens are quantised together; at least 1.

    Raises:
        TypeError, ValueError: an argument is no int or too small, `bits` is another number, `group_size` does not
            divide `head_dim`, or a head's codes do not fill whole bytes. The text names `bits`, `group_size` or
            `residual_length` if it is that one alone which is wrong.
    """

    def __init__(self, n_kv_heads: int, head_dim: int, bits: int, group_size: int, residual_length: int) -> None:
        # YOUR CODE HERE
        raise NotImplementedError()

    def append(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """Add the keys and values of `n` tokens, each `[n, n_kv_heads, head_dim]` in fp32. They are not changed."""
        # YOUR CODE HERE
        raise NotImplementedError()

    def keys(self) -> torch.Tensor:
        """All keys, `[tokens, n_kv_heads, head_dim]` in fp32: quantised ones restored, the residual as it came."""
        # YOUR CODE HERE
        raise NotImplementedError()

    def values(self) -> torch.Tensor:
        """All values, likewise."""
        # YOUR CODE HERE
        raise NotImplementedError()

    def state(self) -> dict[str, torch.Tensor]:
        """All that is held: for $Q$ quantised tokens and $R$ others, $H$ KV heads, and once more with `value_...`:

        `key_codes`     uint8, `[Q, H, head_dim * bits // 8]`, the first code of a byte in its highest bits
        `key_scales`    float16, `[Q, H, head_dim // group_size]`
        `key_minima`    float16, the same shape
        `key_residual`  float32, `[R, H, head_dim]`
        """
        # YOUR CODE HERE
        raise NotImplementedError()

    def num_bytes(self) -> int:
        """Bytes of all that `state` gives."""
        # YOUR CODE HERE
        raise NotImplementedError()


# %% check="QuantizedKVLayer"
from autograder import check

check("QuantizedKVLayer")

# %% [markdown]
# What do the bits cost? The relative error of random keys, against the bytes per token.

# %%
fig, ax = plt.subplots(figsize=(6, 3.5))
torch.manual_seed(0)
k, v = torch.randn(2, 256, 2, 64)
for bits in (2, 4, 8):
    sizes, errors = [], []
    for group_size in (16, 32, 64):
        layer = QuantizedKVLayer(2, 64, bits, group_size, residual_length=64)
        layer.append(k, v)
        sizes.append(layer.num_bytes() / 256)
        errors.append(100 * ((layer.keys() - k).norm() / k.norm()).item())
    ax.semilogy(sizes, errors, "o-", label=f"{bits} bits, groups of 64, 32, 16")
ax.axvline(2 * 2 * 64 * 2, color="tab:red", linestyle="--", label="16 bits")
ax.set(xlabel="bytes per token and layer", ylabel="error of the keys (%)", title="Fewer bits, or smaller groups?")
ax.legend(fontsize=8)
plt.show()


# %% [markdown]
# ## Task 9: what a window lets go (about 35 minutes)
#
# A layer with a window of $W$ tokens needs few of the old ones. Which? The next token has position $p$. It attends to
# itself and to the $W - 1$ positions before it: $p - W + 1, \dots, p - 1$. All older ones may be dropped, for windows
# only move on.
#
# **Sinks.** If *all* old tokens go, models that were trained with full attention break down, for they have learned to
# park attention on the first few tokens. Keep these, and the model goes on (StreamingLLM, arXiv 2309.17453, which keeps
# 4). So the positions $0, \dots, \text{sinks} - 1$ stay too, beside the window.
#
# *Example.* Positions 0 to 9 are cached, $W = 4$, 2 sinks. The next token has position 10 and sees 7, 8 and 9; 0 and 1
# are sinks: `[0, 1, 7, 8, 9]` stay. One step later, `[0, 1, 7, 8, 9, 10]` are cached; 7 goes, and `[0, 1, 8, 9, 10]`
# stay: count *positions*, not entries of the list, for what is cached has gaps.
#
# *$W = 1$.* The next token sees nothing but itself, so nothing stays but the sinks. Beware: `positions[-(W - 1):]` is
# `positions[-0:]`, and that is *everything*. (transformers' `DynamicSlidingWindowLayer` cuts with this very slice, so
# it keeps every token if the window is 1. `AttentionLayer` above does not allow that; here you must get it right.)
#
# **In pages** memory can be given back by whole blocks only: a block goes when *none* of its positions is needed any
# more, be it inside the window or a sink. In the block table the null block takes its place, so that token $i$ is still
# found at `table[i // block_size]` (vLLM's `remove_skipped_blocks` does this). A block that is not full yet never goes:
# the next token is written to it.
#
# *Example.* Blocks of 4, table `[7, 3, 9, 5]`, 14 tokens, $W = 4$, no sinks: positions 11, 12, 13 stay. Block 9 holds
# positions 8 to 11 and must stay; the table becomes `[0, 0, 9, 5]`, and `[7, 3]` can be freed. With 2 sinks block 7
# stays too: `[7, 0, 9, 5]` and `[3]`. At 15 tokens, with `[7, 0, 9, 5]`, 2 sinks: positions 12 to 14 stay, so block 9
# goes: `[7, 0, 0, 5]` and `[9]`.
#
# *Common mistakes:* $W$ instead of $W - 1$ tokens; the window counted from the end of the list; sinks that count as
# part of the window; a block freed while one of its tokens is still seen; the null block "freed" again and again.

# %% task="sliding_window_evict"
def sliding_window_evict(positions: Sequence[int], window: int, sinks: int = 0) -> list[int]:
    """The positions that stay in the cache, in their order.

    Args:
        positions: those that are cached, ascending, perhaps with gaps. The next token has the position after the last.
            Not changed. Empty: `[]`.
        window: tokens that a token attends to, itself included; at least 1.
        sinks: so many positions at the very beginning stay for ever; 0 or more.

    Raises:
        TypeError, ValueError: `window` or `sinks` is no int or too small. The text names it.
    """
    # YOUR CODE HERE
    raise NotImplementedError()


def evict_blocks(
    block_table: Sequence[int], num_tokens: int, block_size: int, window: int, sinks: int = 0
) -> tuple[list[int], list[int]]:
    """The block table after eviction, and the blocks that can be freed.

    Args:
        block_table: the blocks of `num_tokens` tokens, as in task 6; 0 where one has gone already. Not changed.
        num_tokens: tokens that are cached or have been, not more than the table has room for; the next one has this
            position.
        block_size: tokens per block, at least 1.
        window: as above.
        sinks: as above.

    Returns:
        The table, with 0 in place of every block that nobody needs; and what stood there, in the order of the table,
        without the null block.

    Raises:
        TypeError, ValueError: `block_size`, `window` or `sinks` is no int or too small. The text names it.
    """
    # YOUR CODE HERE
    raise NotImplementedError()


# %% check="sliding_window_evict"
from autograder import check

check("sliding_window_evict")

# %% [markdown]
# A picture: which positions are cached while 40 tokens come in, and how many blocks of 4 that takes.

# %%
cached, table, held = [], [], []
pool = BlockPool(num_blocks=32, block_size=4)
fig, (ax, below) = plt.subplots(2, figsize=(6, 6), height_ratios=[2, 1], sharex=True)
for now in range(40):
    cached = sliding_window_evict([*cached, now], window=12, sinks=4)
    if now % 4 == 0:
        table += pool.get_new_blocks(1)
    table, freed = evict_blocks(table, now + 1, block_size=4, window=12, sinks=4)
    pool.free_blocks(freed)
    held.append(sum(block != 0 for block in table))
    ax.scatter([now] * len(cached), cached, s=8, c=["C1" if position < 4 else "C0" for position in cached])
ax.set(ylabel="positions that are cached", title="A window of 12 and 4 sinks")
below.step(range(40), held, where="mid", label="blocks held")
below.step(range(40), [now // 4 + 1 for now in range(40)], where="mid", linestyle="--", label="without a window")
below.set(xlabel="tokens so far", ylabel="blocks of 4 tokens")
below.legend()
plt.show()
