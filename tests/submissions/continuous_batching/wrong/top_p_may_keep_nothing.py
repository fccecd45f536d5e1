"""Top-p drops the crossing token, the first one too.

fails: test_top_p_example test_top_p_any test_sample_certain test_sample_example test_sample_law
"""


# %% task="apply_top_p"
def apply_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    check_number(p, "p", 1, positive=True)
    if p == 1:
        return logits.clone()
    probs, order = torch.softmax(logits, -1).sort(-1, descending=True)
    dropped = probs.cumsum(-1) >= p  # what stands before it is enough already
    return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -math.inf)
