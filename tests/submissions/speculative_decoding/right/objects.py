"""A class for everything: the economics, one request's verification, and an index of n-grams."""

# %% helpers="helpers"
# What a step costs and brings; one request on its way through the rules; a chain of n-gram indices.
from collections import deque
from fractions import Fraction
from itertools import accumulate, repeat
from operator import mul


class Step:
    def __init__(self, alpha, gamma):
        check_number(alpha, "alpha", 0, 1)
        check_count(gamma, "gamma")
        self.alpha, self.gamma = alpha, gamma

    @property
    def tokens(self):
        return float(math.fsum(accumulate(repeat(float(self.alpha), self.gamma), mul, initial=1.0)))

    def time(self, c, v):
        check_number(c, "c")
        check_number(v, "v", 1)
        return self.gamma * c + v


class Request:
    def __init__(self, guesses, q_rows, p_rows):
        self.guesses = [guess for guess in guesses.tolist() if guess >= 0]
        self.q_rows, self.p_rows = q_rows, p_rows
        self.kept = []

    def q(self, place):
        if self.q_rows is not None:
            return self.q_rows[place]
        certain = torch.zeros_like(self.p_rows[place])
        certain[self.guesses[place]] = 1
        return certain

    def verify(self, numbers):
        """The distribution of the token that ends the step."""
        for place, (guess, u) in enumerate(zip(self.guesses, numbers)):
            p, q = self.p_rows[place], self.q(place)
            if u * q[guess].item() >= p[guess].item():
                return residual_distribution(p, q)
            self.kept.append(guess)
        return self.p_rows[len(self.kept)]

    def row(self, last, width):
        return (self.kept + [last] + [-1] * width)[:width]


class Index:
    """The latest place after each n-gram of one length."""

    def __init__(self, ids, n):
        self.after = {tuple(ids[end - n : end]): end for end in range(n, len(ids))}

    def get(self, ngram):
        return self.after.get(tuple(ngram))


class Reader:
    """A model and the text that it must have read."""

    def __init__(self, model, temperature):
        self.model, self.temperature = model, temperature

    def after(self, text, last):
        """Distributions after each of the `last` last tokens of `text`, of which it has read none but perhaps the first."""
        logits = self.model.run(text[self.model.length :])[-last:]
        if not self.temperature:
            return torch.nn.functional.one_hot(logits.argmax(dim=1), logits.size(1)).to(logits.dtype)
        return (logits / self.temperature).softmax(dim=1)

    def back_to(self, text):
        self.model.crop(min(self.model.length, len(text) - 1))


class Session:
    """A text that grows by steps."""

    def __init__(self, target, draft, ids, wanted, eos, generator):
        self.target, self.draft, self.generator = target, draft, generator
        self.text, self.end, self.eos = list(ids), len(ids) + wanted, eos
        self.stats = dict.fromkeys(("target_runs", "drafted", "accepted"), 0)

    @property
    def wanted(self):
        return self.end - len(self.text)

    def step(self, gamma):
        guesses, rows = [], []
        for _ in range(min(gamma, self.wanted - 1)):
            rows.append(self.draft.after(self.text + guesses, 1))
            guesses.append(torch.multinomial(rows[-1], 1, generator=self.generator).item())
        ps = self.target.after(self.text + guesses, len(guesses) + 1)
        qs = torch.cat(rows).unsqueeze(0) if rows else ps.new_zeros(1, 0, ps.size(1))
        tokens, n_accepted = rejection_sample(
            torch.tensor(guesses, dtype=torch.int64).reshape(1, -1), qs, ps.unsqueeze(0), self.generator
        )
        self.take(tokens[0][tokens[0] >= 0].tolist(), n_accepted.item())
        self.stats["target_runs"] += 1
        self.stats["drafted"] += len(guesses)

    def take(self, new, accepted):
        if self.eos in new:
            new = new[: 1 + new.index(self.eos)]
            self.end = len(self.text) + len(new)
        self.stats["accepted"] += min(accepted, len(new))
        self.text.extend(new)
        for reader in (self.target, self.draft):
            reader.back_to(self.text)


# %% task="expected_tokens"
def expected_tokens(alpha, gamma):
    return Step(alpha, gamma).tokens


# %% task="speedup"
def speedup(alpha, gamma, c, v=1.0):
    step = Step(alpha, gamma)
    return step.tokens / step.time(c, v)


# %% task="optimal_gamma"
def optimal_gamma(alpha, c, max_gamma, min_gamma=0):
    check_count(min_gamma, "min_gamma")
    check_count(max_gamma, "max_gamma", min_gamma)
    speeds = {gamma: speedup(alpha, gamma, c) for gamma in range(min_gamma, max_gamma + 1)}
    return min(speeds, key=lambda gamma: (-speeds[gamma], gamma))


# %% task="residual_distribution"
def residual_distribution(p, q):
    if p.size() != q.size():
        raise ValueError("p and q must be alike")
    missing = torch.maximum(p - q, torch.zeros_like(p))
    share = torch.nn.functional.normalize(missing, p=1, dim=-1, eps=0.0)
    return share.where((p > q).any(-1, keepdim=True), p)


# %% task="rejection_sample"
def rejection_sample(draft_ids, draft_probs, target_probs, generator):
    many, gamma = draft_ids.shape
    numbers = torch.rand(many, gamma, generator=generator).tolist()
    requests = [
        Request(draft_ids[b], None if draft_probs is None else draft_probs[b], target_probs[b]) for b in range(many)
    ]
    ends = torch.stack([request.verify(mine) for request, mine in zip(requests, numbers)])
    last = torch.multinomial(ends, num_samples=1, generator=generator).flatten().tolist()
    rows = [request.row(token, gamma + 1) for request, token in zip(requests, last)]
    return torch.tensor(rows), torch.tensor([len(request.kept) for request in requests])


# %% task="PromptLookupProposer"
class PromptLookupProposer:
    def __init__(self, ngram_max, ngram_min=1):
        check_count(ngram_min, "ngram_min", 1)
        check_count(ngram_max, "ngram_max", ngram_min)
        self.ngram_max, self.ngram_min = ngram_max, ngram_min

    def propose(self, ids, k):
        check_count(k, "k")
        for n in range(min(self.ngram_max, len(ids)), self.ngram_min - 1, -1):
            end = Index(ids, n).get(ids[len(ids) - n :])
            if end is not None:
                return list(ids[end : end + k])
        return []


# %% task="AdaptiveGamma"
class AdaptiveGamma:
    def __init__(self, c, max_gamma, min_gamma=1, initial_alpha=0.8, weight=10.0, decay=0.95):
        check_number(c, "c")
        check_count(min_gamma, "min_gamma")
        check_count(max_gamma, "max_gamma", min_gamma)
        check_number(initial_alpha, "initial_alpha", 0, 1)
        check_number(weight, "weight", 1)
        check_number(decay, "decay", 0, 1)
        self._c, self._range, self._decay = c, (max_gamma, min_gamma), Fraction(decay)
        self._history = deque([(Fraction(initial_alpha) * Fraction(weight), Fraction(weight))], maxlen=1)

    def update(self, drafted, accepted):
        check_count(drafted, "drafted")
        check_count(accepted, "accepted")
        if not accepted <= drafted:
            raise ValueError("accepted and drafted do not agree")
        if drafted:
            hits, trials = self._history[0]
            rejected = int(accepted != drafted)
            self._history.append((self._decay * hits + accepted, self._decay * trials + accepted + rejected))

    def alpha(self):
        hits, trials = self._history[0]
        return float(hits / trials)

    def gamma(self):
        return optimal_gamma(self.alpha(), self._c, *self._range)


# %% task="check_compatible"
def check_compatible(target, draft):
    names = [{token_id: token for token, token_id in each.get_vocab().items()} for each in (target, draft)]
    wrong = {token_id for token_id in names[0].keys() | names[1].keys() if names[0].get(token_id) != names[1].get(token_id)}
    if wrong:
        raise ValueError(f"id {min(wrong)} of {len(wrong)}")
    if len({target.eos_token_id, draft.eos_token_id}) == 2:
        raise ValueError("eos_token_id")


# %% task="speculative_generate"
def speculative_generate(target, draft, ids, gamma, max_new_tokens, generator, temperature=0.0, eos_token_id=None):
    check_count(gamma, "gamma")
    check_count(max_new_tokens, "max_new_tokens")
    check_number(temperature, "temperature")
    readers = Reader(target, temperature), Reader(draft, temperature)
    session = Session(*readers, ids, max_new_tokens, eos_token_id, generator)
    while session.wanted:
        session.step(gamma)
    return session.text, session.stats
