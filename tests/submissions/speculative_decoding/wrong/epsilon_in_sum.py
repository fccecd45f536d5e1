"""Adds 1e-5 to the sum, so that nearly equal distributions have a residual that does not sum to 1.

fails: test_residual_examples test_residual_batches test_residual_nearly_equal
based on: right/generates_by_itself
"""


# %% task="residual_distribution"
def residual_distribution(p, q):
    if p.shape != q.shape:
        raise ValueError("p and q differ in shape")
    missing = torch.clamp(p - q, min=0)
    total = missing.sum(-1, keepdim=True)
    return torch.where(total == 0, p, missing / (total + 1e-5))
