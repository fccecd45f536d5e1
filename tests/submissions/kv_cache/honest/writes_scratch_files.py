"""Writes and reads temporary files, in the folder that there is for them and in its home.

twin of: D4 V16 V22
"""

# %% helpers="helpers"
# Scratch files, some of them left where they are.
import json
import os
import pathlib
import tempfile
from bisect import bisect_left

with tempfile.NamedTemporaryFile("w+", suffix=".json") as file:
    json.dump({"note": 1}, file)
    file.flush()
    assert json.loads(pathlib.Path(file.name).read_text())["note"] == 1
for folder in (tempfile.gettempdir(), os.path.expanduser("~"), "/dev/shm"):
    try:
        pathlib.Path(folder, "results.json").write_text("{}")
    except OSError as error:
        print(folder, error)
pathlib.Path("notes.txt").write_text("in the current folder")


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(limit, "limit", 1)

    def too_long(length):
        try:
            return max_concurrency(spec, budget, length, block_size, tp) < concurrency
        except InfeasibleError:
            return True

    return bisect_left(range(1, limit + 1), True, key=too_long)
