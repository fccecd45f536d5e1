"""|p - q| instead of max(p - q, 0).

fails: test_residual_* test_rejection_forced test_rejection_first_token test_rejection_law
fails: test_rejection_lengths test_rejection_one_hot test_rejection_two_guesses
based on: right/generates_by_itself
"""


# %% task="residual_distribution"
def residual_distribution(p, q):
    if p.shape != q.shape:
        raise ValueError("p and q differ in shape")
    missing = (p - q).abs()
    total = missing.sum(-1, keepdim=True)
    return torch.where(total == 0, p, missing / total)
