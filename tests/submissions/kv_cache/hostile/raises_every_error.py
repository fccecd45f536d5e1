"""Always raises one exception that is of every kind and names every argument.

fails: *

attack: D14 D20
stopped by: S, each check of errors also asks for something that is no error.
"""

# %% helpers="helpers"
# Whatever error is expected, this is one.
NAMES = "tp seq_lens block_size max_model_len concurrency limit token_ids num_blocks n extra_keys"


class Every(OutOfBlocksError, InfeasibleError, TypeError, KeyError):
    def __init__(self, *args, **kwargs):
        Exception.__init__(self, NAMES)
        self.shortfall_bytes = 1


def answer(*args, **kwargs):
    raise Every()


# %% task="kv_bytes_per_token"
kv_bytes_per_token = answer

# %% task="kv_cache_bytes"
kv_cache_bytes = answer

# %% task="max_concurrency"
max_concurrency = answer

# %% task="max_model_len_that_fits"
max_model_len_that_fits = answer


# %% task="BlockPool"
class BlockPool:
    def __init__(self, *args, **kwargs):
        if args[:1] in ((True,), (2.0,), ("2",)) or kwargs.get("block_size") in (True, 2.0, "2"):
            raise Every()

    def __getattr__(self, name):
        return answer


# %% task="PagedKVCacheManager"
class PagedKVCacheManager(BlockPool):
    """The same."""


# %% task="PagedAttentionLayer"
class PagedAttentionLayer(BlockPool):
    """The same."""


# %% task="QuantizedKVLayer"
class QuantizedKVLayer(BlockPool):
    """The same."""


# %% task="sliding_window_evict"
sliding_window_evict = evict_blocks = answer
