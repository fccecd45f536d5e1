"""Applies the mask of the sorted row to the row as it is.

fails: test_top_p_example test_top_p_any test_sample_law
"""


# %% task="apply_top_p"
def apply_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    check_number(p, "p", 1, positive=True)
    if p == 1:
        return logits.clone()
    probs, order = torch.softmax(logits, -1).sort(-1, descending=True)
    dropped = probs.cumsum(-1) - probs >= p  # what stands before it is enough already
    dropped[..., 0] = False
    return logits.masked_fill(dropped, -math.inf)
