"""Sends what no worker sends: lengths that lie, deep nests, half frames, references to what it was never given.

fails: *

attack: V3 V1
stopped by: P, sizes are checked before anything is read, the closed list of values before anything is made.
"""

# %% helpers="helpers"
# One kind of broken frame per call, straight into the line.
import os
import struct

import msgspec


def frame(tree, buffers=0):
    body = tree if isinstance(tree, bytes) else msgspec.msgpack.encode(tree)
    return struct.pack("!IH", len(body), buffers) + body


REPLY = [0, "value"]
BROKEN = [
    frame(b"\x91" * 100_000),
    struct.pack("!IH", 0xFFFFFFFF, 0xFFFF) + bytes(1000),
    struct.pack("!IH", 10, 1) + struct.pack("!Q", 1 << 62) + bytes(1000),
    frame([0, "invoke", 10**6, [0], [2]]),
    frame([0, "invoke", -1, [0], [2]]),
    frame([0, "invoke", 0, [0, *range(99)], [2, "hostile", 1]]),
    frame([*REPLY, [5, True, 0, "function", True]]),
    frame([*REPLY, [5, False, 1 << 40, "int", False]]),
    frame([*REPLY, [4, "torch", "float32", [1 << 31, 1 << 31], 0]]),
    frame([*REPLY, [2, "key"]]),
    frame([*REPLY, [3, "f" * 4_000]]),
    frame([0, "raised", [2, "type", "TypeError", "mro", [0] * 99, "text", 5, "lines", {}, "data", None]]),
    frame({"outcome": "PASSED"}),
    frame([]),
    frame(7),
    b"\xff",
    b"HTTP/1.1 200 OK\r\n\r\n",
]
turn = 0


def answer(*args, **kwargs):
    global turn
    turn += 1
    os.write(3, BROKEN[turn % len(BROKEN)])
    os._exit(0)


# %% task="kv_bytes_per_token"
kv_bytes_per_token = answer

# %% task="kv_cache_bytes"
kv_cache_bytes = answer

# %% task="max_concurrency"
max_concurrency = answer

# %% task="max_model_len_that_fits"
max_model_len_that_fits = answer

# %% task="BlockPool"
BlockPool = answer

# %% task="PagedKVCacheManager"
PagedKVCacheManager = answer

# %% task="PagedAttentionLayer"
PagedAttentionLayer = answer

# %% task="QuantizedKVLayer"
QuantizedKVLayer = answer

# %% task="sliding_window_evict"
sliding_window_evict = evict_blocks = answer
