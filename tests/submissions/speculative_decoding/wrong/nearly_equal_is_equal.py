"""Takes distributions that differ by less than 1e-4 for equal.

fails: test_residual_nearly_equal test_residual_examples
based on: right/generates_by_itself
"""


# %% task="residual_distribution"
def residual_distribution(p, q):
    if p.shape != q.shape:
        raise ValueError("p and q differ in shape")
    missing = torch.clamp(p - q, min=0)
    total = missing.sum(-1, keepdim=True)
    return torch.where(total < 1e-4, p, missing / total)
