"""Packs along the first dimension.

fails: test_int4_packing_examples test_int4_pack_any_shape test_int4_arguments
"""


# %% task="groupwise_int4"
def groupwise_int4(
    w: torch.Tensor, group_size: int, symmetric: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    check_floats(w, "w")
    check_count(group_size, "group_size", 1)
    if w.ndim != 2:
        raise ValueError(f"w must have two dimensions, not {w.ndim}")
    rows, cols = w.shape
    if cols % group_size:
        raise ValueError(f"group_size={group_size} does not divide a row of {cols}")
    groups = w.float().reshape(rows, cols // group_size, group_size)
    if symmetric:
        span = groups.abs().amax(2) / 7
    else:
        low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
        span = (high - low) / 15
    scale = torch.where(span == 0, 1.0, span)
    zero = torch.full_like(scale, 8) if symmetric else torch.round(-low / scale)
    codes = (torch.round(groups / scale[:, :, None]) + zero[:, :, None]).clamp(1 if symmetric else 0, 15)
    return codes.to(torch.uint8).reshape(rows, cols), scale, zero.to(torch.uint8)


def dequantize_int4(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    group_size = codes.shape[1] // scale.shape[1]
    zero, scale = zero.repeat_interleave(group_size, dim=1), scale.repeat_interleave(group_size, dim=1)
    return (codes.float() - zero.float()) * scale


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    if codes.shape[0] % 2 or (codes > 15).any():
        raise ValueError("codes must be an even number of values from 0 to 15")
    return codes[::2] << 4 | codes[1::2]


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    return torch.stack([packed >> 4, packed & 15], dim=-1).flatten(-2)
