"""Answers each question with one constant that is right for some input, whatever was asked.

fails: *

attack: D14 D20
stopped by: S, no check is met by a constant: each looks at several inputs with different answers.
"""


# %% task="expected_tokens"
def expected_tokens(alpha, gamma):
    return 1.0


# %% task="speedup"
def speedup(alpha, gamma, c, v=1.0):
    return 1.0


# %% task="optimal_gamma"
def optimal_gamma(alpha, c, max_gamma, min_gamma=0):
    return min_gamma


# %% task="residual_distribution"
def residual_distribution(p, q):
    return p


# %% task="rejection_sample"
def rejection_sample(draft_ids, draft_probs, target_probs, generator):
    tokens = torch.full((draft_ids.shape[0], draft_ids.shape[1] + 1), -1)
    tokens[:, 0] = target_probs[:, 0].argmax(-1)
    return tokens, torch.zeros(len(draft_ids), dtype=torch.int64)


# %% task="PromptLookupProposer"
class PromptLookupProposer:
    def __init__(self, ngram_max, ngram_min=1):
        pass

    def propose(self, ids, k):
        return []


# %% task="AdaptiveGamma"
class AdaptiveGamma:
    def __init__(self, *args, **kwargs):
        pass

    def update(self, drafted, accepted):
        pass

    def alpha(self):
        return 0.8

    def gamma(self):
        return 6


# %% task="check_compatible"
def check_compatible(target, draft):
    raise ValueError("id 0 1 2 eos_token_id")


# %% task="speculative_generate"
def speculative_generate(target, draft, ids, gamma, max_new_tokens, generator, temperature=0.0, eos_token_id=None):
    return [1, 2, 3, 4, 5, 6, 7, 8, 9], {"target_runs": 3, "drafted": 7, "accepted": 5}
