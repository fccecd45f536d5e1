"""Arrays all the way: numpy for formulas and search, inverse distribution functions in fp64 for every draw."""

# %% helpers="helpers"
# Sums along the last axis, and a draw from each row of a matrix by its distribution function.
import numpy as np


def draw_rows(weights, generator):
    edges = weights.double().cumsum(-1)
    u = torch.rand(len(weights), 1, generator=generator, dtype=torch.float64) * edges[:, -1:]
    return torch.searchsorted(edges, u, right=True)[:, 0].clamp(max=weights.shape[1] - 1)


# %% task="expected_tokens"
def expected_tokens(alpha, gamma):
    check_number(alpha, "alpha", 0, 1)
    check_count(gamma, "gamma")
    return float(np.polyval(np.ones(gamma + 1), float(alpha)))


# %% task="speedup"
def speedup(alpha, gamma, c, v=1.0):
    check_number(c, "c", low=0.0)
    check_number(v, "v", low=1.0)
    return float(np.divide(expected_tokens(alpha, gamma), np.dot([gamma, 1], [c, v])))


# %% task="optimal_gamma"
def optimal_gamma(alpha, c, max_gamma, min_gamma=0):
    check_number(alpha, "alpha", 0, 1)
    check_number(c, "c")
    check_count(min_gamma, "min_gamma")
    check_count(max_gamma, "max_gamma", min_gamma)
    gammas = np.arange(max_gamma + 1)
    means = np.cumsum(np.power(float(alpha), gammas))
    return min_gamma + int(np.argmax((means / (c * gammas + 1))[min_gamma:]))


# %% task="residual_distribution"
def residual_distribution(p, q):
    if p.shape != q.shape:
        raise ValueError(f"shapes {p.shape} and {q.shape}")
    a, b = p.numpy(), q.numpy()
    missing = np.maximum(a - b, 0)
    total = missing.sum(-1, keepdims=True)
    result = np.divide(missing, total, out=a.copy(), where=np.broadcast_to(total > 0, a.shape))
    return torch.from_numpy(result)


# %% task="rejection_sample"
def rejection_sample(draft_ids, draft_probs, target_probs, generator):
    many, gamma = draft_ids.shape
    size = target_probs.shape[-1]
    lengths = (draft_ids != -1).sum(-1)
    padded = torch.zeros(many, gamma + 1, size)  # one row more: after a whole draft, nothing is taken from p
    if draft_probs is None:
        places = (draft_ids != -1).nonzero(as_tuple=True)
        padded[places[0], places[1], draft_ids[places]] = 1.0
    else:
        padded[:, :gamma] = draft_probs
    padded[torch.arange(gamma + 1) >= lengths[:, None]] = 0
    looked_up = draft_ids.clamp(min=0).unsqueeze(-1)
    ratio = target_probs[:, :-1].gather(-1, looked_up) / padded[:, :-1].gather(-1, looked_up)
    u = torch.rand(many, gamma, generator=generator, dtype=torch.float64)
    fails = torch.ones(many, gamma + 1, dtype=torch.bool)
    fails[:, :-1] = (u >= ratio[..., 0]) | (draft_ids == -1)
    n_accepted = fails.int().argmax(-1)
    row = torch.arange(many)
    missing = (target_probs[row, n_accepted] - padded[row, n_accepted]).clamp(min=0)
    last = draw_rows(missing, generator)
    columns = torch.arange(gamma + 1)
    wide = torch.cat([draft_ids, torch.full((many, 1), -1)], 1)
    tokens = torch.where(columns < n_accepted[:, None], wide, -1)
    tokens = torch.where(columns == n_accepted[:, None], last[:, None], tokens)
    return tokens, n_accepted


# %% task="PromptLookupProposer"
class PromptLookupProposer:
    def __init__(self, ngram_max, ngram_min=1):
        check_count(ngram_min, "ngram_min", 1)
        check_count(ngram_max, "ngram_max", ngram_min)
        self.lengths = np.arange(ngram_min, ngram_max + 1)[::-1].tolist()

    def propose(self, ids, k):
        check_count(k, "k")
        text = np.asarray(ids, dtype=np.int64)
        for n in self.lengths:
            if n >= len(text):
                continue
            windows = np.lib.stride_tricks.sliding_window_view(text[:-1], n)
            (places,) = np.nonzero((windows == text[-n:]).all(axis=1))
            if places.size:
                begin = int(places[-1]) + n
                return text[begin : begin + k].tolist()
        return []


# %% task="AdaptiveGamma"
class AdaptiveGamma:
    def __init__(self, c, max_gamma, min_gamma=1, initial_alpha=0.8, weight=10.0, decay=0.95):
        for name, value, low, high in (
            ("c", c, 0, np.inf),
            ("initial_alpha", initial_alpha, 0, 1),
            ("weight", weight, 1, np.inf),
            ("decay", decay, 0, 1),
        ):
            check_number(value, name, low, high)
        check_count(min_gamma, "min_gamma")
        check_count(max_gamma, "max_gamma", min_gamma)
        self.state = np.array([initial_alpha * weight, weight], dtype=np.float64)
        self.decay, self.rest = decay, (c, max_gamma, min_gamma)

    def update(self, drafted, accepted):
        check_count(drafted, "drafted")
        check_count(accepted, "accepted")
        if accepted > drafted:
            raise ValueError("accepted: more than drafted")
        if drafted:
            self.state = self.decay * self.state + [accepted, np.minimum(accepted + 1, drafted)]

    def alpha(self):
        return float(self.state[0] / self.state[1])

    def gamma(self):
        return optimal_gamma(self.alpha(), *self.rest)


# %% task="check_compatible"
def check_compatible(target, draft):
    one, two = target.get_vocab(), draft.get_vocab()
    pairs = set(one.items()).symmetric_difference(two.items())
    if pairs:
        raise ValueError(f"first difference: id {int(np.min([number for _, number in pairs]))}")
    if target.eos_token_id != draft.eos_token_id:
        raise ValueError("eos_token_id")


# %% task="speculative_generate"
def speculative_generate(target, draft, ids, gamma, max_new_tokens, generator, temperature=0.0, eos_token_id=None):
    check_count(gamma, "gamma")
    check_count(max_new_tokens, "max_new_tokens")
    check_number(temperature, "temperature", low=0.0)

    def to_probs(logits):
        z = logits.numpy().astype(np.float64)
        if temperature == 0:
            return (np.arange(z.shape[-1]) == z.argmax(-1)[..., None]).astype(np.float32)
        z = np.exp((z - z.max(-1, keepdims=True)) / temperature)
        return (z / z.sum(-1, keepdims=True)).astype(np.float32)

    counts = {"target_runs": 0, "drafted": 0, "accepted": 0}
    if max_new_tokens == 0:
        return list(ids), counts
    # The prompt alone first, as a server does it; its last row gives the first token.
    first = draw_rows(torch.from_numpy(to_probs(target.run(ids)[-1:])), generator)
    text = np.concatenate([np.asarray(ids), first.numpy()])
    counts["target_runs"] = 1
    while text[-1] != (-1 if eos_token_id is None else eos_token_id) and text.size < len(ids) + max_new_tokens:
        places = min(gamma, len(ids) + max_new_tokens - text.size - 1)
        q, guesses = [], np.empty(0, dtype=np.int64)
        for _ in range(places):
            unread = np.concatenate([text, guesses])[draft.length :]
            q.append(to_probs(draft.run(unread.tolist())[-1]))
            guesses = np.append(guesses, draw_rows(torch.from_numpy(q[-1])[None], generator).numpy())
        p = to_probs(target.run(np.concatenate([text[target.length :], guesses]).tolist()))[-places - 1 :]
        q = torch.from_numpy(np.stack(q)[None]) if places else None
        tokens, n = rejection_sample(torch.from_numpy(guesses)[None], q, torch.from_numpy(p)[None], generator)
        new = tokens[0].numpy()[: int(n) + 1]
        ends = np.flatnonzero(new == eos_token_id) if eos_token_id is not None else []
        new = new[: ends[0] + 1] if len(ends) else new
        text = np.concatenate([text, new])
        counts["target_runs"] += 1
        counts["drafted"] += places
        counts["accepted"] += min(int(n), new.size)
        target.crop(text.size - 1 if target.length >= text.size else target.length)
        draft.crop(text.size - 1 if draft.length >= text.size else draft.length)
    return [int(token) for token in text], counts
