"""Leaves nothing with k = 0.

fails: test_top_k_example test_top_k_any test_sample_certain test_sample_example test_sample_law
fails: test_sample_in_any_batch
"""


# %% task="apply_top_k"
def apply_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    check_count(k, "k")
    if k >= logits.shape[-1]:
        return logits.clone()
    if k == 0:
        return torch.full_like(logits, -math.inf)
    smallest = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, -math.inf)
