"""All requests at once, one place of the draft after the other, with a mask of those still accepted; a few shortcuts."""


# %% task="expected_tokens"
def expected_tokens(alpha, gamma):
    check_number(alpha, "alpha", 0, 1)
    check_count(gamma, "gamma")
    mean = 1.0
    for _ in range(gamma):
        mean = 1.0 + alpha * mean
    return mean


# %% task="optimal_gamma"
def optimal_gamma(alpha, c, max_gamma, min_gamma=0):
    check_count(min_gamma, "min_gamma")
    check_count(max_gamma, "max_gamma", min_gamma)
    return sorted(range(min_gamma, max_gamma + 1), key=lambda gamma: speedup(alpha, gamma, c), reverse=True)[0]


# %% task="rejection_sample"
def rejection_sample(draft_ids, draft_probs, target_probs, generator):
    batch, gamma = draft_ids.shape
    running = torch.ones(batch, dtype=torch.bool)
    n_accepted = torch.zeros(batch, dtype=torch.long)
    tokens = torch.full((batch, gamma + 1), -1, dtype=torch.long)
    ends = target_probs[:, 0].clone()
    for place in range(gamma):
        guess = draft_ids[:, place]
        running = running & (guess >= 0)
        p = target_probs[:, place]
        if draft_probs is None:
            q = torch.nn.functional.one_hot(guess.clamp(min=0), p.shape[1]).to(p.dtype)
        else:
            q = draft_probs[:, place]
        at = guess.clamp(min=0)[:, None]
        chance = (p.gather(1, at) / q.gather(1, at).clamp(min=1e-30)).clamp(max=1)[:, 0]
        heads = torch.bernoulli(chance, generator=generator).bool()
        good, bad = running & heads, running & ~heads
        tokens[good, place] = guess[good]
        n_accepted += good
        ends[bad] = residual_distribution(p, q)[bad]
        ends[good] = target_probs[good, place + 1]
        running = good
    last = torch.multinomial(ends, 1, generator=generator)
    return tokens.scatter(1, n_accepted[:, None], last), n_accepted


# %% task="PromptLookupProposer"
class PromptLookupProposer:
    def __init__(self, ngram_max, ngram_min=1):
        check_count(ngram_min, "ngram_min", 1)
        check_count(ngram_max, "ngram_max", ngram_min)
        self.ngram_max, self.ngram_min = ngram_max, ngram_min

    def propose(self, ids, k):
        check_count(k, "k")
        best = max(
            (n, end)
            for n in (0, *range(self.ngram_min, self.ngram_max + 1))
            for end in range(n, len(ids) or 1)
            if ids[end - n : end] == ids[len(ids) - n :]
        ) if len(ids) > 1 else (0, 0)
        return ids[best[1] : best[1] + k] if best[0] else []


# %% task="check_compatible"
def check_compatible(target, draft):
    one, two = (sorted((token_id, token) for token, token_id in each.vocab.items()) for each in (target, draft))
    for mine, yours in zip(one, two):
        if mine != yours:
            raise ValueError(f"differ from id {min(mine[0], yours[0])} on")
    if len(one) != len(two):
        raise ValueError(f"id {max(one, two, key=len)[min(len(one), len(two))][0]} is in one only")
    if target.eos_token_id != draft.eos_token_id:
        raise ValueError("eos_token_id differs")
