"""Frees the null block again for each block that has gone.

fails: test_window_frees_blocks test_window_blocks_over_time
"""


# %% task="sliding_window_evict"
def sliding_window_evict(positions: Sequence[int], window: int, sinks: int = 0) -> list[int]:
    check_count(window, "window", 1)
    check_count(sinks, "sinks")
    return [position for position in positions if position < sinks or position > positions[-1] + 1 - window]


def evict_blocks(
    block_table: Sequence[int], num_tokens: int, block_size: int, window: int, sinks: int = 0
) -> tuple[list[int], list[int]]:
    check_count(block_size, "block_size", 1)
    check_count(window, "window", 1)
    check_count(sinks, "sinks")
    table, freed = list(block_table), []
    for number, block in enumerate(table):
        first, behind = number * block_size, (number + 1) * block_size
        if first >= sinks and behind <= num_tokens + 1 - window:
            freed.append(block)
            table[number] = 0
    return table, freed
