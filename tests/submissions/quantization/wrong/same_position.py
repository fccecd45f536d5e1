"""Compares the logits with the token at the same position.

fails: test_perplexity_windows test_perplexity_uniform test_perplexity_of_any_model
"""


# %% task="perplexity"
def perplexity(model: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor, window: int, stride: int) -> float:
    if ids.ndim != 1 or len(ids) < 2:
        raise ValueError(f"ids must be one row of at least 2 tokens, not of shape {tuple(ids.shape)}")
    check_count(window, "window", 2)
    check_count(stride, "stride", 1)
    if stride >= window:
        raise ValueError(f"stride={stride} must be less than window={window}, or tokens would be without context")
    total, done, start = 0.0, 1, 0
    while done < len(ids):
        end = min(start + window, len(ids))
        said = model(ids[None, start:end])[0].float()
        total += nn.functional.cross_entropy(said[done - start :], ids[done:end], reduction="sum").item()
        start, done = start + stride, end
    return math.exp(total / (len(ids) - 1))
