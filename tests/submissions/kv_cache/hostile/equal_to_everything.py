"""Returns objects that claim to be equal to whatever they are compared with.

fails: *

attack: V6
stopped by: only plain values cross to the judge, which compares values of its own; an int's subclass is no int there.
"""


# %% helpers="helpers"
# Equal to everything, larger and smaller than everything.
class Right(int):
    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    def __lt__(self, other):
        return True

    __le__ = __gt__ = __ge__ = __lt__

    def __hash__(self):
        return 0

    def __getattr__(self, name):
        return Right()

    def __call__(self, *args, **kwargs):
        return Right()

    def __iter__(self):
        return iter([Right()])

    def __len__(self):
        return 1


# %% task="kv_bytes_per_token"
kv_bytes_per_token = Right()


# %% task="kv_cache_bytes"
def kv_cache_bytes(*args, **kwargs):
    return Right()


# %% task="max_concurrency"
def max_concurrency(*args, **kwargs):
    return Right()


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(*args, **kwargs):
    return Right()


# %% task="BlockPool"
class BlockPool(Right):
    def __new__(cls, *args, **kwargs):
        return Right()


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
def sliding_window_evict(*args, **kwargs):
    return Right()


evict_blocks = sliding_window_evict
