"""Takes p = 0 for greedy.

fails: test_top_p_arguments
"""


# %% task="apply_top_p"
def apply_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    check_number(p, "p", 1)
    if p == 1:
        return logits.clone()
    probs, order = torch.softmax(logits, -1).sort(-1, descending=True)
    dropped = probs.cumsum(-1) - probs >= p  # what stands before it is enough already
    dropped[..., 0] = False
    return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -math.inf)
