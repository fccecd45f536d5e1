"""Plain Python loops over lists, one request after the other; tokens are drawn by walking along the distribution."""

# %% helpers="helpers"
# One number at a time.


def uniform(generator):
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def pick(weights, generator):
    """A token, drawn in proportion to its weight."""
    left = uniform(generator) * sum(weights)
    chosen = None
    for token, weight in enumerate(weights):
        if weight > 0:
            chosen = token
            if left < weight:
                break
            left -= weight
    return chosen


# %% task="expected_tokens"
def expected_tokens(alpha, gamma):
    check_number(alpha, "alpha", 0, 1)
    check_count(gamma, "gamma")
    if alpha == 1:
        return float(gamma + 1)
    return (1 - float(alpha) ** (gamma + 1)) / (1 - alpha)


# %% task="speedup"
def speedup(alpha, gamma, c, v=1.0):
    tokens = expected_tokens(alpha, gamma)
    check_number(c, "c")
    check_number(v, "v", 1)
    time = v
    for _ in range(gamma):
        time += c
    return tokens / time


# %% task="optimal_gamma"
def optimal_gamma(alpha, c, max_gamma, min_gamma=0):
    check_count(max_gamma, "max_gamma")
    check_count(min_gamma, "min_gamma")
    if max_gamma < min_gamma:
        raise ValueError("max_gamma is less than min_gamma")
    best, fastest = None, -1.0
    for gamma in range(min_gamma, max_gamma + 1):
        now = speedup(alpha, gamma, c)
        if now > fastest:
            best, fastest = gamma, now
    return best


# %% task="residual_distribution"
def residual_distribution(p, q):
    if list(p.shape) != list(q.shape):
        raise ValueError("p and q are of different shapes")
    result = p.clone()
    rows, others = result.view(-1, p.shape[-1]), q.reshape(-1, p.shape[-1])
    for row, other in zip(rows, others):
        missing = torch.relu(row - other)
        if missing.sum() > 0:
            row.copy_(missing / missing.sum())
    return result


# %% task="rejection_sample"
def rejection_sample(draft_ids, draft_probs, target_probs, generator):
    size = target_probs.shape[2]
    ps = target_probs.tolist()
    qs = draft_probs.tolist() if draft_probs is not None else None
    rows, counts = [], []
    for b, guesses in enumerate(draft_ids.tolist()):
        row = []
        for i, guess in enumerate(guesses):
            if guess == -1:
                continue
            p = ps[b][i]
            q = qs[b][i] if qs else [1.0 if token == guess else 0.0 for token in range(size)]
            if uniform(generator) < p[guess] / q[guess]:
                row.append(guess)
            else:
                counts.append(len(row))
                row.append(pick([max(0.0, p[token] - q[token]) for token in range(size)], generator))
                break
        else:
            counts.append(len(row))
            row.append(pick(ps[b][len(row)], generator))
        rows.append(row + [-1] * (len(guesses) + 1 - len(row)))
    return torch.tensor(rows), torch.tensor(counts)


# %% task="PromptLookupProposer"
class PromptLookupProposer:
    def __init__(self, ngram_max, ngram_min=1):
        check_count(ngram_max, "ngram_max", 1)
        check_count(ngram_min, "ngram_min", 1)
        if ngram_max < ngram_min:
            raise ValueError("ngram_max must not be below ngram_min")
        self.longest, self.shortest = ngram_max, ngram_min

    def propose(self, ids, k):
        check_count(k, "k")
        best_place, best_length = None, self.shortest - 1
        for end in range(len(ids) - 1, 0, -1):
            length = 0
            while length < min(end, self.longest) and ids[end - 1 - length] == ids[len(ids) - 1 - length]:
                length += 1
            if length > best_length:
                best_place, best_length = end, length
        return [] if best_place is None else list(ids[best_place : best_place + k])


# %% task="AdaptiveGamma"
class AdaptiveGamma:
    def __init__(self, c, max_gamma, min_gamma=1, initial_alpha=0.8, weight=10.0, decay=0.95):
        check_number(initial_alpha, "initial_alpha", 0, 1)
        check_number(weight, "weight", 1)
        check_number(decay, "decay", 0, 1)
        check_number(c, "c")
        check_count(min_gamma, "min_gamma")
        check_count(max_gamma, "max_gamma", min_gamma)
        self.settings = c, max_gamma, min_gamma
        self.good, self.bad = weight * initial_alpha, weight * (1 - initial_alpha)
        self.keep = decay

    def update(self, drafted, accepted):
        check_count(drafted, "drafted")
        check_count(accepted, "accepted")
        if accepted > drafted:
            raise ValueError("accepted must not be above drafted")
        if drafted > 0:
            self.good *= self.keep
            self.bad *= self.keep
            self.good += accepted
            if accepted != drafted:
                self.bad += 1

    def alpha(self):
        return self.good / (self.good + self.bad)

    def gamma(self):
        c, high, low = self.settings
        return optimal_gamma(min(1.0, self.alpha()), c, high, low)


# %% task="check_compatible"
def check_compatible(target, draft):
    ours, theirs = target.get_vocab(), draft.get_vocab()
    different = []
    for token in list(ours) + list(theirs):
        if ours.get(token) != theirs.get(token):
            different += [vocab[token] for vocab in (ours, theirs) if token in vocab]
    if different:
        raise ValueError(f"not the same token: {min(different)}")
    if target.eos_token_id != draft.eos_token_id:
        raise ValueError("eos_token_id is not the same")


# %% task="speculative_generate"
def speculative_generate(target, draft, ids, gamma, max_new_tokens, generator, temperature=0.0, eos_token_id=None):
    check_count(gamma, "gamma")
    check_count(max_new_tokens, "max_new_tokens")
    check_number(temperature, "temperature")

    def weights(row):
        if temperature == 0:
            best = max(row)
            certain = [0.0] * len(row)
            certain[row.index(best)] = 1.0
            return certain
        most = max(row)
        return [math.exp((each - most) / temperature) for each in row]

    def share(row):
        total = sum(row)
        return [each / total for each in row]

    text = [token for token in ids]
    goal = len(text) + max_new_tokens
    runs, drafted, accepted = 0, 0, 0
    if gamma > 0 and max_new_tokens > 1 and len(text) > 1:
        draft.run(text[:-1])
    while len(text) < goal:
        guesses, qs = [], []
        while len(guesses) < gamma and len(text) + len(guesses) + 1 < goal:
            logits = draft.run((text + guesses)[draft.length :])
            qs.append(share(weights(logits[-1].tolist())))
            guesses.append(pick(qs[-1], generator))
            if guesses[-1] == eos_token_id:
                break
        logits = target.run((text + guesses)[target.length :]).tolist()
        ps = [share(weights(row)) for row in logits[len(logits) - len(guesses) - 1 :]]
        if temperature == 0 or not guesses:
            qs = None
        else:
            qs = torch.tensor([qs])
        tokens, counts = rejection_sample(torch.tensor([guesses], dtype=torch.long), qs, torch.tensor([ps]), generator)
        kept = counts.tolist()[0]
        runs += 1
        drafted += len(guesses)
        for place in range(kept + 1):
            text.append(tokens.tolist()[0][place])
            if place < kept:
                accepted += 1
            if text[-1] == eos_token_id:
                goal = len(text)
                break
        for model in target, draft:
            too_many = model.length - (len(text) - 1)
            if too_many > 0:
                model.crop(model.length - too_many)
    return text, {"accepted": accepted, "drafted": drafted, "target_runs": runs}
