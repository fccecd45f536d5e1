"""Small pure functions, a table from kind of layer to cost, `bisect` for the search, a pool on an OrderedDict."""

# %% helpers="helpers"
# One function per question: what does a token cost in a layer, how many slots does a sequence take in it.
from bisect import bisect_right
from collections import Counter, OrderedDict, defaultdict
from fractions import Fraction
from math import ceil, floor


def up(amount, unit):
    """How many units cover the amount."""
    return ceil(Fraction(amount, unit))


def plain_vector(layer, dim):
    return Fraction(dim * layer.dtype_bytes)


def quantized_vector(layer, dim):
    q = layer.quantization
    return Fraction(dim * q.bits, 8) + dim // q.group_size * (q.scale_bytes + q.zero_point_bytes)


def heads_on_rank(layer, tp):
    few, many = sorted((layer.n_kv_heads, tp))
    if many % few:
        raise ValueError(f"{layer.n_kv_heads} KV heads do not fit tp={tp}")
    return layer.n_kv_heads // tp or 1


def attention_cost(layer, tp):
    vector = quantized_vector if layer.quantization else plain_vector
    return heads_on_rank(layer, tp) * sum(vector(layer, dim) for dim in (layer.head_dim, layer.value_head_dim))


def latent_cost(layer, tp):
    return layer.dtype_bytes * (layer.kv_lora_rank + layer.qk_rope_head_dim)


COST = {AttentionLayer: attention_cost, LatentLayer: latent_cost}


def token_cost(layer, tp):
    if layer.n_heads % tp != 0:
        raise ValueError(f"{layer.n_heads} heads cannot be split: tp={tp}")
    return int(COST[type(layer)](layer, tp))


def slots(layer, length, block_size):
    window = getattr(layer, "window", None) or float("inf")
    if block_size is None:
        return min(length, window - 1)
    most = window if window == float("inf") else up(window, block_size) + 1
    return block_size * min(up(length, block_size), most)


def capacity(spec, budget, block_size, tp):
    """(bytes for the cache, bytes of a page)"""
    usable = floor(budget.total_bytes * budget.utilization)
    return usable - budget.weight_bytes - budget.peak_activation_bytes, block_size * kv_bytes_per_token(spec, tp)


def checked(**counts):
    for name, value in counts.items():
        check_count(value, name, 1)


# %% task="kv_bytes_per_token"
def kv_bytes_per_token(spec, tp=1):
    checked(tp=tp)
    return sum(token_cost(layer, tp) for layer in spec.layers)


# %% task="kv_cache_bytes"
def kv_cache_bytes(spec, seq_lens, block_size=None, tp=1):
    checked(tp=tp, **({} if block_size is None else {"block_size": block_size}))
    for length in seq_lens:
        check_count(length, "an element of seq_lens")
    costs = [token_cost(layer, tp) for layer in spec.layers]
    repeated = Counter(seq_lens)
    return sum(
        times * cost * slots(layer, length, block_size)
        for layer, cost in zip(spec.layers, costs)
        for length, times in repeated.items()
    )


# %% task="max_concurrency"
def max_concurrency(spec, budget, max_model_len, block_size, tp=1):
    checked(max_model_len=max_model_len, block_size=block_size)
    have, page = capacity(spec, budget, block_size, tp)
    if have // page < 1:
        raise InfeasibleError(f"a page of {page} bytes does not fit into {have}", shortfall_bytes=page - have)
    return have // page / up(kv_cache_bytes(spec, [max_model_len], block_size, tp), page)


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    checked(concurrency=concurrency, block_size=block_size, limit=limit)
    have, page = capacity(spec, budget, block_size, tp)
    share = have // page // concurrency
    return bisect_right(
        range(1, limit + 1), share, key=lambda length: up(kv_cache_bytes(spec, (length,), block_size, tp), page)
    )


# %% task="BlockPool"
class BlockPool:
    def __init__(self, num_blocks, block_size, enable_caching=True, hash_fn=hash_block):
        check_count(num_blocks, "num_blocks", 2)
        check_count(block_size, "block_size", 1)
        self.size, self.block_size, self.caching, self.hash_fn = num_blocks, block_size, enable_caching, hash_fn
        self.queue = OrderedDict.fromkeys(range(1, num_blocks))
        self.refs = Counter()
        self.key_of = {}
        self.found_by = defaultdict(list)

    def get_new_blocks(self, n):
        check_count(n, "n")
        if n > len(self.queue):
            raise OutOfBlocksError(f"{n} > {len(self.queue)}")
        blocks = [self.queue.popitem(last=False)[0] for _ in range(n)]
        for block in blocks:
            self.refs[block] = 1
            if block in self.key_of:
                self.found_by[self.key_of[block][0]].remove(block)
                del self.key_of[block]
        return blocks

    def touch(self, block_ids):
        for block in block_ids:
            self.require(block)
            if not self.refs[block] and block not in self.key_of:
                raise ValueError(f"block {block} is empty")
        for block in block_ids:
            self.queue.pop(block, None)
            self.refs[block] += 1

    def free_blocks(self, block_ids):
        for block, times in Counter(block_ids).items():
            self.require(block)
            if times > self.refs[block]:
                raise ValueError(f"block {block} is not held {times} times")
        for block in block_ids[::-1]:
            self.refs[block] -= 1
            if self.refs[block] == 0:
                self.queue[block] = None

    def cache_full_block(self, block_id, parent_hash, token_ids, extra_keys=()):
        self.require(block_id)
        if not self.refs[block_id] or block_id in self.key_of:
            raise ValueError(f"block {block_id} is free, or cached already")
        if len(token_ids) != self.block_size:
            raise ValueError("token_ids does not fill the block")
        key = parent_hash, tuple(token_ids), tuple(extra_keys)
        hashed = self.hash_fn(*key)
        if self.caching:
            self.key_of[block_id] = hashed, key
            self.found_by[hashed].append(block_id)
        return hashed

    def get_cached_block(self, parent_hash, token_ids, extra_keys=()):
        key = parent_hash, tuple(token_ids), tuple(extra_keys)
        candidates = self.found_by.get(self.hash_fn(*key), [])
        return next((block for block in candidates if self.key_of[block][1] == key), None)

    def reset(self):
        if len(self.queue) != self.size - 1:
            return False
        self.key_of, self.found_by = {}, defaultdict(list)
        return True

    def usage(self):
        return 1 - len(self.queue) / (self.size - 1)

    def num_free_blocks(self):
        return len(self.queue)

    def ref_count(self, block_id):
        if block_id not in range(self.size):
            raise KeyError(block_id)
        return self.refs[block_id]

    def require(self, block):
        if block not in range(self.size):
            raise KeyError(block)
        if block == 0:
            raise ValueError("the null block")
