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
