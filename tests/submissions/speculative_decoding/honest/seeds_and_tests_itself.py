"""Seeds torch and tries its sampler on random tables when it is loaded; draws with bernoulli and exponential races.

twin of: D5 V8
"""

# %% helpers="helpers"
# A race of exponential clocks: the token whose clock rings first is drawn.
import random

torch.manual_seed(0)
random.seed(0)


def race(weights, generator):
    clocks = torch.empty_like(weights).exponential_(generator=generator)
    return (clocks / weights).argmin(-1)


assert race(torch.tensor([[0.0, 1.0, 0.0]]), make_generator(1)).item() == 1


# %% task="rejection_sample"
def rejection_sample(draft_ids, draft_probs, target_probs, generator):
    batch, gamma = draft_ids.shape
    rows = torch.arange(batch)
    alive, ends = torch.ones(batch, dtype=torch.bool), target_probs[:, 0].clone()
    n_accepted = torch.zeros(batch, dtype=torch.int64)
    for place in range(gamma):
        guess = draft_ids[:, place].clamp(min=0)
        alive &= draft_ids[:, place] >= 0
        q = torch.eye(target_probs.shape[2])[guess] if draft_probs is None else draft_probs[:, place]
        p = target_probs[:, place]
        heads = torch.rand(batch, generator=generator) * q[rows, guess] < p[rows, guess]
        rejected = alive & ~heads
        ends[rejected] = (p - q).clamp(min=0)[rejected]
        alive &= heads
        ends[alive] = target_probs[alive, place + 1]
        n_accepted += alive
    tokens = torch.full((batch, gamma + 1), -1)
    keep = torch.arange(gamma) < n_accepted[:, None]
    tokens[:, :gamma][keep] = draft_ids[keep]
    tokens[rows, n_accepted] = race(ends, generator)
    return tokens, n_accepted
