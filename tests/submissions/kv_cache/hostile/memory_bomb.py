"""Takes memory until there is no more: in one process, then in eight at once.

fails: test_length_*

attack: V21
stopped by: C, a limit per process, and a watch over all processes of a worker together.
"""


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    import os
    import time

    if not os.path.isdir("/scratch"):
        raise SystemExit("This is an attack: in a sandbox only.")
    held = []
    try:
        for _ in range(64):
            held.append(b"\1" * (128 << 20))
    except MemoryError:
        held.clear()
    for _ in range(8):
        if os.fork() == 0:
            held = [b"\1" * (64 << 20) for _ in range(10)]
            time.sleep(5)
            os._exit(0)
    time.sleep(3)
    return 0
