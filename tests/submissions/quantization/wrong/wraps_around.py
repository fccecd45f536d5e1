"""Does not cut codes off below 0 and above 255.

fails: test_zeropoint_nearest_code
"""


# %% task="zeropoint_uint8"
def zeropoint_uint8(x: torch.Tensor) -> tuple[torch.Tensor, float, int]:
    check_floats(x, "x")
    x = x.float()
    low, high = min(0.0, x.min().item()), max(0.0, x.max().item())
    if low == high:
        return torch.zeros(x.shape, dtype=torch.uint8), 1.0, 0
    scale = (high - low) / 255
    zero_point = round(-low / scale)
    return (torch.round(x / scale) + zero_point).to(torch.int32).to(torch.uint8), scale, zero_point
