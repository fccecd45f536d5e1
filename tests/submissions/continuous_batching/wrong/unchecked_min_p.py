"""Takes any min_p.

fails: test_min_p_arguments
"""


# %% task="apply_min_p"
def apply_min_p(logits: torch.Tensor, min_p: float) -> torch.Tensor:
    probs = torch.softmax(logits, -1)
    return logits.masked_fill(probs < min_p * probs.amax(-1, keepdim=True), -math.inf)
