"""Times itself when it is loaded, sets a seed, and keeps masks of pads that it has made before.

twin of: T1 D1 D5
"""

# %% helpers="helpers"
# A cache of rows of zeros, by length; and a look at the clock.
import statistics
from functools import lru_cache

torch.manual_seed(0)
LOADED_AT = time.perf_counter()


@lru_cache(maxsize=64)
def zeros(length):
    return (0,) * length




# %% task="pad_batch"
def pad_batch(seqs, pad_id, side="left"):
    check_count(pad_id, "pad_id")
    if side not in ("left", "right"):
        raise ValueError("side must be left or right")
    if not seqs or not all(map(len, seqs)):
        raise ValueError("seqs must have texts, and tokens in each")
    width = max(map(len, seqs))
    rows = [[], [], []]
    for seq in seqs:
        gap = zeros(width - len(seq))
        for into, own, pads in zip(
            rows, (list(seq), [1] * len(seq), list(range(len(seq)))), ([pad_id] * len(gap), list(gap), list(gap))
        ):
            into.append(pads + own if side == "left" else own + pads)
    return tuple(map(torch.tensor, rows))
