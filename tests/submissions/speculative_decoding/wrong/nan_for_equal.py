"""Divides 0 by 0 where p and q are equal.

fails: test_residual_examples test_residual_batches
based on: right/generates_by_itself
"""


# %% task="residual_distribution"
def residual_distribution(p, q):
    if p.shape != q.shape:
        raise ValueError("p and q differ in shape")
    missing = torch.clamp(p - q, min=0)
    total = missing.sum(-1, keepdim=True)
    return missing / total
