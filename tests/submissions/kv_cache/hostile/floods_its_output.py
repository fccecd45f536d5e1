"""Prints hundreds of megabytes, without a line's end, in all bytes that there are.

fails: test_length_*

attack: V21 V4
stopped by: P, output is read all the time, and only its beginning and end are kept.
"""


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    import os

    noise = bytes(range(256)) * 4_096
    for _ in range(50):
        os.write(1, noise)
        os.write(2, noise)
    return 0
