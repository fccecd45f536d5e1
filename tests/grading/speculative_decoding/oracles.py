"""Where the hidden checks of `speculative_decoding` get expected values from: never the reference or its formulas.

Fractions     a step of speculative decoding as a chain of chances, each computed exactly
`Tables`      what target and draft say after every text of up to two tokens; the exact law of what must come out, by
              walking through all that can happen
`expect_law`  counted outcomes against an exact law, with a bound on false alarms that holds for every sample size
`lookup`      earlier places of an n-gram by Python's own search in strings
`text_law`    the exact law of texts and of target runs, by walking through all that can happen
`told`        greedy text by transformers' `generate`, plain and with an assistant model
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from autograder.checks import fail
from autograder.judging.oracle import oracle

# ---------------------------------------------------------------------------------------------------------- fractions


def mean_tokens(alpha: Fraction, gamma: int) -> Fraction:
    """Mean tokens of a step: over all numbers of accepted guesses, their chance times the tokens that come out."""
    mean, reached = Fraction(0), Fraction(1)
    for accepted in range(gamma):
        mean += reached * (1 - alpha) * (accepted + 1)
        reached *= alpha
    return mean + reached * (gamma + 1)


def best_gamma(alpha: float, c: float, lengths: range) -> tuple[int, float]:
    """The best draft length, the smallest of equals, and by which share its speed-up is ahead of the second."""
    exact = Fraction(alpha)
    ranked = sorted(lengths, key=lambda gamma: (-mean_tokens(exact, gamma) / (Fraction(c) * gamma + 1), gamma))
    speeds = [mean_tokens(exact, gamma) / (Fraction(c) * gamma + 1) for gamma in ranked[:2]]
    return ranked[0], float(1 - speeds[1] / speeds[0]) if len(speeds) == 2 else 1.0


# --------------------------------------------------------------------------------------------------------------- laws

Pair = tuple[np.ndarray, np.ndarray]
SIZE = 5
"""Tokens in the vocabulary of the statistical checks: few, so that every outcome comes often."""


def _random(draw: np.random.Generator) -> Pair:
    return draw.dirichlet(np.ones(SIZE)), draw.dirichlet(np.ones(SIZE))


def _half(draw: np.random.Generator) -> Pair:
    """Half of the guesses are accepted: a common part, and a part of its own for each."""
    common, own = draw.dirichlet(np.full(SIZE, 5.0)), draw.permutation(SIZE)
    p, q = 0.5 * common, 0.5 * common
    p[own[:2]] += 0.25
    q[own[2:4]] += 0.25
    return p, q


def _greedy_draft(draw: np.random.Generator) -> Pair:
    """The draft is nearly sure of the target's likeliest token: who accepts that one always is found out."""
    p = draw.permutation(np.array([0.4, 0.25, 0.2, 0.1, 0.05]))
    q = np.full(SIZE, 0.03)
    q[p.argmax()] += 0.85
    return p, q


def _disjoint(draw: np.random.Generator) -> Pair:
    own = draw.permutation(SIZE)
    p, q = np.zeros(SIZE), np.zeros(SIZE)
    p[own[:3]], q[own[3:]] = draw.dirichlet(np.full(3, 3.0)), draw.dirichlet(np.full(2, 3.0))
    return p, q


def _equal(draw: np.random.Generator) -> Pair:
    p = draw.dirichlet(np.ones(SIZE))
    return p, p.copy()


def _narrow_draft(draw: np.random.Generator) -> Pair:
    """The draft never guesses some tokens that the target likes."""
    p, q = draw.dirichlet(np.full(SIZE, 3.0)), draw.dirichlet(np.full(SIZE, 3.0))
    q[draw.permutation(SIZE)[:2]] = 0
    return p, q / q.sum()


def _certain_draft(draw: np.random.Generator) -> Pair:
    """The draft is sure of one token, which the target says at least in one of ten cases."""
    p, q = 0.5 * draw.dirichlet(np.full(SIZE, 3.0)) + 0.1, np.zeros(SIZE)
    q[draw.integers(SIZE)] = 1
    return p, q


KINDS: dict[str, Callable[[np.random.Generator], Pair]] = {
    "random target and draft": _random,
    "a draft that is right half of the time": _half,
    "a draft that is nearly sure of the target's likeliest token": _greedy_draft,
    "a draft that guesses only what the target never says": _disjoint,
    "a draft that is equal to the target": _equal,
    "a draft that never guesses some tokens of the target": _narrow_draft,
}


@dataclass(frozen=True)
class Tables:
    """Distributions after each text: `p[i]` and `q[i]` have an axis for each of the `i` tokens before, and one more."""

    p: tuple[np.ndarray, ...]
    q: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, kind: Callable[[np.random.Generator], Pair], draw: np.random.Generator) -> Tables:
        """Tables for drafts of up to two guesses. Rounded to fp32: what the submission is given is what is meant."""
        p, q = [], []
        for length in range(3):
            pairs = [kind(draw) for _ in range(SIZE**length)]
            for into, which in ((p, 0), (q, 1)):
                table = np.array([pair[which] for pair in pairs]).astype(np.float32)
                into.append(table.reshape((SIZE,) * (length + 1)))
        return cls(tuple(p), tuple(q))

    def law(self, guesses: int) -> dict[tuple[int, ...], float]:
        """Chance of each outcome (the tokens that come out) for drafts of `guesses` guesses."""
        found: Counter[tuple[int, ...]] = Counter()

        def walk(text: tuple[int, ...], chance: float) -> None:
            p = self.p[len(text)][text].astype(float)
            q = self.q[len(text)][text].astype(float) if len(text) < guesses else np.zeros(SIZE)
            for token in range(SIZE):
                if q[token] > p[token]:
                    continue
                found[*text, token] += chance * float(p[token] - q[token])
            if len(text) < guesses:
                for token in range(SIZE):
                    if kept := min(p[token], q[token]):
                        walk((*text, token), chance * float(kept))

        walk((), 1.0)
        total = sum(found.values())
        return {outcome: chance / total for outcome, chance in found.items() if chance > 0}

    def batch(self, guesses: np.ndarray, draw: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """draft_ids, draft_probs, target_probs for requests with `guesses` guesses each. Other rows: anything."""
        many = len(guesses)
        ids = np.full((many, 2), -1)
        p = draw.dirichlet(np.ones(SIZE), (many, 3)).astype(np.float32)
        q = draw.dirichlet(np.ones(SIZE), (many, 2)).astype(np.float32)
        first = _draw(np.broadcast_to(self.q[0], (many, SIZE)), draw)
        second = _draw(self.q[1][first], draw)
        one, two = guesses >= 1, guesses == 2
        ids[one, 0], ids[two, 1] = first[one], second[two]
        p[:, 0] = self.p[0]
        q[one, 0] = self.q[0]
        p[one, 1] = self.p[1][first[one]]
        q[two, 1] = self.q[1][first[two]]
        p[two, 2] = self.p[2][first[two], second[two]]
        return torch.from_numpy(ids), torch.from_numpy(q), torch.from_numpy(p)


def _draw(probs: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """One token for each row of `probs`; never one of probability 0."""
    edges = probs.astype(float).cumsum(axis=1)
    return (draw.random(len(probs))[:, None] * edges[:, -1:] >= edges).sum(axis=1)


FALSE_ALARM = 1e-9
"""Of one comparison. The checks make at most 60 of them, so together at most 6e-8."""

_IMPOSSIBLE = 1e-5
"""Chance that outcomes are allowed that cannot happen: rounding in fp32 may bring one of them once in a long while."""


def expect_law(outcomes: list[Hashable], law: Mapping[Hashable, float], what: str) -> None:
    """`outcomes` must be independent draws from `law`.

    The relative entropy D of the n counted outcomes and a law of k outcomes is at least t / n with probability at most
    exp(-t) (e t / (k - 1))^(k - 1), for every n and every law (R. Agrawal, Finite-sample concentration of the
    multinomial in relative entropy, arXiv 1904.02291, from its bound on the moment generating function).
    n D is half the likelihood-ratio statistic G, of which chi-square is the usual approximation.
    """
    n = len(outcomes)
    seen: Counter[Hashable] = Counter()
    wanted: Counter[Hashable] = Counter({"impossible": _IMPOSSIBLE})  # type: ignore[dict-item]  # chances, no counts
    rare = {outcome for outcome, chance in law.items() if n * chance < 5}
    for outcome, chance in law.items():
        wanted["rare" if outcome in rare else outcome] += (1 - _IMPOSSIBLE) * chance  # type: ignore[assignment]
    for outcome in outcomes:
        seen["rare" if outcome in rare else outcome if outcome in law else "impossible"] += 1
    n_times_d = sum(count * math.log(count / n / wanted[outcome]) for outcome, count in seen.items())
    if n_times_d > _limit(len(wanted) - 1):
        worst = max(wanted, key=lambda outcome: abs(seen[outcome] - n * wanted[outcome]) / (n * wanted[outcome]) ** 0.5)
        name = {"rare": "all rare outcomes together", "impossible": "outcomes that are impossible"}.get(
            str(worst), f"the outcome {worst}"
        )
        fail(
            f"{what} do not follow the law that they must. The most conspicuous: {name}.",
            value=f"{seen[worst]} of {n}",
            expected=f"about {n * wanted[worst]:.0f} of {n}",
        )


def _limit(freedom: int) -> float:
    """The smallest t whose bound is at most `FALSE_ALARM`."""
    freedom = max(freedom, 1)
    low, high = float(freedom), 1e6
    while high - low > 1e-6:
        t = (low + high) / 2
        if t - freedom * (1 + math.log(t / freedom)) < -math.log(FALSE_ALARM):
            low = t
        else:
            high = t
    return high


def marginal(law: Mapping[tuple[int, ...], float], of: Callable[[tuple[int, ...]], Hashable]) -> dict[Hashable, float]:
    """The law of `of(outcome)`."""
    found: dict[Hashable, float] = {}
    for outcome, chance in law.items():
        found[of(outcome)] = found.get(of(outcome), 0.0) + chance
    return found


# ------------------------------------------------------------------------------------------------------ other oracles


def lookup(ids: list[int], k: int, ngram_max: int, ngram_min: int) -> list[int]:
    """The guess, found in a string of one character for each token."""
    text = "".join(chr(256 + token) for token in ids)
    for n in range(min(ngram_max, len(ids)), ngram_min - 1, -1):
        if (place := text[:-1].rfind(text[-n:])) >= 0:
            return ids[place + n : place + n + k]
    return []


def history_alpha(steps: list[tuple[int, int]], initial: float, weight: float, decay: float) -> float:
    """The estimate after `steps`: each step, and the first guess, weighs a power of `decay`; summed up in fractions."""
    told = [(initial, 1.0, weight)]
    told += [(accepted, len(range(min(accepted + 1, drafted))), 1.0) for drafted, accepted in steps if drafted]
    accepted = trials = Fraction(0)
    for age, (hits, tries, worth) in enumerate(reversed(told)):
        share = Fraction(decay) ** age * Fraction(worth)
        accepted += share * Fraction(hits)
        trials += share * Fraction(tries)
    return float(accepted / trials)


def numpy_generator(rng: random.Random) -> np.random.Generator:
    return np.random.default_rng(rng.getrandbits(64))


# ---------------------------------------------------------------------------------------------------------- generation


STATES = 1009
MEMORY = 31
"""Of the models of the checks: what they say depends on the whole text before. STATES is prime, so no token is forgotten."""


def greedy_text(table: torch.Tensor, memory: int, ids: list[int], most: int, eos: int | None) -> list[int]:
    """What a model of the checks writes alone."""
    text, state = list(ids), 0
    for token in ids:
        state = (memory * state + token) % len(table)
    while len(text) < len(ids) + most:
        text.append(int(table[state].argmax()))
        state = (memory * state + text[-1]) % len(table)
        if text[-1] == eos:
            break
    return text


def tables(rng: random.Random, agree: float, size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables of a target and of a draft that is as sure of the same token in a share `agree` of the states.

    The likeliest token is ahead by `GAP` at least: of equals, any would be right.
    """
    draw = torch.Generator().manual_seed(rng.getrandbits(60))
    target = torch.randn(STATES, size, generator=draw)
    target[torch.arange(STATES), target.argmax(1)] += GAP
    other = target.roll(rng.randint(1, size - 1), 1)
    return target, torch.where(torch.rand(STATES, 1, generator=draw) < agree, target, other)


def fewest_runs(right: list[bool], gamma: int, most: int, ended: bool) -> tuple[int, int]:
    """Runs of the target, and accepted guesses, for greedy text of which the draft guesses the tokens marked `right`.

    `right` is about the new tokens; `most` of them were wanted; `ended`: the last one ends the text.
    """
    at = runs = accepted = 0
    while at < len(right):
        guesses = min(gamma, most - at - 1)
        hits = 0
        while hits < guesses and at + hits < len(right) and right[at + hits]:
            hits += 1
        runs, accepted = runs + 1, accepted + hits
        at += hits + (0 if ended and at + hits == len(right) else 1)
    return runs, accepted


def law_tables(rng: random.Random, kind: str, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables of target and draft that give distributions of a kind of `KINDS` without zeros, at `temperature`."""
    draw = numpy_generator(rng)
    pairs = [KINDS[kind](draw) for _ in range(STATES)]
    target, draft = (torch.from_numpy(np.log([pair[which] for pair in pairs])).float() for which in (0, 1))
    return target * temperature, draft * temperature


def text_law(
    tables: tuple[torch.Tensor, torch.Tensor],
    ids: list[int],
    gamma: int,
    most: int,
    temperature: float,
    eos: int,
    prefill: bool,
) -> dict[tuple[tuple[int, ...], int], float]:
    """Chance of every text of up to `most` new tokens together with the number of target runs that it took.

    `prefill`: the first run reads the prompt alone.
    """
    p_of, q_of = ((table.double() / temperature).softmax(1).tolist() for table in tables)
    law: Counter[tuple[tuple[int, ...], int]] = Counter()

    def walk(text: tuple[int, ...], state: int, runs: int, guesses: int, chance: float) -> None:
        p, q = p_of[state], q_of[state] if guesses else [0.0] * len(p_of[state])
        for token in range(len(p)):
            now, after = (*text, token), (MEMORY * state + token) % STATES
            accepted, own = chance * min(p[token], q[token]), chance * max(p[token] - q[token], 0.0)
            if len(now) == most or token == eos:
                law[now, runs + 1] += accepted + own  # type: ignore[assignment]  # chances, no counts
                continue
            if accepted:
                walk(now, after, runs, guesses - 1, accepted)
            if own:
                walk(now, after, runs + 1, min(gamma, most - len(now) - 1), own)

    state = 0
    for token in ids:
        state = (MEMORY * state + token) % STATES
    walk((), state, 0, 0 if prefill else min(gamma, most - 1), 1.0)
    return dict(law)


LLAMA = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 3, "max_position_embeddings": 128, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
GAP = 1e-3
"""By how much the likeliest token must be ahead, so that no order of fp32 operations changes it: errors are below 1e-4."""


@oracle
def transformers() -> Any:
    """The package, imported once per run."""
    import transformers
    import transformers.models.llama.modeling_llama

    transformers.logging.set_verbosity_error()  # assisted generation warns of how it calls itself
    torch.set_num_threads(1)  # in all checks: what they compute is small, and a second thread would only be waited for
    return transformers


def llama(rng: random.Random, *, like: Any = None, noise: float = 0.0) -> Any:
    """A small Llama with random weights in fp32; `like` another one, but for relative noise on its weights."""
    package = transformers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.getrandbits(60))
        model = package.LlamaForCausalLM(package.LlamaConfig(**LLAMA, initializer_range=0.15)).eval()
        if like is not None:
            weights = {
                name: value + noise * value.std() * torch.randn_like(value) if value.dim() > 1 else value.clone()
                for name, value in like.state_dict().items()
            }
            model.load_state_dict(weights)
    return model


@dataclass(frozen=True)
class Told:
    """What transformers' own greedy decoding says: the text, and which of its new tokens the draft guesses right."""

    text: list[int]
    right: list[bool]


def told(target: Any, draft: Any, ids: list[int], most: int, eos: int | None, gamma: int) -> Told | None:
    """transformers' greedy text, plain and assisted; `None` where it hangs on less than `GAP`."""
    given: dict[str, Any] = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
        "do_sample": False, "max_new_tokens": most, "eos_token_id": eos, "pad_token_id": 0,
    }  # fmt: skip
    with torch.inference_mode():
        text = target.generate(**given)[0].tolist()
        said = [model(torch.tensor([text])).logits[0, len(ids) - 1 : -1] for model in (target, draft)]
        if min(float((pair[:, 0] - pair[:, 1]).min()) for pair in (rows.topk(2).values for rows in said)) < GAP:
            return None
        draft.generation_config.num_assistant_tokens = gamma
        draft.generation_config.num_assistant_tokens_schedule = "constant"
        assisted = target.generate(**given, assistant_model=draft)[0].tolist()
    if assisted != text:
        raise RuntimeError("transformers' assisted greedy text is another one than its plain one")
    return Told(
        text, [token == guess for token, guess in zip(text[len(ids) :], said[1].argmax(1).tolist(), strict=True)]
    )


@oracle
def identity() -> Any:
    """The target whose speed is measured, and the sizes: the module that both sides load."""
    transformers()
    from grading.speculative_decoding import identity

    return identity


def clear_prompt(rng: random.Random) -> tuple[list[int], list[int]]:
    """A prompt after which the target's text does not hang on less than `GAP`, and that text, by transformers."""
    driver = identity()
    while True:
        prompt = [rng.randrange(driver.SHAPE["vocab_size"]) for _ in range(8)]
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            said = driver.TARGET.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=driver.NEW_TOKENS,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
        best = torch.cat(said.logits).topk(2).values
        if float((best[:, 0] - best[:, 1]).min()) > GAP:
            return prompt, said.sequences[0].tolist()
