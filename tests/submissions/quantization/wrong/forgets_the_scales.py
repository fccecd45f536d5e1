"""Counts codes only.

fails: test_bytes_examples test_bytes_of_real_tensors
"""


# %% task="quantized_bytes"
def quantized_bytes(
    shapes: dict[str, tuple[int, ...]],
    scheme: str,
    blocksize: int = 64,
    double: bool = False,
    skip: tuple[str, ...] = (),
    other_bytes: int = 2,
) -> int:
    if scheme not in ("int8", "int4", "nf4"):
        raise ValueError(f"scheme must be 'int8', 'int4' or 'nf4', not {scheme!r}")
    if double and scheme != "nf4":
        raise ValueError(f"double quantisation is for nf4, not for {scheme}")
    check_count(blocksize, "blocksize", 1)
    check_count(other_bytes, "other_bytes", 1)
    total = 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        if len(shape) != 2 or name in skip:
            total += count * other_bytes
        elif scheme == "int8":
            total += count
        elif scheme == "int4":
            if shape[1] % blocksize or shape[1] % 2:
                raise ValueError(f"blocksize={blocksize} does not divide rows of {shape[1]} into groups and bytes")
            total += count // 2 + 4 * count // blocksize
        else:
            blocks = -(-count // blocksize)
            total += -(-count // 2)
    return total
