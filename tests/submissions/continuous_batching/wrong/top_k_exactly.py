"""Keeps exactly k tokens, also where others equal the k-th.

fails: test_top_k_example test_top_k_any
"""


# %% task="apply_top_k"
def apply_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    check_count(k, "k")
    if k == 0 or k >= logits.shape[-1]:
        return logits.clone()
    kept = logits.topk(k, dim=-1)
    return torch.full_like(logits, -math.inf).scatter(-1, kept.indices, kept.values)
