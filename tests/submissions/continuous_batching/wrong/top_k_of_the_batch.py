"""Top-k by the k-th largest logit of the whole batch.

fails: test_top_k_example test_top_k_any
"""


# %% task="apply_top_k"
def apply_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    check_count(k, "k")
    if k == 0 or k >= logits.shape[-1]:
        return logits.clone()
    smallest = logits.flatten().topk(k).values[-1]
    return logits.masked_fill(logits < smallest, -math.inf)
