"""Computes scale and codes in the type of its input, and checks nothing.

fails: test_zeropoint_arguments
"""


# %% task="zeropoint_uint8"
def zeropoint_uint8(x: torch.Tensor) -> tuple[torch.Tensor, float, int]:
    low, high = min(0.0, x.min().item()), max(0.0, x.max().item())
    if low == high:
        return torch.zeros(x.shape, dtype=torch.uint8), 1.0, 0
    scale = (torch.tensor(high, dtype=x.dtype) - torch.tensor(low, dtype=x.dtype)).item() / 255
    zero_point = round(-low / scale)
    return (torch.round(x / scale) + zero_point).clamp(0, 255).to(torch.uint8), scale, zero_point
