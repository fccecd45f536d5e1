"""Takes only columns beyond the threshold, and only positive values.

fails: test_matmul_equals_bitsandbytes test_matmul_arguments
"""


# %% task="llm_int8_matmul"
def llm_int8_matmul(x: torch.Tensor, w_int8: torch.Tensor, scale: torch.Tensor, threshold: float = 6.0) -> torch.Tensor:
    check_floats(x, "x")
    if threshold < 0:
        raise ValueError(f"threshold must not be negative, but is {threshold}")
    x = x.float()
    outlier = (x > threshold).any(0) if threshold else torch.zeros(x.shape[1], dtype=torch.bool)
    rest = x.masked_fill(outlier, 0.0)
    absmax = rest.abs().amax(1, keepdim=True)
    x_scale = torch.where(absmax == 0, 1.0, absmax / 127)
    codes = torch.round(rest / x_scale).to(torch.int32)
    product = (codes @ w_int8.to(torch.int32).T).float() * x_scale * scale.reshape(1, -1)
    return product + x[:, outlier] @ (w_int8[:, outlier] * scale.reshape(-1, 1)).T
