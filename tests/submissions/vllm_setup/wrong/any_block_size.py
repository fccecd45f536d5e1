"""Does not look at its arguments.

fails: test_paged_arguments
"""

# %% task="paged_waste"
def paged_waste(lens: list[int], block_size: int) -> tuple[int, int, int]:
    """Tokens (reserved, used, waste) when every request gets as many blocks as it needs.

    Args:
        lens: the length of each request in tokens, each at least 0. May be empty.
        block_size: tokens per block, at least 1.

    Raises:
        TypeError, ValueError: see "Rules for all tasks"; the text has `lens` or `block_size`.
    """
    reserved, used = sum(-(-length // block_size) for length in lens) * block_size, sum(lens)
    return reserved, used, reserved - used
