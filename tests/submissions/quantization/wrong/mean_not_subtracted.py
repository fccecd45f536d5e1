"""Quantises the scales without subtracting their mean.

fails: test_double_example test_double_nearest_levels test_double_arguments
"""


# %% task="double_quantize"
def double_quantize(absmax: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    check_floats(absmax, "absmax")
    absmax = absmax.float()
    offset = absmax.mean() * 0
    blocks = nn.functional.pad(absmax - offset, (0, -len(absmax) % 256)).reshape(-1, 256)
    absmax2 = blocks.abs().amax(1)
    normed = (blocks / torch.where(absmax2 == 0, 1.0, absmax2)[:, None]).reshape(-1)[: len(absmax)]
    levels = dynamic_map()
    codes = torch.bucketize(normed, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    return codes, absmax2, offset.item()


def double_dequantize(codes: torch.Tensor, absmax2: torch.Tensor, offset: float) -> torch.Tensor:
    return dynamic_map()[codes.int()] * absmax2.repeat_interleave(256)[: len(codes)] + offset
