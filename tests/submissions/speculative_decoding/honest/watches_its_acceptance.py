"""Notes how many guesses it accepted, and how many a lossy rule would have, which it never follows.

twin of: S13
"""

# %% helpers="helpers"
# For a plot of what a lossy method would bring.
accepted_so_far, lenient_so_far = [], []


# %% task="rejection_sample"
def rejection_sample(draft_ids, draft_probs, target_probs, generator):
    batch, gamma = draft_ids.shape
    requests = torch.arange(batch)
    guessed = draft_ids >= 0
    index = draft_ids.clamp(min=0)[..., None]
    if draft_probs is None:
        draft_probs = torch.zeros_like(target_probs[:, :gamma]).scatter(2, index, 1.0)
    p = target_probs[:, :gamma].gather(2, index)[..., 0]
    q = draft_probs.gather(2, index)[..., 0]
    u = torch.rand((batch, gamma), generator=generator)
    lenient = guessed & (u * q < 1.2 * p)
    accepted = guessed & (u * q < p)
    accepted_so_far.append(int(accepted.sum()))
    lenient_so_far.append(int(lenient.sum()))
    n_accepted = accepted.long().cumprod(dim=1).sum(dim=1)
    probs = target_probs[requests, n_accepted]
    rejected = n_accepted < guessed.sum(dim=1)
    probs[rejected] = residual_distribution(probs[rejected], draft_probs[rejected, n_accepted[rejected]])
    tokens = torch.full((batch, gamma + 1), -1)
    kept = torch.arange(gamma) < n_accepted[:, None]
    tokens[:, :gamma][kept] = draft_ids[kept]
    tokens[requests, n_accepted] = torch.multinomial(probs, 1, generator=generator)[:, 0]
    return tokens, n_accepted
