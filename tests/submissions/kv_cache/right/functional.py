"""Small pure functions, a table from kind of layer to cost, `bisect` for the search, a pool on an OrderedDict."""

# %% helpers="helpers"
# One function per question: what does a token cost in a layer, how many slots does a sequence take in it.
from bisect import bisect_right
from collections import Counter, OrderedDict, defaultdict
from fractions import Fraction
from itertools import chain, islice, takewhile
from math import ceil, floor
from typing import NamedTuple

import torch
import torch.nn.functional as F


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


class Request(NamedTuple):
    """All of a request; a step makes a new one."""

    tokens: tuple
    table: tuple
    extra: tuple


def chunks(tokens, size):
    """Full blocks of tokens."""
    return [tokens[end - size : end] for end in range(size, len(tokens) + 1, size)]


def pack(codes, bits):
    """The last dimension, eight bits a byte, as a sum of powers of two."""
    weights = 2 ** torch.arange(8 - bits, -1, -bits)
    return (codes.long().unflatten(-1, (-1, 8 // bits)) * weights).sum(-1).byte()


def unpack(packed, bits):
    return torch.stack([packed.long() // 2**place % 2**bits for place in range(8 - bits, -1, -bits)], -1).flatten(-2)


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


# %% task="PagedKVCacheManager"
class PagedKVCacheManager:
    def __init__(self, pool, block_size):
        self.pool, self.size = pool, block_size
        self.requests = {}
        self.counts = Counter(queries=0, hits=0)

    def lookups(self, tokens, extra):
        parent = None
        for chunk in chunks(tokens, self.size):
            yield self.pool.get_cached_block(parent, chunk, extra)
            parent = hash_block(parent, chunk, extra)

    def match_prefix(self, token_ids, extra_keys=()):
        tokens, extra = tuple(token_ids), tuple(extra_keys)
        return list(takewhile(lambda block: block is not None, self.lookups(tokens[:-1], extra)))

    def remember(self, request, known):
        """Cache the full blocks behind the first `known`."""
        hashes = [None]
        for chunk in chunks(request.tokens, self.size):
            hashes.append(hash_block(hashes[-1], chunk, request.extra))
        full = zip(request.table, hashes, chunks(request.tokens, self.size))
        for block, parent, chunk in islice(full, known, None):
            self.pool.cache_full_block(block, parent, chunk, request.extra)

    def allocate(self, request_id, token_ids, extra_keys=()):
        if request_id in self.requests or not token_ids:
            raise ValueError("no token_ids, or the request is there already")
        hits = self.match_prefix(token_ids, extra_keys)
        need = up(len(token_ids), self.size) - len(hits)
        if need + sum(not self.pool.ref_count(block) for block in hits) > self.pool.num_free_blocks():
            raise OutOfBlocksError("no room")
        self.pool.touch(hits)
        request = Request(tuple(token_ids), (*hits, *self.pool.get_new_blocks(need)), tuple(extra_keys))
        self.remember(request, len(hits))
        self.requests[request_id] = request
        self.counts.update(queries=len(token_ids), hits=len(hits) * self.size)
        return len(hits) * self.size

    def append(self, request_id, token_ids):
        old = self.requests[request_id]
        if not token_ids:
            raise ValueError("token_ids is empty")
        partial = old.table[len(old.tokens) // self.size :]  # the last block, if there is room in it
        shared = tuple(block for block in partial if self.pool.ref_count(block) > 1)
        kept = old.table[: len(old.table) - len(shared)]
        tokens = old.tokens + tuple(token_ids)
        new = tuple(self.pool.get_new_blocks(up(len(tokens), self.size) - len(kept)))  # all or nothing
        self.pool.free_blocks(shared)
        self.requests[request_id] = request = Request(tokens, kept + new, old.extra)
        self.remember(request, len(old.tokens) // self.size)
        return list(zip(shared, new))

    def fork(self, parent_id, child_id):
        request = self.requests[parent_id]
        if child_id in self.requests:
            raise ValueError(child_id)
        self.pool.touch(request.table)
        self.requests[child_id] = request

    def free(self, request_id):
        self.pool.free_blocks(self.requests.pop(request_id).table)

    def block_table(self, request_id):
        return list(self.requests[request_id].table)

    def stats(self):
        every = self.requests.values()
        return dict(self.counts) | {
            "requests": len(every),
            "tokens": sum(len(request.tokens) for request in every),
            "blocks": len(set(chain.from_iterable(request.table for request in every))),
        }


# %% task="PagedAttentionLayer"
class PagedAttentionLayer:
    """Gathers each sequence for itself and leaves the rest to PyTorch."""

    def __init__(self, num_blocks, block_size, n_kv_heads, head_dim):
        self.kv = torch.empty(2, num_blocks, block_size, n_kv_heads, head_dim)

    def write(self, k, v, slot_mapping):
        chosen = slot_mapping.ge(0).nonzero().squeeze(-1)
        self.kv.flatten(1, 2).index_copy_(1, slot_mapping[chosen], torch.stack([k, v])[:, chosen])

    def copy_blocks(self, copies):
        for source, target in copies:
            self.kv[:, target].copy_(self.kv[:, source])

    def attend(self, q, block_tables, context_lens, scale=None):
        rows = []
        for query, table, length in zip(q, block_tables, context_lens.tolist()):
            k, v = self.kv[:, table].flatten(1, 2)[:, :length].movedim(2, 1)
            rows.append(F.scaled_dot_product_attention(query[:, None], k, v, scale=scale, enable_gqa=True)[:, 0])
        return torch.stack(rows)


# %% task="QuantizedKVLayer"
class QuantizedKVLayer:
    def __init__(self, n_kv_heads, head_dim, bits, group_size, residual_length):
        checked(residual_length=residual_length, n_kv_heads=n_kv_heads, head_dim=head_dim)
        Quantization(bits, group_size)
        if head_dim % group_size or head_dim * bits % 8:
            raise ValueError(f"group_size={group_size} and bits={bits} do not suit {head_dim}")
        self.bits, self.group, self.residual = bits, group_size, residual_length
        self.waiting = torch.empty(2, 0, n_kv_heads, head_dim)
        self.packed = [self.quantized(self.waiting)]

    def quantized(self, x):
        groups = x.unflatten(-1, (x.shape[-1] // self.group, self.group))
        low, high = groups.amin(-1), groups.amax(-1)
        scales, minima = ((high - low) / (2**self.bits - 1)).half(), low.half()
        step = torch.where(scales > 0, scales.float(), torch.inf)
        codes = ((groups - minima.float().unsqueeze(-1)) / step.unsqueeze(-1)).round().clamp(0, 2**self.bits - 1)
        return pack(codes.flatten(-2), self.bits), scales, minima

    def append(self, k, v):
        waiting = torch.cat([self.waiting, torch.stack([k, v])], 1)
        while waiting.shape[1] >= self.residual:
            self.packed.append(self.quantized(waiting[:, : self.residual]))
            waiting = waiting[:, self.residual :]
        self.waiting = waiting

    def parts(self):
        """Codes, scales and minima, each of keys and values together."""
        return [torch.cat(each, 1) for each in zip(*self.packed)]

    def restored(self):
        codes, scales, minima = self.parts()
        codes = unpack(codes, self.bits).unflatten(-1, (-1, self.group))
        numbers = torch.addcmul(minima.float()[..., None], scales.float()[..., None], codes.float())
        return torch.cat([numbers.flatten(-2), self.waiting], 1)

    def keys(self):
        return self.restored()[0]

    def values(self):
        return self.restored()[1]

    def state(self):
        names = ("codes", "scales", "minima", "residual")
        both = dict(zip(names, [*self.parts(), self.waiting]))
        return {f"{kind}_{name}": both[name][index] for index, kind in enumerate(("key", "value")) for name in names}

    def num_bytes(self):
        return sum(tensor.nbytes for tensor in self.state().values())


# %% task="sliding_window_evict"
def sliding_window_evict(positions, window, sinks=0):
    check_count(window, "window", 1)
    check_count(sinks, "sinks")
    oldest = max(positions, default=0) - window + 2
    return list(filter(lambda position: position < sinks or position >= oldest, positions))


def evict_blocks(block_table, num_tokens, block_size, window, sinks=0):
    checked(block_size=block_size, window=window)
    check_count(sinks, "sinks")
    gone = range(up(sinks, block_size), max(0, num_tokens - window + 1) // block_size)
    table = [0 if number in gone else block for number, block in enumerate(block_table)]
    return table, [block for number, block in enumerate(block_table) if number in gone and block]
