"""The hidden checks of `speculative_decoding`. They ask for nothing that the handout does not say."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autograder.checks import expect_close, expect_equal, expect_raises, fail
from grading.speculative_decoding import oracles
from grading.speculative_decoding.oracles import Tables
from grading.speculative_decoding.test_public import (
    Model,
    expect_built,
    expect_generated,
    expect_pair,
    expect_tensor,
)

NOT_COUNTS: tuple[Any, ...] = (True, 2.0, "2")
NOT_NUMBERS: tuple[Any, ...] = (True, "0.5", None)
NAN, INF = float("nan"), float("inf")


def expect_count_checked(call: Callable[..., Any], name: str, minimum: int = 0) -> None:
    """`call(name=value)` must refuse what is no int, and ints below `minimum`, naming the argument."""
    for value in NOT_COUNTS:
        expect_raises("TypeError", partial(call, **{name: value}), f"{name}={value!r}", naming=name)
    for value in (minimum - 1, minimum - 20):
        expect_raises("ValueError", partial(call, **{name: value}), f"{name}={value}", naming=name)


def expect_number_checked(call: Callable[..., Any], name: str, *outside: float) -> None:
    """`call(name=value)` must refuse what is no number, or not finite, and numbers `outside` the range."""
    for value in NOT_NUMBERS:
        expect_raises("TypeError", partial(call, **{name: value}), f"{name}={value!r}", naming=name)
    for number in (*outside, NAN, INF, -INF):
        expect_raises("ValueError", partial(call, **{name: number}), f"{name}={number}", naming=name)


# ---------------------------------------------------------------------------------------------------- expected_tokens


def test_tokens_exact(submission, rng):
    """For any alpha and gamma, the mean is the one that the chances of all numbers of accepted guesses give.

    Hint: What is the chance that exactly k guesses are accepted, and how many tokens come out then?
    """
    cases = [(rng.random(), gamma) for gamma in (*range(12), 50, 300)] + [(0, 9), (1, 200), (1.0, 1), (0.0, 0)]
    got = submission.expected_tokens.each(cases)
    for (alpha, gamma), value in zip(cases, got, strict=True):
        expect_close(value, float(oracles.mean_tokens(Fraction(alpha), gamma)), f"expected_tokens({alpha}, {gamma})")


def test_tokens_arguments(submission):
    """An alpha that is no probability and a gamma that is no count are errors that name them.

    Hint: check_number and check_count take the name that the text must contain.
    """
    expect_number_checked(partial(submission.expected_tokens, gamma=3), "alpha", -0.001, 1.001, 80)
    expect_count_checked(partial(submission.expected_tokens, 0.5), "gamma")


# ------------------------------------------------------------------------------------------------------------ speedup


def test_speedup_exact(submission, rng):
    """For any alpha, gamma, c and v, the speed-up is the mean number of tokens over the time of a step.

    Hint: v is the time of the checking run alone; the draft's runs come on top.
    """
    cases: list[tuple[Any, ...]] = [
        (rng.random(), rng.randint(1, 30), rng.uniform(0, 1.5), rng.uniform(1, 3)) for _ in range(20)
    ]
    cases += [(rng.random(), rng.randint(1, 9), rng.random()) for _ in range(10)] + [
        (1, 4, 0),
        (0.5, 3, 2),
        (1, 1, 1, 2),
        (rng.random(), 0, rng.random()),  # with v = 1: what another v means there, the text leaves open
    ]
    for case, value in zip(cases, submission.speedup.each(cases), strict=True):
        alpha, gamma, c, v = (*case, 1)[:4]
        tokens = oracles.mean_tokens(Fraction(alpha), gamma)
        expected = float(tokens / (Fraction(c) * gamma + Fraction(v)))
        expect_built(submission, value, expected, f"speedup{case}", ("expected_tokens", (alpha, gamma), float(tokens)))


def test_speedup_arguments(submission):
    """Every argument of speedup is checked and named.

    Hint: The docstring gives the range of each; v has another one than c.
    """
    expect_number_checked(partial(submission.speedup, gamma=3, c=0.1), "alpha", -0.001, 1.001)
    expect_count_checked(partial(submission.speedup, 0.5, c=0.1), "gamma")
    expect_number_checked(partial(submission.speedup, 0.5, 3), "c", -0.001)
    expect_number_checked(partial(submission.speedup, 0.5, 3, 0.1), "v", 0.999, 0.0)


# ------------------------------------------------------------------------------------------------------ optimal_gamma


def test_gamma_is_the_best(submission, rng):
    """No other draft length that is allowed has a larger speed-up, and of equals the smallest is given.

    Hint: Try all lengths from min_gamma to max_gamma, both included.
    """
    cases, expected = [(0, 0, 9, 2), (0.0, 0.0, 5, 0), (0.5, 0.7, 0, 0), (0.9, 0.01, 3, 3)], [2, 0, 0, 3]
    while len(cases) < 60:
        low = rng.choice([0, 0, 0, 1, rng.randint(0, 6)])
        case = (
            rng.uniform(0.05, 0.99),
            rng.choice([rng.uniform(0.01, 0.2), rng.random()]),
            low + rng.randint(0, 30),
            low,
        )
        best, ahead = oracles.best_gamma(case[0], case[1], range(low, case[2] + 1))
        if ahead > 1e-6:  # where two are nearly equal, rounding decides
            cases.append(case)
            expected.append(best)
    for case, value, best in zip(cases, submission.optimal_gamma.each(cases), expected, strict=True):
        what = f"optimal_gamma(alpha={case[0]}, c={case[1]}, max_gamma={case[2]}, min_gamma={case[3]})"
        chances = [(Fraction(case[0]), gamma) for gamma in {best, case[3], case[2]}]
        earlier = [
            (
                "speedup",
                (case[0], gamma, case[1]),
                float(oracles.mean_tokens(alpha, gamma) / (Fraction(case[1]) * gamma + 1)),
            )
            for alpha, gamma in chances
        ]
        expect_built(submission, value, best, what, *earlier)


def test_gamma_arguments(submission):
    """Every argument of optimal_gamma is checked and named, also where only one length is allowed.

    Hint: max_gamma must be at least min_gamma.
    """
    call = submission.optimal_gamma
    expect_number_checked(partial(call, c=0.1, max_gamma=4), "alpha", -0.001, 1.001)
    expect_number_checked(partial(call, 0.5, max_gamma=0), "c", -0.001)
    expect_count_checked(partial(call, 0.5, 0.1), "max_gamma")
    expect_count_checked(partial(call, 0.5, 0.1, min_gamma=4), "max_gamma", 4)
    expect_count_checked(partial(call, 0.5, 0.1, 30), "min_gamma")


# ---------------------------------------------------------------------------------------------- residual_distribution


def expect_residual(submission: Any, p: torch.Tensor, q: torch.Tensor, tolerance: float, what: str) -> None:
    got = submission.residual_distribution(p, q)
    expect_tensor(got, tuple(p.shape), p.dtype, what)
    exact_p, exact_q = p.double().numpy(), q.double().numpy()
    for place in np.ndindex(p.shape[:-1]):
        missing = np.array([max(a - b, 0.0) for a, b in zip(exact_p[place], exact_q[place], strict=True)])
        expected = missing / missing.sum() if missing.any() else exact_p[place]
        if not np.allclose(got[place].double().numpy(), expected, rtol=0, atol=tolerance):
            at = f" at {place}" if place else ""
            wanted = str([round(x, 6) for x in expected.tolist()])
            fail(f"{what}{at} is wrong.", value=got[place].tolist(), expected=wanted)


def test_residual_batches(submission, rng):
    """Each distribution of a batch of any shape is handled on its own, and where p and q are equal, p comes back.

    Hint: Sum over the last dimension only, and keep it for the division.
    """
    draw = oracles.numpy_generator(rng)
    for shape in ((7,), (6, 5), (2, 3, 4), (1, 1, 2, 9)):
        for dtype in (torch.float32, torch.float64):
            p = torch.from_numpy(draw.dirichlet(np.ones(shape[-1]), shape[:-1])).to(dtype)
            q = torch.from_numpy(draw.dirichlet(np.ones(shape[-1]), shape[:-1])).to(dtype)
            # The inputs are exact in fp64; sums of at most 9 numbers below 1 in fp32 are right to 1e-5 in any order.
            expect_residual(submission, p, q, 1e-5, f"residual_distribution of shape {shape}, {dtype},")
            expect_residual(submission, p, p.clone(), 1e-5, f"residual_distribution of equal p and q, shape {shape},")
            if len(shape) > 1:
                q[0] = p[0]
                expect_residual(
                    submission, p, q, 1e-5, f"residual_distribution of a batch with equal p and q at 0, {shape},"
                )
    p = torch.full((3, 4), 0.25)
    for other in (torch.full((3, 5), 0.2), torch.full((4,), 0.25), torch.full((1, 4), 0.25)):
        what = f"residual_distribution of shapes (3, 4) and {tuple(other.shape)}"
        expect_raises("ValueError", partial(submission.residual_distribution, p, other), what)


def test_residual_nearly_equal(submission, rng):
    """Distributions that differ by very little have a residual that sums to 1, too.

    Hint: Nothing may be added to the sum before you divide by it.
    """
    for step in (2.0**-10, 2.0**-17, 2.0**-22):  # powers of two: p and q are exact in fp32, and so is their difference
        up, also_up, down = rng.sample(range(6), 3)
        p, q = torch.full((6,), 0.125), torch.full((6,), 0.125)
        p[up] += 2 * step
        p[also_up] += step
        q[down] += 3 * step
        expect_residual(submission, p, q, 1e-4, f"residual_distribution of p and q that differ by {step:.2g}")


# --------------------------------------------------------------------------------------------------- rejection_sample

MANY = 9_000
"""Requests in a call."""
LENGTHS = (1 / 6, 1 / 6, 2 / 3)
"""Shares of requests with no, one and two guesses.

The hardest to tell is one u for both guesses of a request. Over 15,000 tables drawn at random, its relative entropy to the law
was at least 0.034. On the five tables with the least, 3,000 requests with two guesses missed it in 80 % of 1,000 runs, 4,500 in
13 %, and 6,000, as many as there are here, never.
"""


def sample(
    submission: Any, tables: Tables, guesses: np.ndarray, rng: random.Random, *, one_hot: bool, what: str
) -> Any:
    """Call the submission on drafts of the tables, and give the outcome of each request, which must be well-formed."""
    ids, q, p = tables.batch(guesses, oracles.numpy_generator(rng))
    generator = submission.make_generator(rng.getrandbits(40))
    got = submission.rejection_sample(ids, None if one_hot else q, p, generator)
    tokens, n_accepted = expect_pair(got, f"The result with {what}")
    expect_tensor(tokens, (len(guesses), 3), torch.int64, f"tokens with {what}")
    expect_tensor(n_accepted, (len(guesses),), torch.int64, f"n_accepted with {what}")
    outcomes = []
    for guess, row, count, most in zip(
        ids.tolist(), tokens.tolist(), n_accepted.tolist(), guesses.tolist(), strict=True
    ):
        at = f"for the guesses {guess}, with {what},"
        if not 0 <= count <= most:
            fail(f"n_accepted {at} is impossible.", value=count, expected=f"0 to {most}")
        if (
            row[:count] != guess[:count]
            or row[count] not in range(oracles.SIZE)
            or row[count + 1 :] != [-1] * (2 - count)
        ):
            fail(
                f"The row of tokens {at} is not well-formed: n_accepted is {count}.",
                value=row,
                expected="the accepted guesses, one token, then -1",
            )
        outcomes.append(tuple(row[: count + 1]))
    return outcomes


def expect_lossless(outcomes: list[tuple[int, ...]], law: dict[tuple[int, ...], float], what: str) -> None:
    """The outcomes must follow the law: first coarsely, for the sake of a message that says where to look."""
    for of, name in (
        (lambda outcome: f"first token {outcome[0]}", "The first tokens"),
        (lambda outcome: f"{len(outcome)} tokens", "The numbers of tokens that come out"),
        (lambda outcome: outcome, "The tokens that come out, all together,"),
    ):
        oracles.expect_law([of(each) for each in outcomes], oracles.marginal(law, of), f"{name}, with {what},")


def test_rejection_law(submission, rng):
    """Whatever the draft is like, what comes out follows the law that the rules give: tokens, and how many.

    Hint: Let many equal requests through your function, and count. The first token must follow p, whatever q is.
    """
    # 18 comparisons, 1e-9 each: at most 1.8e-8 false alarms.
    for what, kind in oracles.KINDS.items():
        tables = Tables.of(kind, oracles.numpy_generator(rng))
        outcomes = sample(submission, tables, np.full(MANY, 2), rng, one_hot=False, what=what)
        expect_lossless(outcomes, tables.law(2), what)


def test_rejection_lengths(submission, rng):
    """Requests with two guesses, one and none, mixed in one batch, each follow their own law; so does a batch of none.

    Hint: Where does the bonus token come from if a request has fewer guesses than others?
    """
    # 12 comparisons, 1e-9 each: at most 1.2e-8 false alarms.
    tables = Tables.of(oracles.KINDS["a draft that is right half of the time"], oracles.numpy_generator(rng))
    guesses = oracles.numpy_generator(rng).choice(3, MANY, p=LENGTHS)
    outcomes = sample(submission, tables, guesses, rng, one_hot=False, what="drafts of different lengths")
    for length in (0, 1, 2):
        mine = [outcome for outcome, most in zip(outcomes, guesses.tolist(), strict=True) if most == length]
        expect_lossless(mine, tables.law(length), f"drafts of different lengths, looking at those of {length}")
    p = torch.from_numpy(tables.p[0]).repeat(MANY, 1, 1)
    nothing, no_probs = torch.zeros((MANY, 0), dtype=torch.int64), torch.zeros((MANY, 0, oracles.SIZE))
    for probs, name in ((no_probs, "gamma = 0"), (None, "gamma = 0 and draft_probs=None")):
        got = submission.rejection_sample(nothing, probs, p, submission.make_generator(rng.getrandbits(40)))
        tokens, n_accepted = expect_pair(got, f"The result with {name}")
        expect_tensor(tokens, (MANY, 1), torch.int64, f"tokens with {name}")
        expect_equal(n_accepted.tolist() if type(n_accepted) is torch.Tensor else n_accepted, [0] * MANY, "n_accepted")
        oracles.expect_law([(token,) for token in tokens[:, 0].tolist()], tables.law(0), f"The tokens with {name}")


def test_rejection_one_hot(submission, rng):
    """Without draft_probs, the draft counts as certain of its guesses.

    Hint: q is 1 for the guess and 0 for all else. What is left of p after a rejection?
    """
    # 9 comparisons, 1e-9 each: at most 9e-9 false alarms.
    draw = oracles.numpy_generator(rng)
    tables = Tables.of(oracles._certain_draft, draw)
    while (
        tables.p[0] * np.log(oracles.SIZE * tables.p[0])
    ).sum() < 0.06:  # rows that are nobody's are uniform on average
        tables = Tables.of(oracles._certain_draft, draw)
    tables.q[0][:] = np.eye(oracles.SIZE)[0]  # token 0 is a token like any other
    guesses = oracles.numpy_generator(rng).choice(3, MANY, p=LENGTHS)
    outcomes = sample(submission, tables, guesses, rng, one_hot=True, what="draft_probs=None")
    for length in (0, 1, 2):
        mine = [outcome for outcome, most in zip(outcomes, guesses.tolist(), strict=True) if most == length]
        expect_lossless(mine, tables.law(length), f"draft_probs=None, looking at drafts of {length}")


def test_rejection_generator(submission, rng):
    """All random numbers come from the generator: the same seed gives the same result, the next call another one.

    Hint: Give generator= to every function that draws, and never set a seed yourself.
    """
    tables = Tables.of(oracles._half, oracles.numpy_generator(rng))
    ids, q, p = tables.batch(np.full(500, 2), oracles.numpy_generator(rng))
    seed = rng.getrandbits(40)
    first, second = submission.make_generator(seed), submission.make_generator(seed)
    results = []
    for generator in (first, second, first):
        tokens, _ = expect_pair(submission.rejection_sample(ids, q, p, generator), "The result for 500 requests")
        expect_tensor(tokens, (500, 3), torch.int64, "tokens for 500 requests")
        results.append(tokens)
    if not torch.equal(results[0], results[1]):
        fail("Two generators with the same seed gave different tokens.", expected="the same tokens")
    if torch.equal(results[0], results[2]):  # by chance: far below 2^-500
        fail("A second call with the same generator gave the same tokens.", expected="other random numbers")


# ------------------------------------------------------------------------------- PromptLookupProposer, AdaptiveGamma


def test_lookup_any_text(submission, rng):
    """In any text, of any length, the guess is the one of the longest and then latest earlier place.

    Hint: Compare with str.rfind on texts of a few different letters.
    """
    for _ in range(12):
        low = rng.randint(1, 3)
        high = low + rng.randint(0, 4)
        proposer = submission.PromptLookupProposer(high, low)
        cases = []
        for _ in range(60):
            kinds, length = rng.choice([1, 2, 3, 6]), rng.choice([*range(9), 40, 120])
            cases.append(([rng.randrange(kinds) for _ in range(length)], rng.randint(0, 8)))
        for (ids, k), got in zip(cases, proposer.propose.each(cases), strict=True):
            what = f"The guess of up to {k} tokens after {ids}, with ngram_max={high}, ngram_min={low},"
            expect_equal(got, oracles.lookup(ids, k, high, low), what)


def test_lookup_arguments(submission):
    """ngram_max, ngram_min and k are checked and named.

    Hint: The range of ngram_max depends on ngram_min.
    """
    expect_count_checked(partial(submission.PromptLookupProposer, 3), "ngram_min", 1)
    expect_count_checked(submission.PromptLookupProposer, "ngram_max", 1)
    expect_count_checked(partial(submission.PromptLookupProposer, ngram_min=4), "ngram_max", 4)
    proposer = submission.PromptLookupProposer(2, 2)
    expect_count_checked(partial(proposer.propose, [1, 2, 3]), "k")
    usual = submission.PromptLookupProposer(3)
    expect_equal(usual.propose([7, 8, 7], 1), [8], "The guess after [7, 8, 7] with ngram_min left out")


CORNERS: dict[int, dict[str, Any]] = {
    1: {"c": 0.02, "initial_alpha": 0.97, "max_gamma": 3},
    2: {"c": 0.4, "initial_alpha": 0.05, "min_gamma": 0},
    3: {"c": 0.4, "initial_alpha": 0.05, "min_gamma": 2},
}
"""Histories that begin where the longest, no, and the shortest draft that is allowed is the best."""


def test_adaptive_history(submission, rng):
    """After any history, the estimate weighs each step by its age, and the draft length is the best one for it.

    Hint: Trials are the accepted guesses and the first rejected one. A step without guesses is no step.
    """
    for round_ in range(8):
        decay = [0.0, 1.0, *(rng.uniform(0.5, 0.99) for _ in range(6))][round_]
        settings = {
            "c": rng.uniform(0.02, 0.5),
            "min_gamma": rng.choice([0, 1, 2]),
            "max_gamma": rng.randint(3, 12),
            "initial_alpha": rng.random(),
            "weight": rng.uniform(1, 20),
            "decay": decay,
        }
        settings |= CORNERS.get(round_, {})
        adaptive, steps = submission.AdaptiveGamma(**settings), []
        lengths = range(settings["min_gamma"], settings["max_gamma"] + 1)
        for _ in range(13):
            alpha = oracles.history_alpha(steps, settings["initial_alpha"], settings["weight"], decay)
            what = f"after the steps (drafted, accepted) {steps} with {settings}"
            expect_close(adaptive.alpha(), alpha, f"The estimate {what}")
            best, ahead = oracles.best_gamma(alpha, settings["c"], lengths)
            if ahead > 1e-6:
                earlier = ("optimal_gamma", (alpha, settings["c"], settings["max_gamma"], settings["min_gamma"]), best)
                expect_built(submission, adaptive.gamma(), best, f"The draft length {what}", earlier)
            drafted = rng.choice([0, rng.randint(1, 8)])
            steps.append((drafted, rng.choice([0, drafted, rng.randint(0, drafted)])))
            adaptive.update(*steps[-1])


def test_adaptive_arguments(submission):
    """Every argument is checked and named, and an update that is refused changes nothing.

    Hint: Check before you decay. More guesses cannot be accepted than were made.
    """
    make = submission.AdaptiveGamma
    expect_number_checked(partial(make, max_gamma=4), "c", -0.001)
    expect_count_checked(partial(make, 0.1, min_gamma=3), "max_gamma", 3)
    expect_count_checked(partial(make, 0.1, 4), "min_gamma")
    expect_number_checked(partial(make, 0.1, 4), "initial_alpha", -0.001, 1.001)
    expect_number_checked(partial(make, 0.1, 4), "weight", 0.999, -1.0)
    expect_number_checked(partial(make, 0.1, 4), "decay", -0.001, 1.001)
    expect_equal(
        make(0.9, 4, initial_alpha=0.1).gamma(), 1, "The draft length of a hopeless draft, with min_gamma left out"
    )
    expect_close(make(0.1, 4, weight=1, decay=1).alpha(), 0.8, "The estimate with weight=1 and initial_alpha left out")
    usual = make(0.1, 4)
    usual.update(4, 1)
    expect_close(usual.alpha(), 8.6 / 11.5, "The estimate after update(4, 1) with everything left out")
    adaptive = make(0.1, 4, 0, 0.5, 4.0, 0.5)
    expect_count_checked(partial(adaptive.update, accepted=0), "drafted")
    expect_count_checked(partial(adaptive.update, 3), "accepted")
    for drafted, accepted in ((3, 4), (0, 1)):
        what = f"update({drafted}, {accepted})"
        expect_raises("ValueError", partial(adaptive.update, drafted, accepted), what, naming="accepted")
    expect_close(adaptive.alpha(), 0.5, "The estimate after updates that were refused")
    adaptive.update(2, 0)
    expect_close(adaptive.alpha(), 1 / 3, "The estimate after updates that were refused, and update(2, 0)")


# --------------------------------------------------------------------------------------------------- check_compatible


def test_compatible_any(submission, rng):
    """Among thousands of tokens, any difference is found, and the text gives the smallest id that is concerned.

    Hint: A token that moved concerns two ids, and so does one that only one of the two has.
    """
    ids = rng.sample(range(10_000, 90_000), 1_000)
    vocab = {f"token{place}": token_id for place, token_id in enumerate(ids)}
    first, second = rng.sample(list(vocab), 2)
    swapped = vocab | {first: vocab[second], second: vocab[first]}
    without = {token: token_id for token, token_id in vocab.items() if token != first}
    one = submission.Tokenizer(vocab, 5)
    shuffled = dict(rng.sample(list(vocab.items()), len(vocab)))
    expect_equal(submission.check_compatible(one, submission.Tokenizer(shuffled, 5)), None, "The answer for equal ones")
    for other, smallest, what in (
        (swapped, min(vocab[first], vocab[second]), "two tokens whose ids are exchanged"),
        (without, vocab[first], "a token that only one tokenizer has"),
        (without | {"new": vocab[first]}, vocab[first], "an id that is another token"),
        (without | {first: 95_000}, vocab[first], "a token with another id"),
        (vocab | {"new": 96_000, "newer": 97_000}, 96_000, "two tokens more at the end"),
        (vocab | {"new": 7_000}, 7_000, "a token more at the beginning"),
    ):
        two = submission.Tokenizer(other, 5)
        for pair in ((one, two), (two, one)):
            call = partial(submission.check_compatible, *pair)
            expect_raises("ValueError", call, f"check_compatible for {what}", naming=str(smallest))


def test_compatible_end_of_text(submission, rng):
    """Equal vocabularies in which another id ends a text are not compatible.

    Hint: Compare eos_token_id after the vocabularies.
    """
    vocab = {f"token{place}": place for place in range(rng.randint(20, 40))}
    one, two = submission.Tokenizer(vocab, 3), submission.Tokenizer(vocab, 4)
    what = "check_compatible with other ids at the end of a text"
    expect_raises("ValueError", partial(submission.check_compatible, one, two), what, naming="eos_token_id")
    same = submission.Tokenizer(vocab, 4)
    expect_equal(submission.check_compatible(two, same), None, "The answer for equal tokenizers")


# ----------------------------------------------------------------------------------------------- speculative_generate


ZERO = -1
"""In place of a new token's number: token 0 ends the text."""


class Greedy:
    """One greedy generation with models of the judge's, which keep a log of all that they were asked."""

    def __init__(
        self, submission: Any, rng: random.Random, agree: float, gamma: int, most: int, eos: int | None = None
    ) -> None:
        """`eos`: the number of the new token that is made the end of the text, or `ZERO`."""
        self.rng, self.gamma, self.most = rng, gamma, most
        self.log: list[tuple[Model, list[int], list[int]]] = []
        tables = oracles.tables(rng, agree)
        self.target, self.draft = (
            Model(name, table, oracles.MEMORY, self.log)
            for name, table in zip(("target", "draft"), tables, strict=True)
        )
        while True:
            self.prompt = [rng.randrange(12) for _ in range(rng.randint(1, 6))]
            self.text = oracles.greedy_text(tables[0], oracles.MEMORY, self.prompt, most, None)
            if eos != ZERO or 0 in self.text[len(self.prompt) :]:
                break
        self.eos = {None: None, ZERO: 0}.get(eos, self.text[len(self.prompt) + min(eos or 0, most - 1)])
        if self.eos is not None:
            self.text = oracles.greedy_text(tables[0], oracles.MEMORY, self.prompt, most, self.eos)
        self.what = (
            f"after {self.prompt}, with gamma={gamma}, max_new_tokens={most}, eos_token_id={self.eos}, temperature 0, "
            f"and a draft that agrees in {agree:.0%} of the cases"
        )
        got = submission.speculative_generate(
            self.target.given(submission),
            self.draft.given(submission),
            self.prompt,
            gamma,
            most,
            submission.make_generator(rng.getrandbits(40)),
            eos_token_id=self.eos,
        )
        self.ids, self.stats = expect_generated(got, f"speculative_generate {self.what},")

    @property
    def new(self) -> int:
        return len(self.text) - len(self.prompt)

    @property
    def ended(self) -> bool:
        return self.new > 0 and self.text[-1] == self.eos

    def right(self) -> list[bool]:
        """Which of the new tokens the draft guesses if all before them are there."""
        states = self.draft.states(self.text)
        guesses = self.draft.table[states].argmax(1).tolist()
        return [self.text[place] == guesses[place - 1] for place in range(len(self.prompt), len(self.text))]

    def replay(self) -> dict[str, int]:
        """See in the log that every run was one of the right text, with guesses of the draft; count what came out."""
        certain, counts = len(self.prompt), {"target_runs": 0, "drafted": 0, "accepted": 0}
        read: dict[str, set[tuple[int, ...]]] = {"target": set(), "draft": set()}
        for number, (model, before, ids) in enumerate(self.log, 1):
            at = f"In run {number} (of both models together), of the {model.name}, {self.what}"
            text = self.text[:certain]
            if before[:certain] != text[: len(before)]:
                fail(
                    f"{at}: its cache holds tokens that are not those of the text.",
                    value=before[:certain],
                    expected=str(text[: len(before)]),
                )
            if len(before) > certain and model is self.target:
                fail(f"{at}: its cache holds guesses.", value=before[certain:], expected="only certain tokens")
            now = before + ids
            if now[:certain] != text[: len(now)]:
                fail(f"{at}: what it reads is not the text.", value=now[:certain], expected=str(text[: len(now)]))
            states = self.draft.states(now)
            for place in range(certain, len(now)):
                guess = int(self.draft.table[states[place - 1]].argmax())
                if now[place] != guess:
                    fail(f"{at}: it reads a guess that the draft does not make.", value=now[place], expected=str(guess))
            for place in range(len(before), len(now)):
                if tuple(now[: place + 1]) in read[model.name]:
                    fail(
                        f"{at}: it reads token {now[place]} at place {place} again.",
                        value=f"cache of {len(before)} tokens, given {len(ids)}",
                        expected="only what it has not read yet",
                    )
                read[model.name].add(tuple(now[: place + 1]))
            if model is self.target:
                guesses, left = len(now) - certain, self.most - (certain - len(self.prompt))
                if not 0 <= guesses <= max(0, min(self.gamma, left - 1)):
                    fail(f"{at}: it checks {guesses} guesses.", expected=f"at most {max(0, min(self.gamma, left - 1))}")
                hits = 0
                while (
                    hits < guesses
                    and certain + hits < len(self.text)
                    and now[certain + hits] == self.text[certain + hits]
                ):
                    hits += 1
                counts["target_runs"] += 1
                counts["drafted"] += guesses
                counts["accepted"] += hits
                certain = min(certain + hits + 1, len(self.text))
        if certain < len(self.text):
            fail(
                f"The runs of the target do not give the whole text {self.what}.",
                value=f"{certain - len(self.prompt)} new tokens",
                expected=f"{self.new} new tokens",
            )
        return counts


def greedy_cases(rng: random.Random) -> list[dict[str, Any]]:
    """Settings of `Greedy`: drafts that are always, never and sometimes right, and every way in which a text ends."""
    cases: list[dict[str, Any]] = [
        {"agree": agree, "gamma": gamma, "most": most}
        for agree, gamma, most in (
            (1.0, 3, 12), (1.0, 3, 14), (1.0, 7, 5), (0.0, 3, 9), (0.6, 0, 6), (0.7, 1, 15), (0.8, 2, 17), (0.8, 4, 30),
            (0.7, 4, 1), (0.9, 5, 2), (0.9, 30, 12),
        )
    ]  # fmt: skip
    cases += [{"agree": rng.uniform(0.5, 1), "gamma": rng.randint(2, 6), "most": rng.randint(6, 25)} for _ in range(6)]
    return cases


def test_generate_greedy(submission, rng):
    """At temperature 0 the text is what the target alone would write, and the counts are true, whatever the draft says.

    Hint: Which tokens are in the target's cache after a rejection? Try a draft that is always right, and one that never is.
    """
    cases = greedy_cases(rng)
    cases += [case | {"eos": eos} for case in cases for eos in (ZERO, rng.choice([0, 1, 2, 3, 5, 8]))]
    cases += [{"agree": 1.0, "gamma": 4, "most": 12, "eos": eos} for eos in (1, 2, 5)]
    for case in cases:
        run = Greedy(submission, rng, **case)
        expect_equal(run.ids, run.text, f"The ids {run.what}")
        runs, stats = run.target.runs, run.stats
        expect_equal(stats["target_runs"], runs, f"The target_runs {run.what}, of which the grader counted {runs},")
        certain, drafted, accepted = len(run.prompt), 0, 0
        for model, before, ids in run.log:
            if model is run.target:
                now = before + ids
                hits = 0
                while (
                    hits < len(now) - certain
                    and now[certain + hits : certain + hits + 1] == run.text[certain + hits :][:1]
                ):
                    hits += 1
                drafted, accepted = drafted + max(0, len(now) - certain), accepted + hits
                certain += hits + 1
        expect_equal(stats["accepted"], accepted, f"The number of accepted guesses {run.what},")
        expect_equal(stats["drafted"], drafted, f"The number of guesses that the target has checked {run.what},")


def test_generate_counts(submission, rng):
    """Both models are run no more often than they must be, read nothing twice, and have caches of the right text.

    Hint: Print length and ids of every run of both models. What is in the draft's cache when all its guesses were accepted?
    """
    for case in greedy_cases(rng):
        run = Greedy(submission, rng, **case)
        counts = run.replay()
        fewest, _ = oracles.fewest_runs(run.right(), run.gamma, run.most, run.ended)
        if counts["target_runs"] > fewest + 1:  # who reads the prompt alone needs one more, and never two
            fail(
                f"The target is run too often {run.what}.",
                value=counts["target_runs"],
                expected=f"{fewest} times, or {fewest + 1}",
            )
        if run.draft.runs > (counts["drafted"] + 1 if run.gamma else 0):
            fail(
                f"The draft is run too often {run.what}.",
                value=run.draft.runs,
                expected=f"once for each of the {counts['drafted']} guesses, and at most once more"
                if run.gamma
                else "0",
            )


TEXTS = 600
"""Generated texts of up to three tokens in each of two settings.

The four submissions of the corpus that only this check tells by its law (guesses drawn at another temperature, the likeliest
guess taken for drawn, a draft taken for certain, a draft that is not rolled back) failed in 20 of 20 runs each.
"""
SAME = 50
"""In a call of `each`; also the texts that a second generator must give again."""


def test_generate_law(submission, rng):
    """Drawn texts, and how many runs they take, follow the law that target and draft give, at any temperature.

    Hint: Which distribution was a guess drawn from? That one, at the same temperature, belongs into draft_probs.
    """
    # 8 comparisons, 1e-9 each: at most 8e-9 false alarms.
    for gamma, temperature, kind in (
        (2, 0.35, "a draft that is nearly sure of the target's likeliest token"),
        (5, 3.0, "a draft that is right half of the time"),
    ):
        tables = oracles.law_tables(rng, kind, temperature)
        prompt, eos = [rng.randrange(oracles.SIZE) for _ in range(3)], rng.randrange(1, oracles.SIZE)
        what = f"with gamma={gamma}, temperature={temperature} and {kind}"
        generator, again = (submission.make_generator(seed) for seed in [rng.getrandbits(40)] * 2)
        toys = [submission.ToyModel(table, oracles.MEMORY) for table in tables]
        watched = Greedy(submission, rng, 0.5, gamma, 3)
        prefill = next((ids for model, _, ids in watched.log if model is watched.target), []) == watched.prompt
        law = oracles.text_law(tables, prompt, gamma, 3, temperature, eos, prefill)
        outcomes: list[tuple[tuple[int, ...], int]] = []
        for start in range(0, TEXTS + SAME, SAME):  # models stay in the worker: runs are counted in other checks
            models = zip(*(toy.new.each([()] * SAME) for toy in toys), strict=True)
            source = generator if start < TEXTS else again
            calls = [(*pair, prompt, gamma, 3, source, temperature, eos) for pair in models]
            for got in submission.speculative_generate.each(calls):
                ids, stats = expect_generated(got, f"speculative_generate {what}")
                new, runs = tuple(ids[len(prompt) :]), stats["target_runs"]
                ends = len(new) == 3 or new[-1:] == (eos,)
                if ids[: len(prompt)] != prompt or not ends or len(new) > 3 or eos in new[:-1]:
                    fail(
                        f"A text {what} after {prompt}, with eos_token_id={eos} and max_new_tokens=3, is impossible.",
                        value=ids,
                    )
                if not 0 <= stats["accepted"] + runs - len(new) <= (new[-1] == eos):
                    fail(f"The counts of a text of {len(new)} new tokens do not add up, {what}.", value=stats)
                outcomes.append((new, runs))
        if outcomes[TEXTS:] != outcomes[:SAME]:
            fail(f"Two generators with the same seed gave different texts, {what}.")
        for of, name in (
            (lambda outcome: f"first token {outcome[0][0]}", "The first tokens"),
            (lambda outcome: f"{len(outcome[0])} tokens in {outcome[1]} runs", "The numbers of target runs"),
            (lambda outcome: outcome[0][:2], "The first two tokens"),
            (lambda outcome: outcome, "Texts and numbers of target runs, all together,"),
        ):
            oracles.expect_law([of(each) for each in outcomes[:TEXTS]], oracles.marginal(law, of), f"{name}, {what},")


def test_generate_transformers(submission, rng):
    """With small Llamas of transformers and their caches, the text is the one of transformers' own greedy decoding.

    Hint: Everything goes through run and crop. Compare with model.generate(..., do_sample=False), plain and with
    assistant_model.
    """
    # A draft that has not read the newest token but one guesses otherwise in 3 of 4 texts of the second kind: all 6 of them
    # are as they should be once in 4,000 times, with those of the first and third kind once in 30,000.
    for noise, gamma, most, texts in ((0.0, 4, 24, 2), (0.05, 2, 40, 7), (0.05, 6, 23, 2), (0.3, 2, 12, 2)):
        target = oracles.llama(rng)
        draft = oracles.llama(rng, like=target, noise=noise)
        ours = [submission.small_llama(oracles.LLAMA, dict(model.state_dict())) for model in (target, draft)]
        done = 0
        while done < texts:
            prompt = [rng.randrange(48) for _ in range(rng.randint(2, 9))]
            told = oracles.told(target, draft, prompt, most, None, gamma)
            if told is None:
                continue
            eos = None
            if done == texts - 1:
                # Some token that would stand inside of a draft, with others after it, if all guesses were accepted.
                new = told.text[len(prompt) :]
                inside = [
                    at
                    for at, token in enumerate(new)
                    if token and token not in new[:at] and at % (gamma + 1) < gamma - 1
                ]
                eos = new[rng.choice(inside)] if inside else None
                told = oracles.told(target, draft, prompt, most, eos, gamma) if inside else None
                if (
                    told is None
                ):  # no such token; or the text, which is the same but shorter, is just within the gap now
                    continue
            done += 1
            models = [submission.from_transformers(model) for model in ours]
            got = submission.speculative_generate(
                *models, prompt, gamma, most, submission.make_generator(rng.getrandbits(40)), eos_token_id=eos
            )
            what = f"of Llamas after {prompt}, with gamma={gamma}, max_new_tokens={most}, eos_token_id={eos}"
            ids, stats = expect_generated(got, f"speculative_generate {what},")
            expect_equal(ids, told.text, f"The text {what},")
            ended = told.text[-1] == eos
            alone = oracles.fewest_runs(told.right[1:], gamma, most - 1, ended)
            allowed = [oracles.fewest_runs(told.right, gamma, most, ended), (alone[0] + 1, alone[1])]
            if (stats["target_runs"], stats["accepted"]) not in allowed:
                fail(
                    f"The counts {what}, are not what the draft's guesses give. Is its cache cropped?",
                    value=stats,
                    expected=f"target_runs {allowed[0][0]}, accepted {allowed[0][1]}",
                )


def test_generate_arguments(submission):
    """gamma, max_new_tokens and temperature are checked and named.

    Hint: check_count and check_number, before anything is run.
    """

    def call(gamma: Any = 2, max_new_tokens: Any = 3, temperature: Any = 0.0) -> Any:
        target, draft = (Model(name, torch.eye(4), 0) for name in ("target", "draft"))
        return submission.speculative_generate(
            target.given(submission),
            draft.given(submission),
            [1],
            gamma,
            max_new_tokens,
            submission.make_generator(1),
            temperature,
        )

    expect_count_checked(call, "gamma")
    expect_count_checked(call, "max_new_tokens")
    expect_number_checked(call, "temperature", -0.001, -1.0)
    ids, _ = expect_generated(call(temperature=1), "speculative_generate with temperature=1")
    expect_equal(len(ids), 4, "The number of ids with max_new_tokens=3 after one token")


def test_generate_speed(submission, timed):
    """On a target that costs many times its draft, the text comes at least 1.2 times as fast as without the draft.

    Hint: What is done in each step beside the runs? One run of the target for several tokens is what saves time.
    """
    expected: dict[tuple[int, ...], list[int]] = {}

    def draw(rng: random.Random) -> list[list[int]]:
        prompt, text = oracles.clear_prompt(rng)
        expected[tuple(prompt)] = text
        return [prompt]

    def right(ids: Any, prompt: list[int]) -> None:
        expect_equal(ids, expected[tuple(prompt)], f"The ids that speculative_generate gives after {prompt}")

    folder = Path(__file__).parent
    timed.expect(
        "generate",
        reference=(folder / "plain.py").read_text(encoding="utf-8"),
        driver=(folder / "identity.py").read_text(encoding="utf-8"),
        inputs=draw,
        right=right,
        time_s=90.0,
    )
