"""Checks neither the window nor the sinks nor the size of a block.

fails: test_window_over_time test_window_blocks_over_time
"""


# %% task="sliding_window_evict"
def sliding_window_evict(positions: Sequence[int], window: int, sinks: int = 0) -> list[int]:
    return [position for position in positions if position < sinks or position > positions[-1] + 1 - window]


def evict_blocks(
    block_table: Sequence[int], num_tokens: int, block_size: int, window: int, sinks: int = 0
) -> tuple[list[int], list[int]]:
    block_size = max(1, int(block_size))
    table, freed = list(block_table), []
    for number, block in enumerate(table):
        first, behind = number * block_size, (number + 1) * block_size
        if first >= sinks and behind <= num_tokens + 1 - window and block != 0:
            freed.append(block)
            table[number] = 0
    return table, freed
