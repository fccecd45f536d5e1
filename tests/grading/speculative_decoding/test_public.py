"""The public checks of `speculative_decoding`: the examples of the handout. Released with the assignment."""

from __future__ import annotations

from typing import Any

import torch

from autograder.checks import CheckFailed, SubmissionRaised, expect_close, expect_equal, expect_raises, fail, show


def expect_tensor(value: Any, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> None:
    """`value` must be a tensor of this shape and dtype."""
    if type(value) is not torch.Tensor or tuple(value.shape) != shape or value.dtype != dtype:
        fail(f"{what} is not of the right kind.", value=value, expected=f"tensor of shape {shape}, {dtype}")


def expect_pair(value: Any, what: str) -> tuple[Any, Any]:
    """`value` must be two things, tokens and n_accepted."""
    if type(value) not in (tuple, list) or len(value) != 2:
        fail(f"{what} must be a pair (tokens, n_accepted).", value=value, expected="a tuple of two tensors")
    return value[0], value[1]


def expect_built(
    submission: Any, value: Any, expected: Any, what: str, *earlier: tuple[str, tuple[Any, ...], Any]
) -> None:
    """`value` must be `expected`; if not, the first of `earlier` (calls that it may stand on) that is wrong too is told."""

    def expect(value: Any, expected: Any, what: str) -> None:
        (expect_close if type(expected) is float else expect_equal)(value, expected, what)

    try:
        expect(value, expected, what)
    except CheckFailed as wrong:
        for name, arguments, right in earlier:
            try:
                expect(getattr(submission, name)(*arguments), right, name)
            except CheckFailed:
                message = f"{wrong.message} Mend {name} first: {name}{arguments} is wrong too."
                raise CheckFailed(message, wrong.value, wrong.expected) from None
            except SubmissionRaised:
                continue
        raise


# -------------------------------------------------------------------------------------- expected_tokens, speedup, gamma


def test_tokens_examples(submission):
    """The mean number of tokens per step is that of the handout, also at alpha = 0 and alpha = 1.

    Hint: Write the sum down for gamma = 1 and gamma = 2. How many terms has it?
    """
    for alpha, gamma, expected in (
        (0.8, 4, 3.3616),
        (0.5, 1, 1.5),
        (0.8, 0, 1.0),
        (0.8, 5, 3.68928),
        (0.0, 5, 1.0),
        (1.0, 5, 6.0),
        (1, 3, 4.0),
    ):
        what = f"expected_tokens({alpha}, {gamma})"
        expect_close(submission.expected_tokens(alpha, gamma), expected, what)


def test_speedup_examples(submission):
    """The speed-up divides the tokens of a step by what the step costs: gamma draft runs and one checking run.

    Hint: Compute the cost of one step first. How many runs of the draft are in it?
    """
    for arguments, tokens, cost in (
        ((0.8, 4, 0.1), 3.3616, 1.4),
        ((0.8, 4, 0.1, 1.3), 3.3616, 1.7),
        ((0.8, 5, 0.4), 3.68928, 3.0),
        ((0.8, 0, 0.4), 1.0, 1.0),
        ((0, 2, 0.5), 1.0, 2.0),
    ):
        value, earlier = submission.speedup(*arguments), ("expected_tokens", arguments[:2], tokens)
        expect_built(submission, value, tokens / cost, f"speedup{arguments}", earlier)


def test_gamma_examples(submission):
    """The best draft length has the largest speed-up; it may be 0, and it may be max_gamma.

    Hint: Print speedup(alpha, gamma, c) for each gamma that is allowed.
    """
    for arguments, expected in (
        ((0.8, 0.05, 20), 8),
        ((0.8, 0.1, 20), 6),
        ((0.8, 0.4, 20), 2),
        ((0.8, 0.1, 4), 4),
        ((0.3, 0.4, 20), 0),
        ((0.3, 0.4, 20, 1), 1),
        ((1.0, 0.1, 7), 7),
    ):
        value, earlier = submission.optimal_gamma(*arguments), ("speedup", (0.8, 4, 0.1), 3.3616 / 1.4)
        expect_built(submission, value, expected, f"optimal_gamma{arguments}", earlier)


# ---------------------------------------------------------------------------------------------- residual_distribution


def test_residual_examples(submission):
    """What is drawn from after a rejection is what the draft gave too little of, and sums to 1.

    Hint: Where q is larger than p, nothing is missing. Divide by what is left.
    """
    for p, q, expected in (
        ([0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [1.0, 0.0, 0.0]),
        ([0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4], [0.8, 0.2, 0.0, 0.0]),
        ([0.25, 0.75], [0.25, 0.75], [0.25, 0.75]),
        ([0.5 + 2**-22, 0.5 - 2**-22], [0.5, 0.5], [1.0, 0.0]),
    ):
        got = submission.residual_distribution(torch.tensor(p), torch.tensor(q))
        what = f"residual_distribution of p = {p} and q = {q}"
        expect_tensor(got, (len(p),), torch.float32, what)
        if not torch.allclose(got, torch.tensor(expected), atol=1e-5):
            fail(f"{what} is wrong.", value=got.tolist(), expected=show(expected))


# --------------------------------------------------------------------------------------------------- rejection_sample


def certain(tokens: list[list[int]], size: int) -> torch.Tensor:
    """Distributions that are certain of `tokens`."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), size).float()


def test_rejection_forced(submission):
    """A target that is certain accepts exactly its own tokens, up to the first other guess, and adds its own token.

    Hint: Follow one request by hand. From which row of target_probs does its last token come?
    """
    wanted = [[3, 1, 0, 2]] * 5 + [[0, 1, 2, 3]]
    guesses = [[3, 1, 0], [2, 1, 0], [3, 0, 0], [3, 1, 1], [3, 1, -1], [-1, -1, -1]]
    expected = [[3, 1, 0, 2], [3, -1, -1, -1], [3, 1, -1, -1], [3, 1, 0, -1], [3, 1, 0, -1], [0, -1, -1, -1]]
    q = torch.full((6, 3, 4), 0.25)
    for probs, name in ((q, "an undecided draft"), (None, "draft_probs=None")):
        got = submission.rejection_sample(
            torch.tensor(guesses), probs, certain(wanted, 4), submission.make_generator(1)
        )
        tokens, n_accepted = expect_pair(got, f"The result with {name}")
        expect_tensor(tokens, (6, 4), torch.int64, f"tokens with {name}")
        expect_tensor(n_accepted, (6,), torch.int64, f"n_accepted with {name}")
        for row, (guess, right, count) in enumerate(zip(guesses, expected, [3, 0, 1, 2, 2, 0], strict=True)):
            what = f"for the guesses {guess}, where the target is certain of {wanted[row]} ({name}),"
            expect_equal(tokens[row].tolist(), right, f"The row of tokens {what}")
            expect_equal(int(n_accepted[row]), count, f"The number of accepted guesses {what}")


def test_rejection_first_token(submission):
    """Of 20,000 requests with one guess each, the first tokens have the shares that the target gives them.

    Hint: What is the chance that a token comes out? Add up: guessed and accepted, or drawn after a rejection.
    """
    # A share strays by 0.025 with probability at most 2 exp(-2 * 20,000 * 0.025^2) = 3e-11 (Hoeffding).
    many, target, draft = 20_000, [0.5, 0.3, 0.15, 0.05], [0.2, 0.2, 0.2, 0.4]
    p, q = torch.tensor(target), torch.tensor(draft)
    guesses = torch.multinomial(q, many, replacement=True, generator=torch.Generator().manual_seed(5))[:, None]
    got = submission.rejection_sample(
        guesses, q.repeat(many, 1, 1), p.repeat(many, 2, 1), submission.make_generator(11)
    )
    tokens, n_accepted = expect_pair(got, "The result for 20,000 requests")
    expect_tensor(tokens, (many, 2), torch.int64, "tokens for 20,000 requests")
    expect_tensor(n_accepted, (many,), torch.int64, "n_accepted for 20,000 requests")
    for token in range(4):
        share, wanted = (tokens[:, 0] == token).double().mean().item(), target[token]
        if abs(share - wanted) > 0.025:
            what = f"The share of token {token} among the first tokens, with p = {target} and q = {draft},"
            fail(f"{what} is not the target's.", value=round(share, 3), expected=f"{wanted:.3g}, give or take 0.025")
    share = (n_accepted == 1).double().mean().item()
    if abs(share - 0.6) > 0.025:
        what = "The share of accepted guesses"
        fail(f"{what} is wrong.", value=round(share, 3), expected="0.6, give or take 0.025")


def test_rejection_two_guesses(submission):
    """Of 20,000 requests with two guesses each, the numbers of accepted guesses and the tokens have the shares that they must.

    Hint: Is every u a new one? From which rows come p and q of a guess that is rejected?
    """
    # Nine shares, each as in the check before: false alarms at most 3e-10.
    many = 20_000
    p = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.2, 0.4], [0.1, 0.1, 0.8]])
    q = torch.tensor([[0.2, 0.2, 0.6], [0.3, 0.6, 0.1]])
    source = torch.Generator().manual_seed(6)
    guesses = torch.multinomial(q, many, replacement=True, generator=source).T.contiguous()
    given = (guesses, q.repeat(many, 1, 1), p.repeat(many, 1, 1), submission.make_generator(12))
    tokens, n_accepted = expect_pair(submission.rejection_sample(*given), "The result for 20,000 requests")
    expect_tensor(tokens, (many, 3), torch.int64, "tokens for 20,000 requests")
    expect_tensor(n_accepted, (many,), torch.int64, "n_accepted for 20,000 requests")
    wanted = {f"requests with {k} accepted guesses": (n_accepted == k, (0.4, 0.24, 0.36)[k]) for k in range(3)}
    for token in range(3):  # a second token is drawn where the first guess was accepted (0.6), a third where both were
        wanted[f"requests whose second token is {token}"] = (tokens[:, 1] == token, (0.24, 0.12, 0.24)[token])
        wanted[f"requests whose third token is {token}"] = (tokens[:, 2] == token, (0.036, 0.036, 0.288)[token])
    for name, (are, right) in wanted.items():
        if abs(share := are.double().mean().item() - right) > 0.025:
            what = f"The share of {name}, with the p and q of this check,"
            fail(f"{what} is wrong.", value=round(right + share, 3), expected=f"{right:.3g}, give or take 0.025")


# ---------------------------------------------------------------------------- PromptLookupProposer, AdaptiveGamma, vocab


def test_lookup_examples(submission):
    """The guess is what followed the longest, and of these the latest, earlier place of the last tokens.

    Hint: Write down all places where the last token stands before, then those where the last two do.
    """
    proposer = submission.PromptLookupProposer(ngram_max=3, ngram_min=1)
    for ids, k, expected in (
        ([1, 2, 3, 4, 1, 2, 3], 3, [4, 1, 2]),
        ([5, 1, 7, 6, 1, 8, 2, 1], 2, [8, 2]),
        ([9, 1, 2, 8, 2, 3, 1, 2], 2, [8, 2]),
        ([4, 4, 4], 5, [4]),
        ([1, 2, 3], 3, []),
        ([1, 1], 0, []),
        ([], 3, []),
    ):
        expect_equal(proposer.propose(ids, k), expected, f"The guess of up to {k} tokens after {ids}")


def test_adaptive_example(submission):
    """The estimate counts the guesses that were looked at, and the draft length follows it.

    Hint: Of 4 guesses with 1 accepted, which were looked at? Decay first, then add.
    """
    adaptive = submission.AdaptiveGamma(c=0.1, max_gamma=8, initial_alpha=0.8, weight=10.0, decay=0.9)
    for step, alpha, gamma in (
        (None, 0.8, 6),
        ((4, 1), 8.2 / 11, 5),
        ((5, 5), 12.38 / 14.9, 7),
        ((0, 0), 12.38 / 14.9, 7),
    ):
        if step:
            adaptive.update(*step)
        after = f"after update{step}" if step else "before the first step"
        expect_close(adaptive.alpha(), alpha, f"The estimate {after}")
        earlier = ("optimal_gamma", (alpha, 0.1, 8, 1), gamma)
        expect_built(submission, adaptive.gamma(), gamma, f"The draft length {after}", earlier)


def test_compatible_examples(submission):
    """Tokenizers are compatible if the same token has the same id in both, whatever the order of the entries.

    Hint: Look at the whole entries, token and id together.
    """
    first = submission.Tokenizer({"a": 0, "b": 1}, 0)
    expect_equal(
        submission.check_compatible(first, submission.Tokenizer({"b": 1, "a": 0}, 0)), None, "The answer for equal ones"
    )
    for vocab, smallest in (({"a": 1, "b": 0}, "0"), ({"a": 0, "b": 1, "c": 2}, "2"), ({"a": 0, "c": 1}, "1")):
        other = submission.Tokenizer(vocab, 0)
        what = f"check_compatible of {{'a': 0, 'b': 1}} and {vocab}"
        expect_raises(
            "ValueError", lambda other=other: submission.check_compatible(first, other), what, naming=smallest
        )


# ------------------------------------------------------------------------------------------------ speculative_generate


class Model:
    """A language model of the checks. It notes what it is asked, and refuses what no model can do.

    `table` has a row of logits for each state, fp32 [states, V]. After a token the state is
    (memory * state before + token) % states: with memory 0 only the last token counts, with more the whole text does.
    """

    def __init__(self, name: str, table: torch.Tensor, memory: int = 0, log: list[Any] | None = None) -> None:
        self.name, self.table, self.memory = name, table, memory
        self.read: list[int] = []
        """What is in the cache."""
        self.runs = 0
        self.log = [] if log is None else log
        """Of each run the model, what was in the cache before, and what it was given; two models may have the same list."""
        self._states = [0]

    def states(self, ids: list[int], state: int = 0) -> list[int]:
        """The state after each of `ids`."""
        found = []
        for token in ids:
            state = (self.memory * state + token) % len(self.table)
            found.append(state)
        return found

    def forward(self, ids: Any) -> torch.Tensor:
        """What the submission's `run` calls."""
        if type(ids) is not list or not ids or any(type(token) is not int for token in ids):
            fail(f"The {self.name} was run on something that is no list of tokens.", value=ids)
        if not all(0 <= token < self.table.shape[1] for token in ids):
            fail(f"The {self.name} was run on tokens that it does not know.", value=ids)
        self.runs += 1
        self.log.append((self, list(self.read), ids))
        found = self.states(ids, self._states[-1])
        self.read += ids
        self._states += found
        return self.table[found]

    def crop(self, change: Any) -> None:
        """What the submission's `crop` calls: minus the number of tokens that are removed."""
        if type(change) is not int or not -len(self.read) <= change <= 0:
            fail(f"The cache of the {self.name} cannot be cropped like that.", value=change)
        keep = len(self.read) + change
        del self.read[keep:], self._states[keep + 1 :]

    def given(self, submission: Any) -> Any:
        """The model as the submission gets it."""
        return submission.CachedModel(self.forward, self.crop)


def expect_generated(value: Any, what: str) -> tuple[list[int], dict[str, int]]:
    """`value` must be a list of tokens and the three counts."""
    if type(value) not in (tuple, list) or len(value) != 2:
        fail(f"{what} must be a pair (ids, stats).", value=value, expected="a list of ints and a dict")
    ids, stats = value
    if type(ids) is not list or any(type(token) is not int for token in ids):
        fail(f"The ids of {what} must be a list of ints.", value=ids)
    names = {"target_runs", "drafted", "accepted"}
    if type(stats) is not dict or stats.keys() != names or any(type(count) is not int for count in stats.values()):
        fail(f"The stats of {what} must be a dict of three ints.", value=stats, expected=str(sorted(names)))
    return ids, stats


def counting(name: str, wrong_after: int | None = None) -> Model:
    """A model of ten tokens that counts, but says 0 after `wrong_after`."""
    table = torch.eye(10).roll(1, 1) * 4
    if wrong_after is not None:
        table[wrong_after] = torch.eye(10)[0] * 4
    return Model(name, table)


def test_generate_example(submission):
    """The example of the handout comes out: the text, the counts, and as few runs of both models.

    Hint: Print what each model is given in each step, and compare with the table.
    """
    for gamma, most in ((3, 3), (0, 8)):
        target, draft = counting("target"), counting("draft", wrong_after=6)
        got = submission.speculative_generate(
            target.given(submission), draft.given(submission), [1], gamma, 8, submission.make_generator(3)
        )
        what = f"speculative_generate for the example, with gamma={gamma},"
        ids, stats = expect_generated(got, what)
        expect_equal(ids, [1, 2, 3, 4, 5, 6, 7, 8, 9], f"The ids of {what}")
        expect_equal(stats["target_runs"], target.runs, f"The target_runs of {what}")
        expect_equal(stats["accepted"], 8 - target.runs, f"The number of accepted guesses of {what}")
        if target.runs > most + 1:
            fail(f"The target is run too often by {what}.", value=target.runs, expected=f"{most} or {most + 1} runs")
        if draft.runs > (stats["drafted"] + 1 if gamma else 0):
            fail(f"The draft is run too often by {what}.", value=draft.runs, expected="once for each guess")


def test_generate_ends(submission):
    """The text ends after max_new_tokens, or with eos_token_id wherever that comes.

    Hint: Look for the token among all that a step has brought, and cut behind it.
    """
    for most, eos, expected in (
        (0, None, [2]),
        (1, None, [2, 3]),
        (6, None, [2, 3, 4, 5, 6, 7, 8]),
        (6, 5, [2, 3, 4, 5]),
        (6, 3, [2, 3]),
        (6, 2, [2, 3, 4, 5, 6, 7, 8]),
    ):
        target, draft = counting("target"), counting("draft")
        got = submission.speculative_generate(
            target.given(submission), draft.given(submission), [2], 4, most, submission.make_generator(3), 0.0, eos
        )
        what = (
            f"speculative_generate after [2], where the target counts, with max_new_tokens={most}, eos_token_id={eos},"
        )
        expect_equal(expect_generated(got, what)[0], expected, f"The ids of {what}")
