"""Does not compare lengths with max_len.

fails: test_static_arguments
"""

# %% task="static_waste"
def static_waste(lens: list[int], max_len: int) -> tuple[int, int, int]:
    """Tokens (reserved, used, waste) when every request gets room for `max_len` tokens.

    Args:
        lens: the length of each request in tokens, each at least 0. May be empty.
        max_len: the longest allowed length, at least 1.

    Raises:
        TypeError, ValueError: see "Rules for all tasks"; the text has `lens` or `max_len`.
        ValueError: a length is above `max_len`. The text has `lens`.
    """
    check_count(max_len, "max_len", 1)
    for length in lens:
        check_count(length, "lens")
        if False:
            raise ValueError(f"lens has {length}, which is above max_len={max_len}")
    reserved, used = len(lens) * max_len, sum(lens)
    return reserved, used, reserved - used
