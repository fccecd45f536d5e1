"""Answers each question with one constant that is right for some input, whatever was asked.

fails: *

attack: D14 D20
stopped by: S, no check is met by a constant: each looks at several inputs with different answers.
"""


# %% task="kv_bytes_per_token"
def kv_bytes_per_token(spec, tp=1):
    return 131_072


# %% task="kv_cache_bytes"
def kv_cache_bytes(spec, seq_lens, block_size=None, tp=1):
    return 0


# %% task="max_concurrency"
def max_concurrency(spec, budget, max_model_len, block_size, tp=1):
    return 1.0


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    return 0


# %% task="BlockPool"
class BlockPool:
    def __init__(self, *args, **kwargs):
        pass

    def get_new_blocks(self, n):
        return list(range(1, n + 1))

    def num_free_blocks(self):
        return 3

    def ref_count(self, block_id):
        return 0

    def usage(self):
        return 0.0

    def touch(self, block_ids):
        pass

    def free_blocks(self, block_ids):
        pass

    def cache_full_block(self, *args):
        return ""

    def get_cached_block(self, *args):
        return None

    def reset(self):
        return True


# %% task="PagedKVCacheManager"
class PagedKVCacheManager:
    def __init__(self, pool, block_size):
        pass

    def allocate(self, request_id, token_ids, extra_keys=()):
        return 0

    def block_table(self, request_id):
        return [1, 2, 3]

    def match_prefix(self, token_ids, extra_keys=()):
        return []

    def append(self, request_id, token_ids):
        return [(3, 4)]

    def fork(self, parent_id, child_id):
        pass

    def free(self, request_id):
        pass

    def stats(self):
        return {"requests": 1, "tokens": 10, "blocks": 3, "queries": 10, "hits": 0}


# %% task="PagedAttentionLayer"
class PagedAttentionLayer:
    def __init__(self, *args):
        pass

    def write(self, *args):
        pass

    def copy_blocks(self, copies):
        pass

    def attend(self, q, *args):
        return torch.tensor([[[3.0, 2.0]]])


# %% task="QuantizedKVLayer"
class QuantizedKVLayer:
    def __init__(self, *args, **kwargs):
        pass

    def append(self, k, v):
        pass

    def keys(self):
        return torch.zeros(40, 2, 64)

    values = keys

    def state(self):
        return {}

    def num_bytes(self):
        return 13_312


# %% task="sliding_window_evict"
def sliding_window_evict(positions, window, sinks=0):
    return [7, 8, 9]


def evict_blocks(block_table, num_tokens, block_size, window, sinks=0):
    return [0, 0, 9, 5], [7, 3]
