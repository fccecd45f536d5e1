"""Compares with the largest probability of the whole batch.

fails: test_min_p_any
"""


# %% task="apply_min_p"
def apply_min_p(logits: torch.Tensor, min_p: float) -> torch.Tensor:
    check_number(min_p, "min_p", 1)
    probs = torch.softmax(logits, -1)
    return logits.masked_fill(probs < min_p * probs.max(), -math.inf)
