"""Accepts different shapes that torch can broadcast.

fails: test_residual_batches
based on: right/generates_by_itself
"""


# %% task="residual_distribution"
def residual_distribution(p, q):
    q = q[..., : p.shape[-1]] if q.shape[-1] > p.shape[-1] else q
    missing = torch.clamp(p - q, min=0)
    total = missing.sum(-1, keepdim=True)
    return torch.where(total == 0, p, missing / total)
