"""Fails for a k of more than V.

fails: test_top_k_example test_top_k_any
"""


# %% task="apply_top_k"
def apply_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    check_count(k, "k")
    if k == 0:
        return logits.clone()
    smallest = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, -math.inf)
