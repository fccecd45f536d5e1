"""Takes the shorter time.

fails: test_roofline_example test_roofline_random
"""

# %% task="roofline"
def roofline(flops: float, bytes_: float, peak_flops: float, bandwidth: float) -> tuple[float, str, float]:
    """The time that a computation takes at least, in seconds, what limits it ("compute" or "memory"), its FLOP per byte.

    Args:
        flops: operations of the computation.
        bytes_: bytes that it reads and writes.
        peak_flops: operations that the device can do, per second.
        bandwidth: bytes that it can move, per second.

    Raises:
        ValueError: an argument is not above 0. The text has its name.
    """
    given = {"flops": flops, "bytes_": bytes_, "peak_flops": peak_flops, "bandwidth": bandwidth}
    for name, value in given.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}")
    computing, moving = flops / peak_flops, bytes_ / bandwidth
    return min(computing, moving), "compute" if computing >= moving else "memory", flops / bytes_
