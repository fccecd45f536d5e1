"""Spreads from the smallest to the largest number, with or without 0.

fails: test_zeropoint_examples test_zeropoint_nearest_code
"""


# %% task="zeropoint_uint8"
def zeropoint_uint8(x: torch.Tensor) -> tuple[torch.Tensor, float, int]:
    check_floats(x, "x")
    x = x.float()
    low, high = x.min().item(), x.max().item()
    if low == high:
        return torch.zeros(x.shape, dtype=torch.uint8), 1.0, 0
    scale = (high - low) / 255
    zero_point = round(-low / scale)
    return (torch.round(x / scale) + zero_point).clamp(0, 255).to(torch.uint8), scale, zero_point
