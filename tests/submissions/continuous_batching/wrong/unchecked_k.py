"""Takes a negative k for off, as some programs do.

fails: test_top_k_arguments
"""


# %% task="apply_top_k"
def apply_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    if k <= 0 or k >= logits.shape[-1]:
        return logits.clone()
    smallest = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, -math.inf)
