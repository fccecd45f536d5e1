"""Compares logits with min_p times the largest logit.

fails: test_min_p_example test_min_p_any test_sample_example test_sample_law
"""


# %% task="apply_min_p"
def apply_min_p(logits: torch.Tensor, min_p: float) -> torch.Tensor:
    check_number(min_p, "min_p", 1)
    probs = logits
    return logits.masked_fill(probs < min_p * probs.amax(-1, keepdim=True), -math.inf)
