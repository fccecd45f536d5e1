"""Reads what the first start said, also after a restart.

fails: test_capacity_of_long_logs
"""


# %% task="kv_capacity"
def kv_capacity(log: str) -> KVCapacity:
    """What the last start in `log` says about the KV cache.

    Raises:
        ValueError: the log does not say the size, or not the concurrency.
    """
    sizes = re.findall(r"KV cache size: ([\d,]+) tokens", log)
    most = re.findall(r"Maximum concurrency for ([\d,]+) tokens per request: ([\d,.]+)x", log)
    if not sizes or not most:
        raise ValueError("the log says nothing about the KV cache")
    length, concurrency = most[0]
    return KVCapacity(
        int(sizes[0].replace(",", "")), int(length.replace(",", "")), float(concurrency.replace(",", ""))
    )
