"""Compares with min_p itself, not with a share of the largest.

fails: test_min_p_example test_min_p_any test_sample_certain test_sample_law
"""


# %% task="apply_min_p"
def apply_min_p(logits: torch.Tensor, min_p: float) -> torch.Tensor:
    check_number(min_p, "min_p", 1)
    probs = torch.softmax(logits, -1)
    return logits.masked_fill(probs < min_p, -math.inf)
