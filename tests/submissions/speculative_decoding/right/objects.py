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
