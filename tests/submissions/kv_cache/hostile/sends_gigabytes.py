"""Answers with a frame of half a gigabyte, then with millions of small values, to use up the judge.

fails: test_length_*

attack: V21
stopped by: P, a frame and the number of its values are bounded, and memory grows only as bytes arrive.
"""

# %% task="max_model_len_that_fits"
turn = 0


def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    global turn
    import os
    import struct

    import msgspec

    turn += 1
    if turn % 3 == 0:
        return [0] * 900_000
    if turn % 3 == 1:
        return "x" * 4_000_000
    body = msgspec.msgpack.encode([0, "value", [4, "numpy", "uint8", [1 << 29], 0]])
    os.write(3, struct.pack("!IHQ", len(body), 1, 1 << 29) + body)
    for _ in range(512):
        left = memoryview(bytes(1 << 20))
        while left:
            left = left[os.write(3, left) :]
    os._exit(0)
