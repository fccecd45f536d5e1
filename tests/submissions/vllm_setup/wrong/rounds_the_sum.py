"""Rounds all tokens together up to whole blocks.

fails: test_paged_example test_paged_random
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
    check_count(block_size, "block_size", 1)
    for length in lens:
        check_count(length, "lens")
    reserved, used = -(-sum(lens) // block_size) * block_size, sum(lens)
    return reserved, used, reserved - used
