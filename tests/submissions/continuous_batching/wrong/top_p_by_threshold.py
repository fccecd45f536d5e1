"""Keeps the tokens whose own probability is at least 1 - p.

fails: test_top_p_any test_sample_example test_sample_law
"""


# %% task="apply_top_p"
def apply_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    check_number(p, "p", 1, positive=True)
    if p == 1:
        return logits.clone()
    probs = torch.softmax(logits, -1)
    return logits.masked_fill((probs < 1 - p) & (probs < probs.amax(-1, keepdim=True)), -math.inf)
