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
# # Speculative decoding: guess cheaply, check exactly
#
# A large language model writes one token per run. Most of the time of such a run goes into reading the weights, so a
# run that looks at five tokens takes hardly longer than a run that looks at one. **Speculative decoding** uses this: a
# small *draft* model guesses the next few tokens, the large *target* model checks all of them in one run, and keeps
# those that it agrees with. Done right, the text follows **exactly** the same distribution as without the draft. Done
# almost right, it looks fine and follows another one. In this assignment you
#
# 1. compute how many tokens a run of the target brings (`expected_tokens`),
# 2. how much faster that is (`speedup`),
# 3. and how many tokens to guess (`optimal_gamma`),
# 4. compute what to draw from after a rejection (`residual_distribution`),
# 5. accept and reject whole batches of drafts without changing the target's distribution (`rejection_sample`),
# 6. draft without any model, by looking into the prompt (`PromptLookupProposer`),
# 7. choose the length of the draft while you run (`AdaptiveGamma`),
# 8. refuse a draft model that speaks another language (`check_compatible`),
# 9. and put it together: generate text with two real models and their caches (`speculative_generate`).
#
# Tasks 1 to 4, 6 and 7 take about 20 minutes each, tasks 5 and 9 about 60, task 8 about 15. No GPU is needed, and no model
# has to be downloaded: task 9 makes small ones. You should know Python, PyTorch tensors, and what a probability distribution
# over a vocabulary is. Task 9 needs tasks 4 and 5.
#
# | term | means |
# |---|---|
# | target, $p$ | the large model whose text we want; $p(x)$: its probability of token $x$ as the next one |
# | draft, $q$ | the small model that guesses; $q(x)$: its probability of token $x$ |
# | draft length $\gamma$ (gamma) | tokens that are guessed before the target checks them |
# | run | one forward pass of a model |
# | acceptance probability $\alpha$ (alpha) | how likely a guessed token is accepted, if all before it were |
# | bonus token | the extra token that the target gives when the whole draft was accepted |
# | $c$ | time of a draft run, divided by the time of a target run on one token |
# | $v$ | time of a target run that checks a draft, divided by the time of a target run on one token |
# | vocabulary size $V$ | number of different tokens; token ids are $0 \dots V - 1$ |
#
# Papers and programs do not agree on the letters: here, as in the paper that most people cite (Leviathan et al., 2023,
# arXiv 2211.17192), $p$ is the target and $q$ the draft. Some programs swap them.
#
# **How it is graded.** Only the cells of the nine tasks and the one cell of imports and helpers count. The next cell
# is replaced by the original when grading; all others are yours, change them freely. The cell `check(...)` after each
# task runs its public checks. Hidden checks look at the same rules on other inputs: everything they ask for is written
# here. One call of your code may take 10 s. A later task that calls an earlier one calls *your* earlier one.
#
# **Rules for all tasks.** Where a docstring says that an argument is checked: a count that is no `int`, or a `bool`, is
# a `TypeError`; a number that is neither `int` nor `float`, or a `bool`, is a `TypeError`; a value outside its range
# (NaN and infinity are outside of every range) is a `ValueError`. The text of the error contains the argument's name.
# `check_count` and `check_number`, below, do all this for you. If several errors apply to one call, any of them is
# right. Other arguments need no checks. Never change a tensor or list that you are given. All tensors and generators are
# on the CPU.

# %% given="course"
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

torch.set_num_threads(1)  # all that is computed here is small: more threads would only wait for each other


def check_count(value: int, name: str, minimum: int = 0) -> None:
    """Raise `TypeError` if `value` is no int (a bool is none), `ValueError` if below `minimum`; the text has `name`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r} of type {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {value}")


def check_number(value: float, name: str, low: float = 0.0, high: float = math.inf) -> None:
    """Raise `TypeError` if `value` is no int or float, `ValueError` if not finite or outside of `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {value!r} of type {type(value).__name__}")
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} must be a finite number from {low:g} to {high:g}, not {value}")


def make_generator(seed: int) -> torch.Generator:
    """A source of random numbers of its own: `torch.rand(3, generator=make_generator(7))`."""
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Tokenizer:
    """What task 8 needs of a tokenizer: which token has which id, and which id ends a text."""

    vocab: dict[str, int]
    eos_token_id: int

    def get_vocab(self) -> dict[str, int]:
        """Each token with its id, as the method of the same name in transformers gives it."""
        return dict(self.vocab)


class CachedModel:
    """What task 9 needs of a language model: it reads tokens, and remembers them in a cache. A new one has read nothing."""

    def __init__(self, forward: Callable[[list[int]], torch.Tensor], crop: Callable[[int], object]) -> None:
        self._forward = forward
        self._crop = crop
        self.length = 0
        """How many tokens are in the cache."""

    def run(self, ids: Sequence[int]) -> torch.Tensor:
        """Read `ids`, at least one token, after those in the cache: one forward pass. They are in the cache then, too.

        Gives logits, fp32 of shape [len(ids), V]: row i says what comes after `ids[i]`.
        """
        if not ids:
            raise ValueError("run needs at least one token that is not in the cache")
        logits = self._forward([int(token) for token in ids])
        self.length += len(ids)
        return logits

    def crop(self, length: int) -> None:
        """Forget all tokens but the first `length`. There must be as many: `ValueError` if not."""
        check_count(length, "length")
        if length > self.length:
            raise ValueError(f"length={length} is more than the {self.length} tokens in the cache")
        if length < self.length:
            self._crop(length - self.length)  # as DynamicCache.crop takes it: minus the number of tokens to remove
            self.length = length


def from_transformers(model: Any) -> CachedModel:
    """A causal language model of transformers, with a new `DynamicCache`."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)

    def forward(ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            got = model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True)
        return got.logits[0].float().cpu()

    return CachedModel(forward, cache.crop)


class ToyModel:
    """A language model to try things with. `new()` gives it with an empty cache.

    `table` has a row of logits for each state, fp32 [states, V]. After a token the state is
    (memory * state before + token) % states, at first 0. With memory 0 only the last token counts: row i of the table says
    what comes after token i.
    """

    def __init__(self, table: torch.Tensor, memory: int = 0) -> None:
        self.table, self.memory = table, memory

    def new(self) -> CachedModel:
        """The model, and a cache of states."""
        states = [0]

        def forward(ids: list[int]) -> torch.Tensor:
            for token in ids:
                states.append((self.memory * states[-1] + token) % len(self.table))
            return self.table[states[-len(ids) :]]

        def crop(change: int) -> None:
            del states[len(states) + change :]

        return CachedModel(forward, crop)


def small_llama(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Any:
    """A Llama of transformers, with these weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    model.load_state_dict(weights)
    return model


# %% helpers="helpers"
# Your imports and helpers. Everything that several tasks share goes here; this cell is graded together with them.

# %% [markdown]
# ## Task 1: tokens per run of the target (about 20 minutes)
#
# One *step*: the draft guesses $\gamma$ tokens, the target checks them in one run. The guesses are looked at from the
# first to the last. Each is accepted with probability $\alpha$. The first one that is rejected is replaced by a token
# from the target, and **the guesses after it are thrown away**: they were made for another text. If none is rejected,
# the run of the target has already computed what comes after the last guess, so it gives one token more: the bonus.
# A step therefore brings 1 to $\gamma + 1$ tokens. On average (the paper, equation 1):
#
# $$E(\alpha, \gamma) = 1 + \alpha + \alpha^2 + \dots + \alpha^\gamma = \frac{1 - \alpha^{\gamma + 1}}{1 - \alpha} .$$
#
# Why: there is always one token; there is a second one if the first guess was accepted ($\alpha$), a third one if the
# second was too ($\alpha^2$), and so on.
#
# *Examples.* $E(0.8, 4) = 1 + 0.8 + 0.64 + 0.512 + 0.4096 = 3.3616$. $E(0.5, 1) = 1.5$. $E(\alpha, 0) = 1$: plain
# decoding. $E(1, 5) = 6$, exactly; the fraction would be 0 / 0 there.
#
# *Common mistakes:* $\alpha \gamma + 1$, which forgets that a rejection throws the rest away ($4.2$ instead of $3.3616$);
# no bonus token; a division by zero at $\alpha = 1$, where the fraction is 0 / 0 and the sum is not.


# %% task="expected_tokens"
def expected_tokens(alpha: float, gamma: int) -> float:
    """Mean number of tokens that one step brings, 1.0 to gamma + 1.

    Args:
        alpha: acceptance probability, 0 to 1; checked.
        gamma: draft length, at least 0; checked. No more than 1,000 is asked for.

    Returns:
        A float.
    """
    ### BEGIN SOLUTION
    check_number(alpha, "alpha", 0, 1)
    check_count(gamma, "gamma")
    total, power = 1.0, 1.0
    for _ in range(gamma):
        power *= alpha
        total += power
    return total
    ### END SOLUTION


# %% [markdown]
# ## Task 2: is it faster? (about 20 minutes)
#
# Measure time in runs of the target on one token. A step costs $\gamma$ runs of the draft, $c$ each, and one run of the
# target on the draft, $v$. It brings $E(\alpha, \gamma)$ tokens, which would cost as many plain runs. So
#
# $$S(\alpha, \gamma, c, v) = \frac{E(\alpha, \gamma)}{c\,\gamma + v} .$$
#
# The paper takes $v = 1$: to check $\gamma + 1$ tokens takes as long as to compute one. That is nearly true where
# reading weights takes all the time (large model, small batch), and wrong where computing does (large batch, or a CPU).
# Without a draft there is nothing to check, so where $\gamma = 0$, only $v = 1$ is asked for.
#
# *Examples.* $\alpha = 0.8, \gamma = 4, c = 0.1, v = 1$: $3.3616 / 1.4 = 2.4011$. The same with $v = 1.3$:
# $3.3616 / 1.7 = 1.9774$. A slow draft: $\alpha = 0.8, \gamma = 5, c = 0.4$: $3.68928 / 3 = 1.2298$.
#
# *Seen in a published course notebook:* $\gamma / (1 + (1 - \alpha) \gamma)$. For the slow draft that gives 2.5, twice the
# truth: it does not contain $c$ at all. *Other common mistakes:* $c (\gamma + 1)$ in the denominator; counting the
# draft's runs only.


# %% task="speedup"
def speedup(alpha: float, gamma: int, c: float, v: float = 1.0) -> float:
    """How many times faster speculative decoding is than plain decoding; below 1: slower.

    Args:
        alpha: acceptance probability, 0 to 1; checked.
        gamma: draft length, at least 0; checked. No more than 1,000 is asked for.
        c: time of a draft run in target runs, at least 0; checked.
        v: time of a checking run in target runs, at least 1; checked.

    Returns:
        A float.
    """
    ### BEGIN SOLUTION
    check_number(c, "c")
    check_number(v, "v", 1)
    return expected_tokens(alpha, gamma) / (c * gamma + v)
    ### END SOLUTION


# %% [markdown]
# ## Task 3: how many tokens to guess (about 20 minutes)
#
# Longer drafts bring more tokens per step, but each further token is less likely to be reached and costs as much. The
# best $\gamma$ is the one with the largest speed-up (with $v = 1$), looked for among the whole numbers from `min_gamma`
# to `max_gamma`, both included. If several are equally good, the smallest: where $\alpha$ and $c$ are 0, say, all are.
# (Otherwise no case is asked for in which the second best comes within one millionth of the best.) With `min_gamma = 0`
# the answer may be 0: do not speculate at all. That is right whenever $\alpha \le c$.
#
# *Examples.* For $\alpha = 0.8$ and `max_gamma` = 20: $c = 0.05$ gives 8, $c = 0.1$ gives 6, $c = 0.4$ gives 2.
# $\alpha = 0.3, c = 0.4$: 0; with `min_gamma=1`: 1. $\alpha = 1, c = 0.1$: each token more pays, so `max_gamma`.
#
# *Common mistakes:* the largest $E$ instead of the largest $S$ (always `max_gamma`); a range that ends before
# `max_gamma`; 0 left out, so that a draft that only costs time is still used.


# %% task="optimal_gamma"
def optimal_gamma(alpha: float, c: float, max_gamma: int, min_gamma: int = 0) -> int:
    """The draft length with the largest speed-up.

    Args:
        alpha: acceptance probability, 0 to 1; checked.
        c: time of a draft run in target runs, at least 0; checked.
        max_gamma: the largest length allowed, at least `min_gamma`; checked. No more than 100 is asked for.
        min_gamma: the smallest length allowed, at least 0; checked.

    Returns:
        An int from `min_gamma` to `max_gamma`.
    """
    ### BEGIN SOLUTION
    check_count(min_gamma, "min_gamma")
    check_count(max_gamma, "max_gamma", min_gamma)
    return max(range(min_gamma, max_gamma + 1), key=lambda gamma: speedup(alpha, gamma, c))
    ### END SOLUTION


# %% [markdown]
# Speed-up against draft length, drawn by your functions. The dot is the best length. Where does a better draft model
# help more: where $\alpha$ is 0.5, or where it is 0.8?

# %%
import matplotlib.pyplot as plt

lengths = range(0, 16)
plt.figure(figsize=(6, 3.5))
for alpha in (0.3, 0.5, 0.7, 0.8, 0.9):
    (line,) = plt.plot(lengths, [speedup(alpha, gamma, 0.1) for gamma in lengths], label=f"alpha = {alpha}")
    best = optimal_gamma(alpha, 0.1, 15)
    plt.plot(best, speedup(alpha, best, 0.1), "o", color=line.get_color())
plt.axhline(1, color="gray", linestyle=":")
plt.xlabel("draft length gamma")
plt.ylabel("speed-up")
plt.title("A draft that costs a tenth of the target")
plt.legend()
plt.show()

# %% [markdown]
# ## Task 4: what to draw from after a rejection (about 20 minutes)
#
# Now make it exact. The draft has drawn a token $x$ from $q$. It is accepted with probability $\min(1, p(x) / q(x))$: a
# token that the draft overrates ($q(x) > p(x)$) is accepted only that often that it comes out with probability
# $q(x) \cdot p(x)/q(x) = p(x)$; one that it underrates is always accepted, and so comes out with probability $q(x)$, which
# is too little. What is missing is $p(x) - q(x)$. So after a rejection, the token is drawn from what is missing:
#
# $$r(x) = \frac{\max(p(x) - q(x),\, 0)}{\sum_y \max(p(y) - q(y),\, 0)} .$$
#
# *Example.* $p = (0.6, 0.3, 0.1)$, $q = (0.3, 0.6, 0.1)$. Then $\max(p - q, 0) = (0.3, 0, 0)$ and $r = (1, 0, 0)$. Token 0
# comes out when it is guessed (0.3), or when token 1 is guessed and rejected ($0.6 \cdot 0.5 = 0.3$): together 0.6, which
# is $p(0)$. How likely is a guess accepted? $\alpha = \sum_x \min(p(x), q(x)) = 0.3 + 0.3 + 0.1 = 0.7$.
#
# If $p(x)$ is nowhere larger than $q(x)$, they are equal (up to rounding), nothing is ever rejected, and the fraction is
# 0 / 0. Give $p$ there, not NaN. But if $p(x)$ is larger for any $x$, however little, $r$ is defined and you give it: its
# numbers sum to 1.
#
# *Common mistakes:* $|p - q|$ instead of $\max(p - q, 0)$; no division by the sum; `+ 1e-8` in the denominator, which is
# wrong where the sum is small; one sum for a whole batch instead of one for each distribution.


# %% task="residual_distribution"
def residual_distribution(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The distribution of the token that replaces a rejected one.

    Args:
        p: target probabilities, shape [..., V]: any number of dimensions, each last one a distribution. fp32 or fp64.
        q: draft probabilities, of the same shape and dtype.

    Returns:
        A new tensor of the same shape and dtype; where the distributions are equal, that of `p`.

    Raises:
        ValueError: the shapes of `p` and `q` differ.
    """
    ### BEGIN SOLUTION
    if p.shape != q.shape:
        raise ValueError(f"p and q must have the same shape, not {tuple(p.shape)} and {tuple(q.shape)}")
    missing = (p - q).clamp(min=0)
    total = missing.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, missing / total, p)
    ### END SOLUTION


# %% [markdown]
# ## Task 5: accept and reject, for a batch (about 60 minutes)
#
# A server checks the drafts of $B$ requests at once. A request may have fewer guesses than others, or none: its row of
# `draft_ids` is then filled up with $-1$ at the end. Let $n_b$ be the number of guesses of request $b$. For each request
# on its own, with guesses $x_0, x_1, \dots$:
#
# 1. For $i = 0, 1, \dots, n_b - 1$: take a new $u$, drawn evenly from 0 up to 1 (1 excluded), and accept $x_i$ if
#    $u < p_i(x_i) / q_i(x_i)$.
# 2. At the first guess that is *not* accepted, stop: draw one token from $r$ of task 4 with $p_i$ and $q_i$.
#    Nothing after it counts.
# 3. If all $n_b$ were accepted, draw one bonus token from $p_{n_b}$, row $n_b$ of the target: the first row for which
#    there is no guess.
#
# `target_probs[b, i]` is $p_i$, the target's distribution for the place where guess $i$ stands, *given the text and the
# guesses before it*; `draft_probs[b, i]` is $q_i$, what guess $i$ was drawn from. (The model's output at a place is its
# distribution for the **next** one. Whoever fills `target_probs` must take the output one place before the guess.) Rows
# that belong to no guess and to no bonus token have no meaning, but are distributions, too.
#
# A draft without a model, as in task 6, has no $q$: it is certain of its guess. Then `draft_probs` is `None`, and $q_i$ is
# 1 for the guess and 0 for everything else.
#
# *Example.* $V = 3$, $\gamma = 2$, the guesses of three requests are `[[0, 1], [2, -1], [-1, -1]]`. Let the target be
# certain: of token 0, then of token 1, then of token 2, in each request. Request 0: both are accepted and the bonus token
# is 2. Request 1: 2 is rejected ($p_0(2) = 0$) and replaced by 0. Request 2: no guesses, so the bonus token comes from
# row 0: it is 0. The result is `tokens = [[0, 1, 2], [0, -1, -1], [0, -1, -1]]` and `n_accepted = [2, 0, 0]`.
#
# **All random numbers come from `generator`**: `torch.rand(..., generator=generator)` and
# `torch.multinomial(probs, 1, generator=generator)`, which draws one token for each row of a matrix. Two generators with
# the same seed give the same result; two calls with the same generator do not, since the first call has moved it on. In
# which order you draw is free, and so is drawing numbers that are not needed then, such as one $u$ for each guess at once.
#
# *Seen in a published course notebook:* accept if $p(x) > 0.1$, and draw from $p$ after a rejection. *In another program:*
# the seed is set again before each number, so that all $u$ are the same. The text still looks fine: only counting shows
# that it follows another distribution. *Other common mistakes:* $q / p$; a bonus token after a rejection; no bonus token;
# guesses accepted after a rejected one; one $u$ for the whole batch; the bonus token always from the last row, although
# the request had fewer guesses; token 0 or $-1$ as an index taken for "nothing". Draw $u$ and the token after a rejection
# separately: a $u$ that has led to a rejection is not evenly spread any more.
#
# *Where this goes wrong in practice:* $p$ and $q$ must be the distributions after temperature, top-k and so on. If the
# draft used another temperature, `draft_probs` must have it, too.


# %% task="rejection_sample"
def rejection_sample(
    draft_ids: torch.Tensor,
    draft_probs: torch.Tensor | None,
    target_probs: torch.Tensor,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check the drafts of a batch such that the tokens follow the target's distribution.

    Args:
        draft_ids: the guesses, int64, shape [B, gamma], B at least 1, gamma may be 0; -1 after the last guess of a row.
        draft_probs: fp32, shape [B, gamma, V]; the guess in row i was drawn from it, so q(x) > 0. `None`: see above.
        target_probs: fp32, shape [B, gamma + 1, V].
        generator: where all random numbers come from.

    Returns:
        `(tokens, n_accepted)`: int64 of shape [B, gamma + 1], the accepted guesses of each request, then one token, then
        -1; and int64 of shape [B], how many guesses were accepted.
    """
    ### BEGIN SOLUTION
    batch, gamma = draft_ids.shape
    requests = torch.arange(batch)
    guessed = draft_ids >= 0
    index = draft_ids.clamp(min=0)[..., None]
    if draft_probs is None:
        draft_probs = torch.zeros_like(target_probs[:, :gamma]).scatter(2, index, 1.0)
    p = target_probs[:, :gamma].gather(2, index)[..., 0]
    q = draft_probs.gather(2, index)[..., 0]
    u = torch.rand((batch, gamma), generator=generator)
    accepted = guessed & (u * q < p)
    n_accepted = accepted.long().cumprod(dim=1).sum(dim=1)
    probs = target_probs[requests, n_accepted]
    rejected = n_accepted < guessed.sum(dim=1)
    at = n_accepted[rejected]
    probs[rejected] = residual_distribution(probs[rejected], draft_probs[rejected, at])
    tokens = torch.full((batch, gamma + 1), -1)
    kept = torch.arange(gamma) < n_accepted[:, None]
    tokens[:, :gamma][kept] = draft_ids[kept]
    tokens[requests, n_accepted] = torch.multinomial(probs, 1, generator=generator)[:, 0]
    return tokens, n_accepted
    ### END SOLUTION


# %% [markdown]
# See it work: guesses from $q$, tokens like $p$. On the right, how often the first, second, ... guess of a draft was
# accepted. Later ones are accepted less often, although each has the same chance *once it is looked at*.

# %%
p, q = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.2, 0.2, 0.2, 0.4])
random_numbers, many, gamma = make_generator(0), 20_000, 4
guesses = torch.multinomial(q, many * gamma, replacement=True, generator=random_numbers).reshape(many, gamma)
tokens, n_accepted = rejection_sample(guesses, q.expand(many, gamma, 4), p.expand(many, gamma + 1, 4), random_numbers)
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
for shift, share, name in (
    (-0.25, q, "draft q"),
    (0, p, "target p"),
    (0.25, torch.bincount(tokens[:, 0], minlength=4) / many, "first tokens"),
):
    left.bar(torch.arange(4) + shift, share, width=0.25, label=name)
left.set(xlabel="token", ylabel="share", xticks=range(4))
left.legend()
right.bar(range(1, gamma + 1), [(n_accepted >= place).float().mean() for place in range(1, gamma + 1)])
right.set(xlabel="guess", ylabel="accepted", xticks=range(1, gamma + 1))
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Task 6: drafts out of the prompt (about 20 minutes)
#
# Summaries, corrected code and answers that quote repeat much of the prompt. So look whether the last few tokens have
# stood in the text before, and guess that what followed then follows again. No draft model: $c$ is almost 0.
#
# An *n-gram* is a run of $n$ tokens. To guess up to $k$ tokens for `ids`:
#
# - Take the last `ngram_max` tokens and look for an earlier place where the same tokens stand. If there is none, try one
#   token less, and so on down to `ngram_min`. The **longest** n-gram that is found counts.
# - Of several places, the **most recent** (the one that begins last) counts. It may overlap the end of the text, but it is
#   not the end itself: that one is always equal, and nothing follows it.
# - The guess is what follows that place, up to $k$ tokens; fewer where the text ends before. If nothing is found: `[]`.
#
# *Examples*, with `ngram_max=3, ngram_min=1`:
#
# | ids | k | guess | why |
# |---|---|---|---|
# | 1 2 3 4 1 2 3 | 3 | 4 1 2 | 1 2 3 stands at the beginning, too |
# | 5 1 7 6 1 8 2 1 | 2 | 8 2 | only 1 stands elsewhere; of two places, the later one |
# | 9 1 2 8 2 3 1 2 | 2 | 8 2 | 1 2 is longer than 2, though 2 stands alone later |
# | 4 4 4 | 5 | 4 | 4 4 stands at place 0; after it there is only one token |
# | 1 2 3 | 3 | nothing | 3 stands nowhere before |
#
# (Programs differ in this: transformers takes the earliest place, for instance. Ours is the rule above.)
#
# *Common mistakes:* the end of the text found as its own match; the shortest n-gram first; an error for texts that are
# shorter than `ngram_max`.


# %% task="PromptLookupProposer"
class PromptLookupProposer:
    """Guesses the next tokens by looking for the last ones earlier in the text.

    Args:
        ngram_max: the longest n-gram that is looked for, at least `ngram_min`; checked.
        ngram_min: the shortest one, at least 1; checked.
    """

    def __init__(self, ngram_max: int, ngram_min: int = 1) -> None:
        ### BEGIN SOLUTION
        check_count(ngram_min, "ngram_min", 1)
        check_count(ngram_max, "ngram_max", ngram_min)
        self._sizes = range(ngram_max, ngram_min - 1, -1)
        ### END SOLUTION

    def propose(self, ids: Sequence[int], k: int) -> list[int]:
        """Up to `k` guesses for what follows `ids`, which may be empty and has at most 2,000 tokens.

        `k` is at least 0; checked.
        """
        ### BEGIN SOLUTION
        check_count(k, "k")
        ids = list(ids)
        for n in self._sizes:
            for start in range(len(ids) - n - 1, -1, -1):
                if ids[start : start + n] == ids[-n:]:
                    return ids[start + n : start + n + k]
        return []
        ### END SOLUTION


# %% [markdown]
# ## Task 7: choose the draft length while you run (about 20 minutes)
#
# $\alpha$ depends on the text: code is easier to guess than poems. So estimate it from what happened, and choose $\gamma$
# for it (task 3).
#
# **The trap:** servers report `accepted / drafted` as their acceptance rate. That is not $\alpha$. If 4 tokens were guessed
# and the second was rejected, the third and the fourth were never looked at. *Trials* are the guesses that were looked
# at: the accepted ones, and the rejected one if there was one. Here: 1 accepted of 2 trials, not 1 of 4. With
# $\alpha = 0.8$ and $\gamma = 8$, `accepted / drafted` is 0.416 on average, and the draft would be made far too short.
#
# `AdaptiveGamma` keeps two numbers: $A$ (accepted) and $T$ (trials). They begin at $A = \text{initial\_alpha} \cdot
# \text{weight}$ and $T = \text{weight}$, as if `weight` trials had been seen. At each step, old experience first loses
# value, then the new one is added:
#
# $$A \leftarrow \text{decay} \cdot A + \text{accepted}, \qquad T \leftarrow \text{decay} \cdot T + \text{trials} .$$
#
# The estimate is $A / T$. A step without any guess says nothing: it changes nothing, and $A$ and $T$ do not decay either.
# `min_gamma` is 1 by default, for a reason: at $\gamma = 0$ nothing is tried any more, so the estimate could never recover.
#
# *Example.* `AdaptiveGamma(c=0.1, max_gamma=8, initial_alpha=0.8, weight=10.0, decay=0.9)`: the estimate is 0.8 and
# `gamma()` gives 6. After `update(4, 1)`: $A = 0.9 \cdot 8 + 1 = 8.2$, $T = 0.9 \cdot 10 + 2 = 11$, estimate 0.74545, and
# `gamma()` gives 5. After `update(5, 5)` (all accepted, 5 trials): $A = 12.38$, $T = 14.9$, estimate 0.83087, `gamma()` 7.


# %% task="AdaptiveGamma"
class AdaptiveGamma:
    """Estimates the acceptance probability from what happened, and chooses the draft length for it.

    Args:
        c: time of a draft run in target runs, at least 0; checked.
        max_gamma: the largest draft length, at least `min_gamma`; checked.
        min_gamma: the smallest one, at least 0; checked.
        initial_alpha: the first estimate, 0 to 1; checked.
        weight: how many trials the first estimate is worth, at least 1; checked.
        decay: what a step leaves of earlier experience, 0 to 1; checked.
    """

    def __init__(
        self,
        c: float,
        max_gamma: int,
        min_gamma: int = 1,
        initial_alpha: float = 0.8,
        weight: float = 10.0,
        decay: float = 0.95,
    ) -> None:
        ### BEGIN SOLUTION
        check_number(initial_alpha, "initial_alpha", 0, 1)
        check_number(weight, "weight", 1)
        check_number(decay, "decay", 0, 1)
        optimal_gamma(initial_alpha, c, max_gamma, min_gamma)  # checks the others
        self._choose = lambda alpha: optimal_gamma(alpha, c, max_gamma, min_gamma)
        self._accepted, self._trials, self._decay = initial_alpha * weight, float(weight), decay
        ### END SOLUTION

    def update(self, drafted: int, accepted: int) -> None:
        """A step is over: of `drafted` guesses the first `accepted` were accepted.

        Both are counts of at least 0, and `accepted` is at most `drafted`; checked. After an error nothing has changed.
        """
        ### BEGIN SOLUTION
        check_count(drafted, "drafted")
        check_count(accepted, "accepted")
        if accepted > drafted:
            raise ValueError(f"accepted={accepted} is more than the {drafted} that were drafted")
        if drafted:
            self._accepted = self._decay * self._accepted + accepted
            self._trials = self._decay * self._trials + accepted + (accepted < drafted)
        ### END SOLUTION

    def alpha(self) -> float:
        """The estimate of the acceptance probability."""
        ### BEGIN SOLUTION
        return self._accepted / self._trials
        ### END SOLUTION

    def gamma(self) -> int:
        """The best draft length for the estimate (task 3)."""
        ### BEGIN SOLUTION
        return self._choose(self.alpha())
        ### END SOLUTION


# %% [markdown]
# The text changes after 60 steps, from easy to guess to hard. Does the draft length follow? Try another `decay`.

# %%
import random

draw, adaptive, chosen = random.Random(0), AdaptiveGamma(c=0.1, max_gamma=12, decay=0.9), []
for step in range(120):
    gamma, alpha = adaptive.gamma(), 0.9 if step < 60 else 0.5
    accepted = 0
    while accepted < gamma and draw.random() < alpha:
        accepted += 1
    adaptive.update(gamma, accepted)
    chosen.append(gamma)
plt.figure(figsize=(6, 3))
plt.step(range(120), chosen, where="post")
plt.axvline(60, color="gray", linestyle=":")
plt.xlabel("step")
plt.ylabel("draft length")
plt.show()

# %% [markdown]
# ## Task 8: do they speak the same language? (about 15 minutes)
#
# $p(x)$ and $q(x)$ are about the same $x$ only if token id $x$ is the same piece of text for both models. A published
# course notebook pairs GPT-2 as the draft with OPT as the target. Both have about 50,000 tokens, yet with other ids:
# every guess means something else to the target.
#
# Two tokenizers are compatible if both give **the same ids to the same tokens**, no token more or less in either, and if
# the same id ends a text. The order in which a dictionary lists its entries does not matter. That they have equally many
# tokens, or the same tokens, is not enough.
#
# *Examples.* `{"a": 0, "b": 1}` and `{"b": 1, "a": 0}` are compatible. `{"a": 0, "b": 1}` and `{"a": 1, "b": 0}` are not,
# and the smallest id at which they differ is 0. `{"a": 0, "b": 1}` and `{"a": 0, "b": 1, "c": 2}` differ at id 2, which
# only one of them has.


# %% task="check_compatible"
def check_compatible(target: Tokenizer, draft: Tokenizer) -> None:
    """Return `None` if both tokenizers give the same ids to the same tokens, and end texts with the same one.

    In one tokenizer no two tokens have the same id.

    Raises:
        ValueError: the vocabularies differ; the text contains the smallest id that is not the same token in both, or
            that only one has (and whatever else you like). If they are equal, but `eos_token_id` differs: the text
            contains `eos_token_id`.
    """
    ### BEGIN SOLUTION
    entries = set(target.get_vocab().items()) ^ set(draft.get_vocab().items())
    if entries:
        smallest = min(token_id for _, token_id in entries)
        raise ValueError(f"id {smallest} is not the same token for target and draft, so they cannot be compared")
    if target.eos_token_id != draft.eos_token_id:
        raise ValueError(f"eos_token_id is {target.eos_token_id} for the target, {draft.eos_token_id} for the draft")
    ### END SOLUTION


# %% [markdown]
# ## Task 9: put it together (about 60 minutes)
#
# Now generate text. Both models have a **cache** of keys and values: they compute each token once, and later tokens only
# look at what is kept. `CachedModel` (in the second cell) is such a model. It has
#
# - `run(ids)`: read `ids`, which come after the tokens in the cache, and put them into the cache. Row $i$ of the logits
#   says what comes after `ids[i]`. One call is one run.
# - `length`: how many tokens are in the cache.
# - `crop(length)`: forget all tokens but the first `length`.
#
# `from_transformers(model)` makes one of a Llama, or of most other causal language models of transformers (not of those with
# sliding windows: their cache forgets by itself). Speculation puts tokens into both caches
# that turn out to be wrong. If they stay there, everything after them is computed for another text. So after each step
# both caches are **rolled back** (cropped).
#
# One step, where `text` are all tokens that are certain so far:
#
# 1. *Guess.* The draft guesses $n$ tokens, one run for each: give it the tokens of `text` and of the guesses that are not in
#    its cache yet, take the last row of logits, draw the next guess.
#    $n = \gamma$, but at the end less: a step brings up to $n + 1$ tokens, so if $m$ tokens are still wanted,
#    $n = \min(\gamma, m - 1)$. After a guess that is `eos_token_id` you may stop, or go on to $n$: both are right.
# 2. *Check.* The target reads all that is not in its cache yet, the $n$ guesses at the end, in **one** run. Its last $n + 1$
#    rows are the distributions $p_0 \dots p_n$ of task 5. The last guess is read by the target, and not by the draft.
# 3. *Accept and reject* (task 5, with $B = 1$): the accepted guesses and one token more are certain now.
# 4. *Roll back.* Crop both caches to the tokens that are still right. The last token of `text` is in no cache: it is new.
#    (After the last step you need not.)
#
# With *temperature* $t > 0$, a row of logits $z$ means the distribution softmax$(z / t)$, **for target and draft alike**.
# (None between 0 and 0.01 is asked for.) $t = 0$ is *greedy*: all probability on the token with the largest logit; in the
# rows that are asked for, no other token has the same one. Then a guess is accepted if the target would
# have said the same, nothing is left to chance, and the result is what the target alone would have written.
#
# If `eos_token_id` is not `None`, that token ends the text: it is the last one of the result, also where it was an accepted
# guess with others after it. Otherwise there are exactly `max_new_tokens` new tokens.
#
# Beside the text, give counts: `target_runs`; `drafted`, the guesses that the target has checked; and `accepted`, the guesses
# that stand in the result. Each run of the target brings one token of its own, so that new tokens = `accepted` + `target_runs`
# (one less if the last token is an accepted guess: an end of text).
#
# *Example.* The target counts: after 1 comes 2, after 2 comes 3, and so on. The draft counts too, but says 0 after 6. (The cell
# below this one makes both.) `ids = [1]`, $\gamma = 3$, `max_new_tokens = 8`, greedy:
#
# | step | wanted | draft reads | guesses | target reads | certain now | cropped to |
# |---|---|---|---|---|---|---|
# | 1 | 8 | 1, then 2, then 3 | 2 3 4 | 1 2 3 4 | 2 3 4 **5** | nothing to crop |
# | 2 | 4 | 4 5, then 6, then 0 | 6 0 1 | 5 6 0 1 | 6 **7** | both to 6 tokens |
# | 3 | 2 | 7 | 8 | 7 8 | 8 **9** | nothing to crop |
#
# The result is `[1, 2, 3, 4, 5, 6, 7, 8, 9]` with `target_runs` 3, `drafted` 7, `accepted` 5; and $8 = 5 + 3$. In step 2 the
# draft reads 4 first: it was the last guess of step 1, accepted, but not in the draft's cache. In step 3 one guess is enough.
#
# **What is counted.** Runs and tokens are counted by the grader. The target is run once per step, and at most once more (who
# reads the prompt alone first). The draft is run once per guess, and at most once more. No model reads a token at a place
# where it has read the same text before. No step makes more than $\min(\gamma, m - 1)$ guesses. And the clock: on a
# target that takes many times as long as the draft and nearly always agrees, greedy decoding with $\gamma = 4$ must be
# 1.2 times as fast as the plain loop with a cache; between 1 and 1.2 there is a part of the points.
#
# *Common mistakes:* the target's cache is not cropped, so that rejected guesses stay in its text; the draft's is not: the
# text is still right, but its guesses become bad. After a fully accepted draft, the last guess is missing in the draft's
# cache. The row one place too late. Too many tokens at the end, or tokens after `eos_token_id`; `if eos_token_id:`, which
# takes token 0 for none. Another temperature for the draft: its guesses change, and `draft_probs` must say so. *If you use
# `DynamicCache.crop` yourself:* in transformers 5 a negative number says how many tokens to **remove**; 0 removes nothing; a
# positive number says how many to **keep**, and is deprecated. So a program that means "keep 0" removes nothing, and one whose
# "keep" is negative by mistake removes a few. `CachedModel.crop` always means "keep", and refuses what cannot be.
#
# In bf16, one run on five tokens and five runs on one give slightly different logits, so that the texts may differ where two
# tokens are nearly equally likely. In fp32 this is very rare. We use fp32.

# %%
counts = torch.eye(10).roll(1, 1)  # row i: all on token i + 1
counts_to_6 = counts.clone()
counts_to_6[6] = torch.eye(10)[0]
model = ToyModel(counts).new()
print(model.run([1, 2, 3]).argmax(-1), model.length)  # what comes after each of them
model.crop(1)
print(model.run([7]).argmax(-1), model.length)
# speculative_generate(ToyModel(counts).new(), ToyModel(counts_to_6).new(), [1], 3, 8, make_generator(0))


# %% task="speculative_generate"
def speculative_generate(
    target: CachedModel,
    draft: CachedModel,
    ids: list[int],
    gamma: int,
    max_new_tokens: int,
    generator: torch.Generator,
    temperature: float = 0.0,
    eos_token_id: int | None = None,
) -> tuple[list[int], dict[str, int]]:
    """Continue `ids` with tokens that follow the target's distribution, guessed by the draft.

    Args:
        target: the large model, new: its cache is empty.
        draft: the small one, with the same vocabulary, new.
        ids: the prompt, at least one token.
        gamma: guesses in a step, at least 0; checked. With 0 the draft is not run at all.
        max_new_tokens: at least 0; checked. With 0 nothing is run.
        generator: where all random numbers come from.
        temperature: at least 0; checked.
        eos_token_id: the token that ends the text, if any.

    Returns:
        `(ids, stats)`: the prompt and the new tokens, ints; and the counts "target_runs", "drafted" and "accepted".
    """
    ### BEGIN SOLUTION
    check_count(gamma, "gamma")
    check_count(max_new_tokens, "max_new_tokens")
    check_number(temperature, "temperature")

    def distributions(logits: torch.Tensor) -> torch.Tensor:
        if temperature == 0:
            return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
        return torch.softmax(logits / temperature, -1)

    text, end = list(ids), len(ids) + max_new_tokens
    stats = {"target_runs": 0, "drafted": 0, "accepted": 0}
    while len(text) < end:
        guesses: list[int] = []
        draft_probs = []
        for _ in range(min(gamma, end - len(text) - 1)):
            draft_probs.append(distributions(draft.run((text + guesses)[draft.length :])[-1:]))
            guesses.append(int(torch.multinomial(draft_probs[-1], 1, generator=generator)))
        n = len(guesses)
        target_probs = distributions(target.run((text + guesses)[target.length :])[-n - 1 :])
        drafted = torch.tensor([guesses], dtype=torch.int64)
        q = torch.stack(draft_probs, 1) if n else None
        tokens, n_accepted = rejection_sample(drafted, q, target_probs[None], generator)
        accepted = int(n_accepted)
        new = tokens[0, : accepted + 1].tolist()
        if eos_token_id in new:
            new = new[: new.index(eos_token_id) + 1]
            end = len(text) + len(new)
        text += new
        stats["target_runs"] += 1
        stats["drafted"] += n
        stats["accepted"] += min(accepted, len(new))
        target.crop(min(target.length, len(text) - 1))
        draft.crop(min(draft.length, len(text) - 1))
    return text, stats
    ### END SOLUTION


# %% [markdown]
# Is it faster, and as much as task 2 says? The target here is the draft with 14 layers more, which cost time and change
# little; noise on the draft's weights makes it worse. Lines: `speedup` with $\alpha$, $c$ and $v$ as they are on your machine.
# ($\alpha$ is measured at $\gamma = 1$: only there is `accepted` / `drafted` the acceptance probability.) Dots: measured. A
# draft that is seldom right only costs time: its dots lie below 1, as they should.

# %%
import time

from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "vocab_size": 48,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
NO_ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def target_and_draft(noise: float) -> tuple[Any, Any]:
    """A Llama of 15 layers, and its first layer as a draft, with relative noise on its weights."""
    torch.manual_seed(0)
    big, small = (
        LlamaForCausalLM(
            LlamaConfig(**SIZES, **NO_ENDS, num_hidden_layers=layers, initializer_range=0.15, tie_word_embeddings=False)
        ).eval()
        for layers in (15, 1)
    )
    with torch.no_grad():
        for layer in big.model.layers[1:]:
            layer.self_attn.o_proj.weight.normal_(0, 0.002)
            layer.mlp.down_proj.weight.normal_(0, 0.002)
        for name, weight in small.named_parameters():
            same = big.get_parameter(name)
            weight.copy_(same + noise * same.std() * torch.randn_like(same) if same.dim() > 1 else same)
    return big, small


def seconds(work: Callable[[], object]) -> float:
    """The shorter of two times."""
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def run_time(model: Any, tokens: int) -> float:
    """Time of a run on so many tokens, after 20 others."""
    cached = from_transformers(model)
    cached.run(range(20))

    def work() -> None:
        cached.run(range(tokens))
        cached.crop(20)

    return seconds(work)


lengths = (1, 2, 4, 6, 8)
plt.figure(figsize=(6.5, 4))
for noise in (0.0, 0.05, 0.2):
    big, small = target_and_draft(noise)

    def write(gamma: int, big: Any = big, small: Any = small) -> dict[str, int]:
        """Counts of 32 tokens after a short prompt."""
        models = from_transformers(big), from_transformers(small)
        return speculative_generate(*models, [1, 2, 3], gamma, 32, make_generator(0))[1]

    once = write(1)
    alpha = once["accepted"] / once["drafted"]
    plain_run = run_time(big, 1)
    c, v = run_time(small, 1) / plain_run, max(1.0, run_time(big, 5) / plain_run)
    plain = seconds(lambda: write(0))
    measured = [plain / seconds(lambda gamma=gamma: write(gamma)) for gamma in lengths]
    (line,) = plt.plot(
        range(1, 9),
        [speedup(alpha, gamma, c, v) for gamma in range(1, 9)],
        label=f"alpha = {alpha:.2f}, c = {c:.2f}, v = {v:.2f}",
    )
    plt.plot(lengths, measured, "o", color=line.get_color())
plt.axhline(1, color="gray", linestyle=":")
plt.xlabel("draft length gamma")
plt.ylabel("speed-up")
plt.legend()
plt.show()
