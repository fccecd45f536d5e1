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
# # Continuous batching: many requests, one model, every step full
#
# A server for a language model answers many people at once. In each **step** it runs the model once, for many
# requests together, and each request gets at most one new token. Between two steps there is a lot to do: choose the
# next token of each request, turn tokens into text, stop where the text must stop, and decide who takes part in the
# next step. That is the inside of an engine such as vLLM. In this assignment you build it:
#
# 1. change the logits before sampling: temperature, top-k, top-p, min-p and repetition penalty (five short functions),
# 2. draw the next tokens of a batch, each request with its own settings and its own random numbers (`sample`),
# 3. stop at stop strings, and show no part of them to the user (`StopChecker`),
# 4. turn tokens into text piece by piece, and never show half a character (`IncrementalDetokenizer`),
# 5. decide in each step who computes how many tokens (`ContinuousBatchingScheduler`),
# 6. and measure what a user feels (`measure_stream`).
#
# The five functions take about 10 to 20 minutes each, `sample` 25, `StopChecker` and `IncrementalDetokenizer` 35
# each, the scheduler 100, `measure_stream` 15. No GPU is needed, and no model. You should know Python, PyTorch
# tensors, and that a model gives one number, the *logit*, for each token of its vocabulary. Only `sample` needs other
# tasks: the five functions.
#
# | term | means |
# |---|---|
# | vocabulary size $V$ | number of different tokens; token ids are $0 \dots V - 1$ |
# | logits | a row of $V$ numbers; softmax of them gives the probability of each token as the next one |
# | $-\infty$, `-inf` | the logit of a token that is impossible: softmax gives it probability 0 |
# | request | a prompt, and how many new tokens are wanted at most |
# | step | one run of the model, for some tokens of some requests |
# | prefill | to compute the tokens of the prompt: many in one step |
# | decode | to compute the one token that was sampled last: one in one step |
# | KV cache, block | what the model must keep of each computed token; its memory comes in blocks of `block_size` tokens |
# | preempt | to take the blocks of a running request away; it waits, and is computed again later, from its first token on |
# | FCFS | first come, first served |
#
# **How it is graded.** Only the cells of the ten tasks and the one cell of imports and helpers count. The next cell
# is replaced by the original when grading; all others are yours, change them freely. The cell `check(...)` after each
# task runs its public checks. Hidden checks look at the same rules on other inputs: everything they ask for is written
# here. One call of your code may take 10 s. `sample` calls *your* five functions.
#
# **Rules for all tasks.** Where a docstring says that an argument is checked: a count that is no `int`, or a `bool`, is
# a `TypeError`; a number that is neither `int` nor `float`, or a `bool`, is a `TypeError`; a value outside its range
# (NaN and infinity are outside of every range) is a `ValueError`. The text of the error contains the argument's name.
# `check_count` and `check_number`, below, do all this for you. If several errors apply to one call, any of them is
# right. Other arguments need no checks. Never change a tensor or list that you are given.

# %% given="course"
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

torch.set_num_threads(1)  # all that is computed here is small: more threads would only wait for each other


class OutOfBlocksError(ValueError):
    """More blocks were asked for than are free."""


def check_count(value: int, name: str, minimum: int = 0) -> None:
    """Raise `TypeError` if `value` is no int (a bool is none), `ValueError` if below `minimum`; the text has `name`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r} of type {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {value}")


def check_number(value: float, name: str, high: float = math.inf, *, positive: bool = False) -> None:
    """Raise `TypeError` if `value` is no int or float, `ValueError` if not finite, below 0 or above `high`.

    With `positive=True`, 0 is a `ValueError` too.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {value!r} of type {type(value).__name__}")
    if not (math.isfinite(value) and 0 <= value <= high) or (positive and value == 0):
        raise ValueError(f"{name} must be a finite number {'above' if positive else 'from'} 0 to {high:g}, not {value}")


def make_generator(seed: int) -> torch.Generator:
    """A source of random numbers of its own: `torch.rand(3, generator=make_generator(7))`."""
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class SamplingParams:
    """How the next token of a request is chosen. The defaults change nothing. The names are those of vLLM."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


class Tokenizer:
    """A tokenizer to try things with. Token i stands for the bytes `pieces[i]`: a character may need several tokens.

    With `strip_space=True` a space at the very beginning of a text is dropped, as Llama's first tokenizers do.
    """

    def __init__(self, pieces: Sequence[bytes], strip_space: bool = False) -> None:
        self.pieces, self.strip_space = list(pieces), strip_space

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the tokens. Bytes that are no character (yet) become U+FFFD, the replacement character."""
        text = b"".join(self.pieces[token] for token in ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.strip_space else text


class BlockPool:
    """Memory for the KV cache: `num_blocks` blocks, numbered from 0, each with room for `block_size` tokens."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        check_count(num_blocks, "num_blocks", 1)
        check_count(block_size, "block_size", 1)
        self.num_blocks, self.block_size = num_blocks, block_size
        self._free = list(range(num_blocks))
        self._used: set[int] = set()

    def num_free(self) -> int:
        """How many blocks are free."""
        return len(self._free)

    def allocate(self, n: int) -> list[int]:
        """Take `n` blocks, at least 0. `OutOfBlocksError` if fewer are free: nothing has changed then."""
        check_count(n, "n")
        if n > len(self._free):
            raise OutOfBlocksError(f"{n} blocks were asked for, {len(self._free)} are free")
        blocks, self._free = self._free[:n], self._free[n:]
        self._used.update(blocks)
        return blocks

    def free(self, blocks: Sequence[int]) -> None:
        """Give blocks back. `ValueError` if one of them is not in use, or stands twice: nothing has changed then."""
        if len(set(blocks)) != len(blocks) or not self._used.issuperset(blocks):
            raise ValueError(f"{list(blocks)} are not all in use, so they cannot be freed")
        self._used.difference_update(blocks)
        self._free.extend(blocks)


@dataclass
class Request:
    """What a scheduler may keep of a request. Use it or not, as you like."""

    request_id: str
    prompt: list[int]
    max_tokens: int
    outputs: list[int] = field(default_factory=list)
    num_computed: int = 0
    """Of the tokens, prompt and outputs, how many are computed and in the KV cache."""
    blocks: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """All tokens that are known: the prompt, and what was sampled."""
        return self.prompt + self.outputs


# %% helpers="helpers"
# Your imports and helpers. Everything that several tasks share goes here; this cell is graded together with them.

# %% [markdown]
# ## Task 1: temperature (about 10 minutes)
#
# A model gives logits $z$; the next token is drawn from softmax$(z)$. **Temperature** $T > 0$ divides the logits
# first: softmax$(z / T)$. Below 1 the likely tokens become more likely, above 1 all become more equal. $T = 0$ would
# be a division by zero. It means *greedy*: only the token with the largest logit is possible. So give that token its
# logit, and all others $-\infty$. If several have the largest logit, the one with the smallest id.
#
# *Example.* For the logits $[2, 1, 0, -1]$ the probabilities are $[0.6439, 0.2369, 0.0871, 0.0321]$. With $T = 2$ the
# logits are $[1, 0.5, 0, -0.5]$ and the probabilities $[0.4551, 0.2760, 0.1674, 0.1015]$. With $T = 0$ the logits are
# $[2, -\infty, -\infty, -\infty]$.
#
# All five functions take logits of shape $[\dots, V]$ (task 5: $[V]$), fp32, and return a **new** tensor of the same
# shape and dtype. Each row is handled on its own. A logit may be $-\infty$ already, and stays so; in each row at
# least one is finite.


# %% task="apply_temperature"
def apply_temperature(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Divide logits by the temperature; with 0, leave only the first of the largest in each row.

    Args:
        logits: fp32, shape [..., V].
        temperature: at least 0; checked. No number between 0 and 0.01 is asked for.

    Returns:
        A new tensor, fp32, of the same shape.
    """
    ### BEGIN SOLUTION
    check_number(temperature, "temperature")
    if temperature > 0:
        return logits / temperature
    best = logits.argmax(-1, keepdim=True)
    return torch.full_like(logits, -math.inf).scatter(-1, best, logits.gather(-1, best))
    ### END SOLUTION


# %% [markdown]
# ## Task 2: top-k (about 10 minutes)
#
# Even very unlikely tokens are drawn at times, and one nonsense word can spoil a text. **Top-k** keeps the $k$ tokens
# with the largest logits of each row; all others get $-\infty$. Tokens whose logit *equals* the $k$-th largest are
# kept as well, so it may be more than $k$. $k = 0$ switches it off, as does a $k$ of $V$ or more: nothing changes.
#
# *Examples.* $[2, 1, 0, -1]$ with $k = 2$: $[2, 1, -\infty, -\infty]$. $[1, 3, 1, 0]$ with $k = 2$:
# $[1, 3, 1, -\infty]$, three tokens, since the second largest logit stands twice.
#
# *Common mistakes:* probabilities in place of logits; the $k$-th largest of the whole batch in place of the row; an
# error for $k > V$; with $k = 0$, nothing is left.


# %% task="apply_top_k"
def apply_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Give -inf to all tokens whose logit is below the k-th largest of their row.

    Args:
        logits: fp32, shape [..., V].
        k: at least 0; checked. 0 changes nothing.

    Returns:
        A new tensor, fp32, of the same shape.
    """
    ### BEGIN SOLUTION
    check_count(k, "k")
    if k == 0 or k >= logits.shape[-1]:
        return logits.clone()
    smallest = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, -math.inf)
    ### END SOLUTION


# %% [markdown]
# ## Task 3: top-p (about 20 minutes)
#
# How many tokens are reasonable differs from place to place. After "The capital of France is" it is one; at the start
# of a story thousands. **Top-p** (nucleus sampling) keeps as few tokens as reach the probability $p$ together: go
# from the likeliest token down, add up their probabilities, and stop as soon as the sum is at least $p$. **The token
# that makes the sum reach $p$ is kept**, too. So at least one is always kept. All others get $-\infty$. $p = 1$
# changes nothing.
#
# *Example.* $[2, 1, 0, -1]$ has the probabilities $[0.6439, 0.2369, 0.0871, 0.0321]$. $p = 0.6$ keeps one token
# ($0.6439 \ge 0.6$). $p = 0.8$ keeps two: $0.6439$ is not enough, $0.6439 + 0.2369 = 0.8808$ is. $p = 0.95$ keeps
# three.
#
# *Common mistakes:* the crossing token is dropped, so that $p = 0.6$ keeps nothing and the softmax of the row is NaN;
# the mask is computed on the sorted row and never brought back to the places of the tokens; with $p = 1$ tokens are
# lost, because a sum of rounded numbers reached 1 too early.
#
# Where two tokens have exactly equal logits and only one of them is needed, keep either or both; this is not checked.


# %% task="apply_top_p"
def apply_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the likeliest tokens of each row that reach probability p together; all others get -inf.

    Args:
        logits: fp32, shape [..., V].
        p: above 0, at most 1; checked, by the name `p`. 1 changes nothing.

    Returns:
        A new tensor, fp32, of the same shape.
    """
    ### BEGIN SOLUTION
    check_number(p, "p", 1, positive=True)
    if p == 1:
        return logits.clone()
    probs, order = torch.softmax(logits, -1).sort(-1, descending=True)
    dropped = probs.cumsum(-1) - probs >= p  # what stands before it is enough already
    dropped[..., 0] = False
    return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -math.inf)
    ### END SOLUTION


# %% [markdown]
# ## Task 4: min-p (about 10 minutes)
#
# **Min-p** keeps each token whose probability is at least `min_p` times that of the likeliest token of its row; all
# others get $-\infty$. Where the model is sure, few are kept; where it is not, many. `min_p` $= 0$ changes nothing.
#
# *Example.* $[2, 1, 0, -1]$, likeliest $0.6439$. `min_p` $= 0.2$: at least $0.1288$, so two are kept. `min_p` $=
# 0.1$: at least $0.0644$, so three.
#
# *Common mistake:* to compare with `min_p` itself. With `min_p` $= 0.1$ that would keep two tokens here, not three
# ($0.0871 < 0.1$).


# %% task="apply_min_p"
def apply_min_p(logits: torch.Tensor, min_p: float) -> torch.Tensor:
    """Give -inf to all tokens that are less likely than `min_p` times the likeliest of their row.

    Args:
        logits: fp32, shape [..., V].
        min_p: 0 to 1; checked. 0 changes nothing.

    Returns:
        A new tensor, fp32, of the same shape.
    """
    ### BEGIN SOLUTION
    check_number(min_p, "min_p", 1)
    probs = torch.softmax(logits, -1)
    return logits.masked_fill(probs < min_p * probs.amax(-1, keepdim=True), -math.inf)
    ### END SOLUTION


# %% [markdown]
# ## Task 5: repetition penalty (about 15 minutes)
#
# Small models like to say the same again and again. The **repetition penalty** $\theta$ makes each token less likely
# that stands in the text already (prompt and answer). Where the logit is positive, it is **divided** by $\theta$;
# where it is negative, **multiplied** by it. Both make it smaller if $\theta > 1$. Each token is changed once, also
# if it stands in the text ten times. $\theta = 1$ changes nothing.
#
# *Example.* $[2, 1, 0, -1]$ with $\theta = 1.5$ after the text `[0, 3, 0]`: $[1.3333, 1, 0, -1.5]$.
#
# *Common mistakes:* to divide negative logits as well: $-1 / 1.5 = -0.667$ is *larger*, so a repeated token becomes
# more likely; to apply it once for each time that the token stands in the text.
#
# Do you see what is strange here? Softmax does not change if you add 5 to all logits, but this penalty does. It is what
# transformers and vLLM do, so users expect it.


# %% task="apply_repetition_penalty"
def apply_repetition_penalty(logits: torch.Tensor, penalty: float, token_ids: Sequence[int]) -> torch.Tensor:
    """Make the tokens of the text less likely.

    Args:
        logits: fp32, shape [V]: one request, since each has a text of its own.
        penalty: above 0; checked. Below 1, repetition becomes more likely.
        token_ids: the text so far, prompt and answer; may be empty.

    Returns:
        A new tensor, fp32, of the same shape.
    """
    ### BEGIN SOLUTION
    check_number(penalty, "penalty", positive=True)
    result = logits.clone()
    for token in set(token_ids):
        result[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    return result
    ### END SOLUTION


# %% [markdown]
# Before you go on: what do your functions do to a row of logits? Change the numbers.

# %%
import matplotlib.pyplot as plt

torch.manual_seed(0)
row = torch.randn(24).mul(2).sort(descending=True).values
versions = {
    "logits as they are": row,
    "temperature 0.5": apply_temperature(row, 0.5),
    "top-k 6": apply_top_k(row, 6),
    "top-p 0.8": apply_top_p(row, 0.8),
    "temperature 2, then top-p 0.8": apply_top_p(apply_temperature(row, 2), 0.8),
    "min-p 0.1": apply_min_p(row, 0.1),
}
figure, axes = plt.subplots(2, 3, figsize=(9, 4), sharex=True, sharey=True)
for axis, (name, logits) in zip(axes.flat, versions.items(), strict=True):
    axis.bar(range(24), torch.softmax(logits, -1).tolist())
    axis.set_title(name, fontsize=9)
figure.supxlabel("token, likeliest first")
figure.supylabel("probability")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Task 6: the next tokens of a batch (about 25 minutes)
#
# In one step the model gives one row of logits per request, and each request has its own `SamplingParams`, its own
# text and its own **generator** of random numbers. For each request apply, in this order (it is vLLM's):
#
# 1. repetition penalty, 2. temperature, 3. min-p, 4. top-k, 5. top-p,
#
# and draw one token from the softmax of what is left. Each function sees what the one before it has left: the
# probabilities in top-p are those *after* temperature, min-p and top-k, and sum to 1 again. (transformers has another
# order: there, min-p comes after top-p.)
#
# **Each request draws from its own generator, and from nothing else.** Then a user who gives a seed gets the same
# answer again, no matter who else is in the batch. One generator for the whole batch would give other random numbers
# to a request as soon as a neighbour comes or goes. In the same way, never seed a generator yourself: it must go on
# from where it is, or each step would use the same random numbers. `torch.multinomial(probs, 1, generator=...)`
# draws.
#
# *Examples.* Logits $[2, 1, 0, -1]$ with `SamplingParams(temperature=0)`: token 0, always. With
# `SamplingParams(temperature=2, top_p=0.8)`: the probabilities at $T = 2$ are $[0.4551, 0.2760, 0.1674, 0.1015]$;
# $0.4551 + 0.2760 = 0.7311$ is below $0.8$, so three tokens are kept, and drawn with $[0.5065, 0.3072, 0.1863]$.
# Top-p *before* the temperature would keep two.


# %% task="sample"
def sample(
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    generators: Sequence[torch.Generator],
    token_ids: Sequence[Sequence[int]],
) -> torch.Tensor:
    """Draw the next token of each request.

    Args:
        logits: fp32, shape [B, V].
        params: how each request wants it, B of them.
        generators: where each request's random numbers come from, B different ones.
        token_ids: the text of each request so far, for the repetition penalty.

    Returns:
        Token ids, int64, shape [B].
    """
    ### BEGIN SOLUTION
    drawn = []
    for row, wanted, generator, text in zip(logits, params, generators, token_ids, strict=True):
        row = apply_repetition_penalty(row, wanted.repetition_penalty, text)
        row = apply_temperature(row, wanted.temperature)
        row = apply_min_p(row, wanted.min_p)
        row = apply_top_k(row, wanted.top_k)
        row = apply_top_p(row, wanted.top_p)
        drawn.append(torch.multinomial(torch.softmax(row, -1), 1, generator=generator))
    return torch.cat(drawn)
    ### END SOLUTION


# %% [markdown]
# ## Task 7: stop strings (about 35 minutes)
#
# A user may ask the answer to end where a text such as `"\n\n"` or `"User:"` appears. The text comes in pieces, and
# **a stop string may be spread over several pieces**: `"Us"`, `"er"`, `": hi"`. A user must never see the beginning
# of a stop string, so what might become one is held back until it is certain.
#
# The rule, which does not depend on how the text is cut into pieces: read the text character by character. As soon as
# what has been read **ends with a stop string**, generation stops there. If it ends with several of them, the longest
# counts. All that stands before the stop string is shown to the user; the stop string itself only with
# `include_stop=True`; what comes after it, never.
#
# `feed(text, token_id)` gets the next piece and the id of its token, and gives two values: the text that may be shown
# now, and the finish reason: `"stop"` if generation stops, else `None`.
#
# - Hold back **as little as possible**: the longest ending of the text so far that is the beginning of a stop string.
#   All before it is shown at once (and nothing is shown twice).
# - If `token_id` is one of `eos_token_ids` (tokens that end a text), the text of that piece is not shown, and all
#   that was held back is: no stop string will come any more. The reason is `"stop"`.
# - A piece may be empty (task 8 gives such pieces).
# - `finish()` is called when generation ended for another reason, for instance at `max_tokens`. It gives what is held
#   back. After a reason `"stop"` it gives `""`. After `finish()` or `"stop"` nothing more is fed.
#
# *Example.* `stop=["User:"]`:
#
# | piece | shown now | held back | reason |
# |---|---|---|---|
# | `"Hi"` | `"Hi"` | | `None` |
# | `". U"` | `". "` | `"U"` | `None` |
# | `"s"` | `""` | `"Us"` | `None` |
# | `"U"` | `"Us"` | `"U"` | `None` |
# | `"ser: a"` | `""` | | `"stop"` |
#
# The user sees `"Hi. Us"`. With `include_stop=True` the last piece would show `"User:"`. And a hard one:
# `stop=["abcd", "bc"]` and the pieces `"xab"`, `"cd"`. The first shows `"x"` and holds `"ab"` back. With the `c` the
# text ends with `"bc"`: the second shows `"a"`, reason `"stop"`. The `d` is never read.
#
# *Common mistakes:* to look for stop strings inside each piece only; to hold back nothing, or a fixed number of
# characters (the user waits for text that is certain); to choose by the order of the list.


# %% task="StopChecker"
class StopChecker:
    """Finds the place where a text that comes in pieces must stop.

    Args:
        stop: stop strings, none of them empty; the list may be empty.
        eos_token_ids: tokens that end a text.
        include_stop: whether the stop string is shown.

    Raises:
        ValueError: a stop string is empty. The text of the error names `stop`.
    """

    def __init__(self, stop: Sequence[str], eos_token_ids: Sequence[int] = (), include_stop: bool = False) -> None:
        ### BEGIN SOLUTION
        if "" in stop:
            raise ValueError("stop must not contain an empty string: every text ends with it")
        self._stop = sorted(stop, key=len, reverse=True)
        self._eos_token_ids = frozenset(eos_token_ids)
        self._include_stop = include_stop
        self._held = ""
        ### END SOLUTION

    def feed(self, text: str, token_id: int) -> tuple[str, str | None]:
        """The next piece of text, and its token. Gives what may be shown now, and "stop" or `None`."""
        ### BEGIN SOLUTION
        if token_id in self._eos_token_ids:
            return self.finish(), "stop"
        for end in range(1, len(text) + 1):
            seen = self._held + text[:end]
            for stop in self._stop:
                if seen.endswith(stop):
                    self._held = ""
                    return seen if self._include_stop else seen.removesuffix(stop), "stop"
        seen = self._held + text
        for start in range(max(0, len(seen) - len(max(self._stop, key=len, default=""))), len(seen) + 1):
            if any(stop.startswith(seen[start:]) for stop in self._stop) or start == len(seen):
                self._held = seen[start:]
                return seen[:start], None
        raise AssertionError("the empty ending is always found")
        ### END SOLUTION

    def finish(self) -> str:
        """Generation ended: what was held back."""
        ### BEGIN SOLUTION
        held, self._held = self._held, ""
        return held
        ### END SOLUTION


# %% [markdown]
# ## Task 8: from tokens to text (about 35 minutes)
#
# A token is a piece of **bytes**, not of characters. In UTF-8, "é" is two bytes, "你" three, "🙂" four, and a tokenizer
# may cut inside of them. `decode([token])`, token by token, then gives replacement characters "�" (U+FFFD) in place
# of the character. Another trap: some tokenizers drop a space at the beginning of a text, so that the tokens `" a"`,
# `" cat"`, decoded one by one, become `"acat"`.
#
# `push(token)` takes the next token and gives the text that is certain now; `finish()` gives the rest. All together
# must be **exactly** `decode(all tokens)`, for any tokens, also for those that are no valid UTF-8 (a model may write
# anything). After each `push`:
#
# - if `decode` of all tokens so far does **not** end with U+FFFD, all of that text has been given;
# - if it does, the end may be half a character: the U+FFFD characters at the end have not been given. What stands
#   before them has been given, or is given later, as you like.
#
# **Counted:** to decode all tokens again for each new one takes time that grows with the square of the length. The
# grader counts the tokens that you give to `decode`. For a text of $n$ tokens in which no character is spread over
# more than four, it may be $20 n$ in all. The usual way: remember two places, `prefix` and `read`, up to which text
# was given. When a token comes, decode `tokens[prefix:read]` and `tokens[prefix:]`; what the second has more than the
# first is new. If it is not empty and does not end with U+FFFD, give it, and move: `prefix` to `read`, `read` to the
# end. The tokens from `prefix` to `read` are there because of the second trap: they give the new ones something that
# stands before them.
#
# *Example.* Tokens 0 to 4 are the bytes `"Hi"`, `" "`, `F0 9F`, `99 82` and `"!"`. (`F0 9F 99 82` is "🙂".) Pushing 0,
# 1, 2, 3, 4 gives `"Hi"`, `" "`, `""`, `"🙂"`, `"!"`, and `finish()` gives `""`. Pushing 0, 2 gives `"Hi"`, `""`, and
# `finish()` gives `"�"`, since `decode([0, 2])` is `"Hi�"`. Pushing 0, 2, 4 gives `"Hi"`, `""`, `"�!"`.


# %%
pieces = [b"Hi", b" ", b"\xf0\x9f", b"\x99\x82", b"!"]
print([Tokenizer(pieces).decode([token]) for token in (0, 1, 2, 3, 4)], Tokenizer(pieces).decode([0, 1, 2, 3, 4]))


# %% task="IncrementalDetokenizer"
class IncrementalDetokenizer:
    """Turns the tokens of one answer into text, piece by piece.

    Args:
        decode: gives the text of a list of tokens, as `Tokenizer.decode`.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        ### BEGIN SOLUTION
        self._decode = decode
        self._ids: list[int] = []
        self._prefix = self._read = 0
        ### END SOLUTION

    def push(self, token: int) -> str:
        """The next token. Gives the text that is certain now and was not given before, perhaps ""."""
        ### BEGIN SOLUTION
        self._ids.append(token)
        text = self._new()
        if not text or text.endswith("\ufffd"):
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return text
        ### END SOLUTION

    def finish(self) -> str:
        """The answer is complete: the text that was not given yet. Nothing is pushed after it."""
        ### BEGIN SOLUTION
        return self._new()

    def _new(self) -> str:
        given = self._decode(self._ids[self._prefix : self._read])
        return self._decode(self._ids[self._prefix :])[len(given) :]
        ### END SOLUTION


# %% [markdown]
# ## Task 9: who takes part in the next step (about 100 minutes)
#
# *Static batching* takes $B$ requests, runs them until the **last** one is finished, and then takes the next $B$. A
# request that is finished after 5 tokens leaves its place empty until its neighbour has its 200. **Continuous
# batching** decides anew before each step. Who is finished leaves at once, and the next one comes in. Moreover, a
# long prompt is computed in **chunks**, so that it does not keep the others waiting (*chunked prefill*).
#
# There is no "prefill phase" in the scheduler, and no "decode phase". Each request has tokens that are **known** (the
# prompt, and what was sampled so far), and of these some are **computed**. In each step a request may compute some of
# its known tokens that are not computed yet. When all known tokens are computed, the model has said what comes next,
# and one more token becomes known. A prompt of 100 tokens has 100 to compute; later there is always 1.
#
# A request is *waiting*, *running*, or gone. The waiting ones stand in a queue. The running ones stand in a list, in
# the order in which they were admitted.
#
# ### One step: `schedule()`
#
# It starts with a **budget** of `max_num_batched_tokens` tokens.
#
# **How many tokens:** a request computes as many as possible of its known tokens: those not computed yet, but at most
# what is left of the budget, and at most `long_prefill_threshold`. (The threshold 0 means none. There is also none
# while only **one** request is there, running and waiting ones together, at the beginning of the step: then there is
# nobody to protect.)
#
# **Part 1: the running ones,** from the first to the last, while the budget is above 0.
# - A request needs `ceil(computed / block_size)` blocks, where *computed* includes the tokens of this step. Take as
#   many new blocks from the pool as it lacks, no more.
# - If the pool has not so many, **preempt the last one of the running list**: free all its blocks, set its computed
#   tokens to 0 (what it sampled stays known), and put it at the **front** of the waiting queue. Then try again.
#   Repeat this, perhaps until the request that needs blocks is itself the last one, and is preempted. Then part 1
#   ends.
# - Otherwise its tokens are taken from the budget, and the next one comes.
#
# **Part 2: the waiting ones,** from the front of the queue, but only if **nobody was preempted** in this step. Admit
# the first one while all of these hold; if one fails, stop. Nobody overtakes.
# - The budget is above 0.
# - Fewer than `max_num_seqs` requests are running.
# - The pool has free blocks for **all** known tokens of the request, also if this step computes only a part of
#   them. It gets blocks for those of this step only.
#
# (Can you see why, with the last condition, nobody could be admitted after a preemption anyway?)
#
# An admitted request joins the end of the running list, with as many tokens as said above.
#
# **What it gives:** a pair `(scheduled, preempted)`. `scheduled` is a dict with an entry for each request that takes
# part: `request_id: (start, tokens, blocks)`. `tokens` is the list of known tokens that are computed in this step,
# `start` the place of the first of them in the text (= how many were computed before), `blocks` the list of **all**
# blocks of the request, in the order in which it got them. The model puts what it computes for the token at place $i$
# into `blocks[i // block_size]`. `preempted` is the list of ids that were preempted, in this order. When `schedule`
# returns, the tokens count as computed.
#
# ### After the step: `update(sampled)`
#
# `sampled` is a dict: the new token of each request whose known tokens are all computed now. (Requests in the middle
# of their prompt are not in it.) The token becomes known. If it is `eos_token_id`, or the `max_tokens`-th one that
# was sampled, the request is finished: it leaves, and its blocks are freed **at once**. `update` gives the list of
# ids that are finished now, in any order. Ids that are not running are ignored: they may have been aborted while the
# step ran.
#
# ### Coming and going: `add` and `abort`
#
# `add` puts a request at the end of the waiting queue. A request that could **never** fit, alone in an empty pool,
# would block the queue for ever, so it is a `ValueError`. (The last sampled token is never computed. So a request
# needs blocks for `len(prompt) + max_tokens - 1` tokens at most.) `abort` removes a request, wherever it is, and
# frees its blocks: a user has closed the window.
#
# ### An example
#
# `max_num_seqs=3`, `max_num_batched_tokens=8`, `long_prefill_threshold=6`, a pool of 5 blocks of 4 tokens. Three
# requests: *a* with 7 tokens of prompt and `max_tokens=6`, *b* with 6 and 4, *c* with 2 and 3. A number is the tokens
# computed, in brackets the blocks held after it.
#
# | step | *a* | *b* | *c* | preempted | finished | free blocks after `update` |
# |--:|---|---|---|---|---|--:|
# | 1 | 6 [2] | 2 [1] | | | | 2 |
# | 2 | 1 [2] | 4 [2] | 2 [1] | | | 0 |
# | 3 | 1 [2] | 1 [2] | 1 [1] | | | 0 |
# | 4 | 1 [3] | 1 [2] | | *c* | | 0 |
# | 5 | 1 [3] | | | *b* | | 2 |
# | 6 | 1 [3] | | | | | 2 |
# | 7 | 1 [3] | | | | *a* | 5 |
# | 8 | | 6 [2] | 2 [1] | | | 2 |
# | 9 | | 3 [3] | 2 [1] | | *b*, *c* | 5 |
#
# Step 1: *a* may compute 6 of its 7 tokens (threshold). 2 are left for *b*: its 6 tokens need 2 blocks, and 3 are
# free. *c* would fit, but the budget is used up. Step 2: *a* computes its last token of prompt, and gets its first
# answer token; *b* the 4 that are left; *c* comes in. Step 4: *a* has 8 computed tokens in 2 full blocks, and needs a
# third one. None is free. *c* is the last one running: it is preempted, and *a* gets its block. Step 5: *b* needs a
# third block, too. Now *b* itself is the last one: it is preempted. The queue is *b*, *c* again, in the old order.
# Step 6: nobody was preempted, so *b* may come in; but its 9 known tokens (6 of prompt and 3 sampled) need 3 blocks,
# and only 2 are free. *c* would fit, but nobody overtakes. Step 8: *b* computes 6 of its 9 tokens again (threshold),
# and 2 are left of the budget for *c*.
#
# *Common mistakes:* to admit new requests only when all are finished (that is static batching); to preempt the oldest
# request, or to put the preempted one at the end of the queue (it may starve); to forget what was sampled before the
# preemption; blocks that are not freed after an abort; `start` always 0, so that the second chunk of a prompt is
# computed at the wrong place; waiting ones before running ones, so that those who are reading their answer must wait.
#
# **Counted:** steps. For 64 requests, 8 places and a large pool, static batching needs 278 steps; these rules need 134.
# A part of the points asks for at most $1 / 1.3$ of the static ones, another part for the exact decisions.
#
# These are the rules of vLLM 0.32 (`v1/core/sched/scheduler.py`) as it is without prefix caching, speculation and
# priorities. The hidden checks compare with what vLLM's own scheduler decided.


# %% task="ContinuousBatchingScheduler"
class ContinuousBatchingScheduler:
    """Decides in each step which request computes how many tokens.

    Args:
        max_num_seqs: how many requests may run at once, at least 1; checked.
        max_num_batched_tokens: tokens in one step, at least 1; checked.
        pool: where blocks come from. Nobody else uses it.
        long_prefill_threshold: tokens of one request in one step, at least 0; checked. 0: no such limit.
        eos_token_id: the token that ends a text, if any.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        pool: BlockPool,
        long_prefill_threshold: int = 0,
        eos_token_id: int | None = None,
    ) -> None:
        ### BEGIN SOLUTION
        check_count(max_num_seqs, "max_num_seqs", 1)
        check_count(max_num_batched_tokens, "max_num_batched_tokens", 1)
        check_count(long_prefill_threshold, "long_prefill_threshold")
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._pool = pool
        self._threshold = long_prefill_threshold
        self._eos_token_id = eos_token_id
        self._waiting: list[Request] = []
        self._running: list[Request] = []
        ### END SOLUTION

    def add(self, request_id: str, prompt: Sequence[int], max_tokens: int) -> None:
        """Put a request at the end of the waiting queue.

        Raises:
            ValueError: there is a waiting or running request with this id (the text names `request_id`), `prompt` is empty
                (the text names `prompt`), or the request could never fit into the pool. Nothing has changed then.
            TypeError, ValueError: `max_tokens` is no int or below 1; checked.
        """
        ### BEGIN SOLUTION
        check_count(max_tokens, "max_tokens", 1)
        if any(request.request_id == request_id for request in self._waiting + self._running):
            raise ValueError(f"request_id {request_id!r} is taken by a request that is not finished")
        if not prompt:
            raise ValueError("prompt must have at least one token")
        if self._blocks_for(len(prompt) + max_tokens - 1) > self._pool.num_blocks:
            raise ValueError(f"the pool of {self._pool.num_blocks} blocks is too small for this request")
        self._waiting.append(Request(request_id, list(prompt), max_tokens))
        ### END SOLUTION

    def abort(self, request_id: str) -> None:
        """Remove a waiting or running request.

        Raises:
            KeyError: there is none with this id.
        """
        ### BEGIN SOLUTION
        for group in (self._waiting, self._running):
            for request in group:
                if request.request_id == request_id:
                    group.remove(request)
                    self._pool.free(request.blocks)
                    return
        raise KeyError(request_id)
        ### END SOLUTION

    def schedule(self) -> tuple[dict[str, tuple[int, list[int], list[int]]], list[str]]:
        """Decide on one step. Gives `(scheduled, preempted)`, as described above; both may be empty."""
        ### BEGIN SOLUTION
        budget = self._max_num_batched_tokens
        threshold = self._threshold if len(self._running) + len(self._waiting) > 1 else 0
        scheduled: dict[str, tuple[int, list[int], list[int]]] = {}
        preempted: list[str] = []

        def take(request: Request, n: int) -> None:
            start = request.num_computed
            request.num_computed += n
            lacking = self._blocks_for(request.num_computed) - len(request.blocks)
            request.blocks += self._pool.allocate(lacking)
            tokens = request.tokens[start : request.num_computed]
            scheduled[request.request_id] = (start, tokens, list(request.blocks))

        def chunk(request: Request) -> int:
            n = min(len(request.tokens) - request.num_computed, budget)
            return min(n, threshold) if threshold else n

        for request in list(self._running):
            if budget == 0 or request not in self._running:
                break
            n = chunk(request)
            lacking = self._blocks_for(request.num_computed + n) - len(request.blocks)
            while request in self._running and lacking > self._pool.num_free():
                last = self._running.pop()
                self._pool.free(last.blocks)
                last.blocks, last.num_computed = [], 0
                self._waiting.insert(0, last)
                preempted.append(last.request_id)
            if request in self._running:
                take(request, n)
                budget -= n
        while not preempted and self._waiting and budget and len(self._running) < self._max_num_seqs:
            request = self._waiting[0]
            if self._blocks_for(len(request.tokens)) > self._pool.num_free():
                break
            self._running.append(self._waiting.pop(0))
            n = chunk(request)
            take(request, n)
            budget -= n
        return scheduled, preempted
        ### END SOLUTION

    def update(self, sampled: dict[str, int]) -> list[str]:
        """The step has run: the new token of each request that was computed to its end. Gives the ids that are finished now."""
        ### BEGIN SOLUTION
        finished = []
        for request in list(self._running):
            if request.request_id in sampled:
                request.outputs.append(sampled[request.request_id])
                if len(request.outputs) == request.max_tokens or request.outputs[-1] == self._eos_token_id:
                    finished.append(request.request_id)
                    self.abort(request.request_id)
        return finished

    def _blocks_for(self, tokens: int) -> int:
        return math.ceil(tokens / self._pool.block_size)
        ### END SOLUTION


# %% [markdown]
# Now look at it. Above: static batching. Below: your scheduler, on the same 24 requests with 6 places. Blue: prefill,
# green: decode, red: preempted and waiting. White inside the upper picture is a place that nobody uses. The last
# picture shows how full the budget is in each step. Make the pool smaller (`num_blocks`) and see what happens.

# %%
import random

draw = random.Random(3)
trace = [(f"r{i}", draw.randint(4, 40), draw.choice([3, 6, 10, 40])) for i in range(24)]  # id, prompt, max_tokens
PLACES, BUDGET = 6, 64
EMPTY, PREFILL, DECODE, PREEMPTED = range(4)


def static_steps() -> list[dict[str, int]]:
    """What each request does in each step of static batching: all prompts at once, then until the last one is finished."""
    steps = []
    for first in range(0, len(trace), PLACES):
        batch = trace[first : first + PLACES]
        for step in range(max(wanted for _, _, wanted in batch)):
            steps.append({name: DECODE if step else PREFILL for name, _, wanted in batch if step < wanted})
    return steps


def continuous_steps(num_blocks: int) -> tuple[list[dict[str, int]], list[tuple[int, int]]]:
    """The same with your scheduler, and the tokens of prefill and of decode in each step."""
    scheduler = ContinuousBatchingScheduler(PLACES, BUDGET, BlockPool(num_blocks, 4), long_prefill_threshold=32)
    known = {name: prompt for name, prompt, _ in trace}
    for name, prompt, wanted in trace:
        scheduler.add(name, [1] * prompt, wanted)
    steps, fill, out = [], [], set()
    left = set(known)
    while left and len(steps) < 1000:
        scheduled, preempted = scheduler.schedule()
        out = (out | set(preempted)) - set(scheduled)
        steps.append(
            {name: DECODE if len(tokens) == 1 and start else PREFILL for name, (start, tokens, _) in scheduled.items()}
        )
        decodes = sum(kind == DECODE for kind in steps[-1].values())
        fill.append((sum(len(tokens) for _, tokens, _ in scheduled.values()) - decodes, decodes))
        steps[-1] |= dict.fromkeys(out, PREEMPTED)
        ready = [name for name, (start, tokens, _) in scheduled.items() if start + len(tokens) == known[name]]
        for name in ready:
            known[name] += 1
        left -= set(scheduler.update(dict.fromkeys(ready, 1)))
    return steps, fill


static, (continuous, fill) = static_steps(), continuous_steps(num_blocks=60)
print(
    f"static: {len(static)} steps, continuous: {len(continuous)} steps, {len(static) / max(1, len(continuous)):.2f} times as many"
)
figure, axes = plt.subplots(3, 1, figsize=(9, 8), sharex=True)
colors = plt.matplotlib.colors.ListedColormap(["white", "tab:blue", "tab:green", "tab:red"])
for axis, steps, title in ((axes[0], static, "static"), (axes[1], continuous, "continuous")):
    picture = [[step.get(name, EMPTY) for step in steps] for name, _, _ in trace]
    axis.imshow(picture, aspect="auto", cmap=colors, vmin=0, vmax=3, interpolation="nearest")
    axis.set_title(f"{title} batching: {len(steps)} steps")
    axis.set_ylabel("request")
axes[2].bar(range(len(fill)), [decodes for _, decodes in fill], width=1, color="tab:green")
axes[2].bar(
    range(len(fill)), [many for many, _ in fill], width=1, color="tab:blue", bottom=[decodes for _, decodes in fill]
)
axes[2].axhline(BUDGET, color="gray", linestyle=":")
axes[2].set_ylabel("tokens in the step")
axes[2].set_xlabel("step")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Task 10: what the user feels (about 15 minutes)
#
# A streamed answer is a list of *events*: when a piece arrived, and how many tokens were in it. Three numbers are
# told of every server:
#
# - **TTFT**, time to first token: from sending the request to the first piece that has a token.
# - **TPOT**, time per output token: (time of the last piece with a token − time of the first) / (number of tokens −
#   1). The first token does not count: its time is the TTFT.
# - **ITL**, inter-token latencies: the *list* of times between one piece with a token and the next.
#
# Servers also send pieces without any token: the first one often says only that the role is "assistant", the last one
# why the answer ended. They count for nothing. A piece may have several tokens (speculative decoding): then the mean
# of ITL is not TPOT. These are the formulas of vLLM's own benchmark (`vllm/benchmarks/serve.py`).
#
# *Example.* Sent at 10.0; events `(10.1, 0)`, `(10.5, 1)`, `(10.6, 1)`, `(10.9, 3)`, `(11.0, 0)`. TTFT = 0.5 s. There
# are 5 tokens, so TPOT = (10.9 − 10.5) / 4 = 0.1 s. ITL = [0.1, 0.3]; its mean is 0.2.
#
# *Common mistakes:* the piece without a token is taken for the first token (TTFT 0.1); to divide by 5; to divide by
# the number of pieces; to measure to the last event in place of the last token.


# %% task="measure_stream"
def measure_stream(sent_s: float, events: Sequence[tuple[float, int]]) -> dict[str, object]:
    """TTFT, TPOT and ITL of one answer.

    Args:
        sent_s: when the request was sent, in seconds on some clock.
        events: (time in seconds on the same clock, number of tokens) of each piece, in the order of arrival.

    Returns:
        A dict: "ttft_s", a float, `None` without any token; "tpot_s", a float, `None` with fewer than two tokens;
        "itl_s", a list of floats.

    Raises:
        ValueError: an event is earlier than the one before it, or than `sent_s`, or has a negative number of tokens. The
            text names `events`.
    """
    ### BEGIN SOLUTION
    before = sent_s
    for time_s, n_tokens in events:
        if time_s < before or n_tokens < 0:
            raise ValueError(
                f"events must be in order, with counts of at least 0, not {(time_s, n_tokens)} after {before}"
            )
        before = time_s
    times = [time_s for time_s, n_tokens in events if n_tokens]
    total = sum(n_tokens for _, n_tokens in events)
    return {
        "ttft_s": times[0] - sent_s if times else None,
        "tpot_s": (times[-1] - times[0]) / (total - 1) if total > 1 else None,
        "itl_s": [late - early for early, late in pairwise(times)],
    }
    ### END SOLUTION
