"""Computes everything and forgets to return it.

fails: *
"""


# %% task="kv_bytes_per_token"
def kv_bytes_per_token(spec, tp=1):
    print(len(spec.layers))


# %% task="kv_cache_bytes"
def kv_cache_bytes(spec, seq_lens, block_size=None, tp=1):
    print(sum(seq_lens))


# %% task="max_concurrency"
def max_concurrency(spec, budget, max_model_len, block_size, tp=1):
    print(budget.total_bytes)


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    print(limit)


# %% task="BlockPool"
class BlockPool:
    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


# %% task="PagedKVCacheManager"
class PagedKVCacheManager(BlockPool):
    """None from every method."""


# %% task="PagedAttentionLayer"
class PagedAttentionLayer(BlockPool):
    """The same."""


# %% task="QuantizedKVLayer"
class QuantizedKVLayer(BlockPool):
    """The same."""


# %% task="sliding_window_evict"
def sliding_window_evict(positions, window, sinks=0):
    print(len(positions))


def evict_blocks(block_table, num_tokens, block_size, window, sinks=0):
    print(len(block_table))
