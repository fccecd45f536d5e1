"""Takes threshold=0.0 at its word, and checks nothing.

fails: test_matmul_example test_matmul_equals_bitsandbytes test_matmul_arguments
"""


# %% task="llm_int8_matmul"
def llm_int8_matmul(x: torch.Tensor, w_int8: torch.Tensor, scale: torch.Tensor, threshold: float = 6.0) -> torch.Tensor:
    x = x.float()
    outlier = (x.abs() >= threshold).any(0)
    rest = x.masked_fill(outlier, 0.0)
    absmax = rest.abs().amax(1, keepdim=True)
    x_scale = torch.where(absmax == 0, 1.0, absmax / 127)
    codes = torch.round(rest / x_scale).to(torch.int32)
    product = (codes @ w_int8.to(torch.int32).T).float() * x_scale * scale.reshape(1, -1)
    exact = x[:, outlier].double() @ (w_int8[:, outlier] * scale.double().reshape(-1, 1)).T
    return (product + exact).float()
