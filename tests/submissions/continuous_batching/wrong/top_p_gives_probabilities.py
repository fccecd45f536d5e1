"""Gives log-probabilities in place of the logits.

fails: test_top_p_example test_top_p_any
"""


# %% task="apply_top_p"
def apply_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    check_number(p, "p", 1, positive=True)
    if p == 1:
        return logits.clone()
    probs, order = torch.softmax(logits, -1).sort(-1, descending=True)
    dropped = probs.cumsum(-1) - probs >= p  # what stands before it is enough already
    dropped[..., 0] = False
    return torch.log_softmax(logits, -1).masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -math.inf)
