"""Gives numbers where the judge expects objects, to make its checks stumble: a broken check costs nobody points.

fails: test_pool_*

attack: T11 V15
stopped by: O, a class must give an object; a check of ours that meets anything else ends as FAILED.
"""


# %% task="BlockPool"
def BlockPool(num_blocks, block_size, *more):
    check_count(num_blocks, "num_blocks", 2)
    check_count(block_size, "block_size", 1)
    return (5, None, [1, 2], "pool", check_count)[num_blocks % 5]
