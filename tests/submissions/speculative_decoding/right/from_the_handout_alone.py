"""Written by a student who had the handout and nothing else. Stops guessing at a guessed end of text."""


# %% helpers="helpers"
def _distribution(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """The distributions that rows of logits mean at a temperature; 0 is greedy."""
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    z = logits.double()
    z = z - z.amax(-1, keepdim=True)  # first: z / temperature may be infinite, and 0 / temperature is 0
    return torch.softmax(z / temperature, -1).float()


# %% task="expected_tokens"
def expected_tokens(alpha: float, gamma: int) -> float:
    check_number(alpha, "alpha", 0.0, 1.0)
    check_count(gamma, "gamma")
    return math.fsum(float(alpha) ** i for i in range(gamma + 1))


# %% task="speedup"
def speedup(alpha: float, gamma: int, c: float, v: float = 1.0) -> float:
    check_number(c, "c")
    check_number(v, "v", 1.0)
    tokens = expected_tokens(alpha, gamma)
    return tokens / (c * gamma + v) if gamma else 1.0


# %% task="optimal_gamma"
def optimal_gamma(alpha: float, c: float, max_gamma: int, min_gamma: int = 0) -> int:
    check_count(min_gamma, "min_gamma")
    check_count(max_gamma, "max_gamma", min_gamma)
    return max(range(min_gamma, max_gamma + 1), key=lambda gamma: speedup(alpha, gamma, c))  # the first of equal ones


# %% task="residual_distribution"
def residual_distribution(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    if p.shape != q.shape:
        raise ValueError(f"p and q must have the same shape, not {tuple(p.shape)} and {tuple(q.shape)}")
    missing = (p - q).clamp(min=0)
    total = missing.sum(-1, keepdim=True)
    return torch.where(total > 0, missing / total, p)


# %% task="rejection_sample"
def rejection_sample(
    draft_ids: torch.Tensor,
    draft_probs: torch.Tensor | None,
    target_probs: torch.Tensor,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, gamma = draft_ids.shape
    vocabulary, device = target_probs.shape[2], target_probs.device
    guessed = draft_ids >= 0
    x = draft_ids.clamp(min=0)
    if draft_probs is None:
        draft_probs = torch.nn.functional.one_hot(x, vocabulary).to(target_probs.dtype)
    p_x = target_probs[:, :gamma].gather(2, x[..., None])[..., 0]
    q_x = draft_probs.gather(2, x[..., None])[..., 0]
    u = torch.rand(batch, gamma, generator=generator, device=device)
    accepted = guessed & (u < p_x / q_x)
    n_accepted = accepted.long().cumprod(1).sum(1)

    rows = torch.arange(batch, device=device)
    last = target_probs[rows, n_accepted]
    rejected = (n_accepted < guessed.sum(1)).nonzero()[:, 0]
    if len(rejected):
        last[rejected] = residual_distribution(last[rejected], draft_probs[rejected, n_accepted[rejected]])
    token = torch.multinomial(last, 1, generator=generator)

    tokens = torch.full((batch, gamma + 1), -1, dtype=torch.int64, device=device)
    keep = torch.arange(gamma, device=device) < n_accepted[:, None]
    tokens[:, :gamma] = torch.where(keep, draft_ids, -1)
    return tokens.scatter(1, n_accepted[:, None], token), n_accepted


# %% task="PromptLookupProposer"
class PromptLookupProposer:
    def __init__(self, ngram_max: int, ngram_min: int = 1) -> None:
        check_count(ngram_min, "ngram_min", 1)
        check_count(ngram_max, "ngram_max", ngram_min)
        self.ngram_max, self.ngram_min = ngram_max, ngram_min

    def propose(self, ids: Sequence[int], k: int) -> list[int]:
        check_count(k, "k")
        ids = list(ids)
        best, place = self.ngram_min - 1, None
        for end in range(len(ids) - 1, 0, -1):  # the n-gram that ends before `end`, the latest first
            n = 0
            while n < min(self.ngram_max, end) and ids[end - 1 - n] == ids[-1 - n]:
                n += 1
            if n > best:
                best, place = n, end
        return [] if place is None else ids[place : place + k]


# %% task="AdaptiveGamma"
class AdaptiveGamma:
    def __init__(
        self,
        c: float,
        max_gamma: int,
        min_gamma: int = 1,
        initial_alpha: float = 0.8,
        weight: float = 10.0,
        decay: float = 0.95,
    ) -> None:
        check_number(c, "c")
        check_count(min_gamma, "min_gamma")
        check_count(max_gamma, "max_gamma", min_gamma)
        check_number(initial_alpha, "initial_alpha", 0.0, 1.0)
        check_number(weight, "weight", 1.0)
        check_number(decay, "decay", 0.0, 1.0)
        self.c, self.min_gamma, self.max_gamma, self.decay = c, min_gamma, max_gamma, decay
        self.accepted, self.trials = initial_alpha * weight, float(weight)

    def update(self, drafted: int, accepted: int) -> None:
        check_count(drafted, "drafted")
        check_count(accepted, "accepted")
        if accepted > drafted:
            raise ValueError(f"accepted must be at most drafted ({drafted}), not {accepted}")
        if drafted:
            self.accepted = self.decay * self.accepted + accepted
            self.trials = self.decay * self.trials + min(accepted + 1, drafted)

    def alpha(self) -> float:
        return self.accepted / self.trials

    def gamma(self) -> int:
        return optimal_gamma(self.alpha(), self.c, self.max_gamma, self.min_gamma)


# %% task="check_compatible"
def check_compatible(target: Tokenizer, draft: Tokenizer) -> None:
    first, second = ({i: token for token, i in each.get_vocab().items()} for each in (target, draft))
    differing = [i for i in first.keys() | second.keys() if first.get(i) != second.get(i)]
    if differing:
        raise ValueError(f"the vocabularies differ at token id {min(differing)}")
    if target.eos_token_id != draft.eos_token_id:
        raise ValueError(f"eos_token_id differs: {target.eos_token_id} and {draft.eos_token_id}")


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
    check_count(gamma, "gamma")
    check_count(max_new_tokens, "max_new_tokens")
    check_number(temperature, "temperature")
    text, stats = [int(token) for token in ids], {"target_runs": 0, "drafted": 0, "accepted": 0}
    wanted = max_new_tokens
    while wanted > 0:
        known, q = list(text), []
        for _ in range(min(gamma, wanted - 1)):
            q.append(_distribution(draft.run(known[draft.length :])[-1], temperature))
            known.append(int(torch.multinomial(q[-1], 1, generator=generator)))
            if eos_token_id is not None and known[-1] == eos_token_id:
                break  # no guess after the end can be used
        n = len(q)
        p = _distribution(target.run(known[target.length :])[-n - 1 :], temperature)
        guesses = torch.tensor(known[len(text) :], dtype=torch.int64)[None]
        tokens, n_accepted = rejection_sample(guesses, torch.stack(q)[None] if q else None, p[None], generator)
        accepted = int(n_accepted[0])
        new = tokens[0, : accepted + 1].tolist()
        ended = eos_token_id is not None and eos_token_id in new
        if ended:
            new = new[: new.index(eos_token_id) + 1]
        stats["target_runs"] += 1
        stats["drafted"] += n
        stats["accepted"] += min(accepted, len(new))
        text += new
        wanted = 0 if ended else wanted - len(new)
        for model in (target, draft):
            model.crop(min(model.length, len(text) - 1))  # the last token has been read by none
    return text, stats
