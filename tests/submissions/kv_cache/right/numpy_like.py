"""numpy arrays inside, tensors at the borders; one array of block numbers and one of tokens per request."""

# %% helpers="helpers"
# Arrays and masks.
import numpy as np
import torch


def rows_of(tokens, size):
    """Full blocks, one a row."""
    return np.asarray(tokens[: len(tokens) // size * size], dtype=np.int64).reshape(-1, size)


def chain(tokens, size, extra):
    """The hashes of all full blocks, with that of no block in front."""
    hashes = [None]
    for row in rows_of(tokens, size):
        hashes.append(hash_block(hashes[-1], tuple(row.tolist()), extra))
    return hashes


# %% task="PagedKVCacheManager"
class PagedKVCacheManager:
    def __init__(self, pool, block_size):
        self.pool, self.block_size = pool, block_size
        self.requests = {}
        self.totals = np.zeros(2, dtype=np.int64)

    def need(self, count):
        if count > self.pool.num_free_blocks():
            raise OutOfBlocksError(f"{count} blocks are not there")

    def match_prefix(self, token_ids, extra_keys=()):
        tokens, extra = list(token_ids)[:-1], tuple(extra_keys)
        found = []
        for parent, row in zip(chain(tokens, self.block_size, extra), rows_of(tokens, self.block_size)):
            block = self.pool.get_cached_block(parent, row.tolist(), extra)
            if block is None:
                break
            found.append(block)
        return found

    def cache(self, tokens, table, extra, first):
        hashes = chain(tokens, self.block_size, extra)
        for number, row in enumerate(rows_of(tokens, self.block_size)):
            if number >= first:
                self.pool.cache_full_block(int(table[number]), hashes[number], row.tolist(), extra)

    def allocate(self, request_id, token_ids, extra_keys=()):
        if request_id in self.requests:
            raise ValueError(f"{request_id!r} exists")
        if len(token_ids) < 1:
            raise ValueError("token_ids is empty")
        hits = self.match_prefix(token_ids, extra_keys)
        new = int(np.ceil(len(token_ids) / self.block_size)) - len(hits)
        self.need(new + sum(self.pool.ref_count(block) < 1 for block in hits))
        self.pool.touch(hits)
        table = np.array(hits + self.pool.get_new_blocks(new), dtype=np.int64)
        self.cache(list(token_ids), table, tuple(extra_keys), len(hits))
        self.requests[request_id] = list(token_ids), table, tuple(extra_keys)
        hit_tokens = len(hits) * self.block_size
        self.totals += (len(token_ids), hit_tokens)
        return hit_tokens

    def append(self, request_id, token_ids):
        old, table, extra = self.requests[request_id]
        if len(token_ids) < 1:
            raise ValueError("token_ids is empty")
        tokens = old + list(token_ids)
        shared = len(old) % self.block_size and self.pool.ref_count(int(table[-1])) > 1
        new = int(np.ceil(len(tokens) / self.block_size)) - len(table) + bool(shared)
        self.need(new)
        blocks = self.pool.get_new_blocks(new)
        copies = []
        if shared:
            copies = [(int(table[-1]), blocks[0])]
            self.pool.free_blocks([int(table[-1])])
            table = table[:-1]
        table = np.concatenate([table, np.array(blocks, dtype=np.int64)])
        self.cache(tokens, table, extra, len(old) // self.block_size)
        self.requests[request_id] = tokens, table, extra
        return copies

    def fork(self, parent_id, child_id):
        tokens, table, extra = self.requests[parent_id]
        if child_id in self.requests:
            raise ValueError(f"{child_id!r} exists")
        self.pool.touch(table.tolist())
        self.requests[child_id] = tokens, table, extra

    def free(self, request_id):
        self.pool.free_blocks(self.requests.pop(request_id)[1].tolist())

    def block_table(self, request_id):
        return self.requests[request_id][1].tolist()

    def stats(self):
        tables = [table for _, table, _ in self.requests.values()]
        return {
            "requests": len(tables),
            "tokens": sum(len(tokens) for tokens, _, _ in self.requests.values()),
            "blocks": len(np.unique(np.concatenate(tables))) if tables else 0,
            "queries": int(self.totals[0]),
            "hits": int(self.totals[1]),
        }


# %% task="PagedAttentionLayer"
class PagedAttentionLayer:
    def __init__(self, num_blocks, block_size, n_kv_heads, head_dim):
        self.block_size = block_size
        self.kv = np.full((2, num_blocks * block_size, n_kv_heads, head_dim), np.nan, dtype=np.float32)

    def write(self, k, v, slot_mapping):
        slots = slot_mapping.numpy()
        self.kv[:, slots[slots >= 0]] = np.stack([k.numpy(), v.numpy()])[:, slots >= 0]

    def copy_blocks(self, copies):
        pages = self.kv.reshape(2, -1, self.block_size, *self.kv.shape[2:])
        for source, target in copies:
            pages[:, target] = pages[:, source]

    def attend(self, q, block_tables, context_lens, scale=None):
        q, tables = q.numpy().astype(np.float64), block_tables.numpy()
        out = np.empty(q.shape)
        for row, length in enumerate(context_lens.numpy()):
            token = np.arange(length)
            slots = tables[row, token // self.block_size] * self.block_size + token % self.block_size
            k, v = np.repeat(self.kv[:, slots], q.shape[1] // self.kv.shape[2], axis=2).astype(np.float64)
            scores = np.einsum("hd,thd->ht", q[row], k) * (scale or 1 / np.sqrt(q.shape[-1]))
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[row] = np.einsum("ht,thd->hd", weights, v) / weights.sum(axis=1, keepdims=True)
        return torch.from_numpy(out.astype(np.float32))


# %% task="QuantizedKVLayer"
class QuantizedKVLayer:
    def __init__(self, n_kv_heads, head_dim, bits, group_size, residual_length):
        AttentionLayer(n_kv_heads, n_kv_heads, head_dim, quantization=Quantization(bits, group_size))
        check_count(residual_length, "residual_length", 1)
        self.bits, self.groups, self.residual_length = bits, head_dim // group_size, residual_length
        self.waiting = np.zeros((2, 0, n_kv_heads, head_dim), dtype=np.float32)
        self.codes = np.zeros((2, 0, n_kv_heads, head_dim * bits // 8), dtype=np.uint8)
        self.scales = self.minima = np.zeros((2, 0, n_kv_heads, self.groups), dtype=np.float16)

    def append(self, k, v):
        waiting = np.concatenate([self.waiting, np.stack([k.numpy(), v.numpy()])], axis=1)
        ready = waiting.shape[1] - waiting.shape[1] % self.residual_length
        now, self.waiting = waiting[:, :ready], waiting[:, ready:]
        if not ready:
            return
        groups = now.reshape(*now.shape[:-1], self.groups, -1)
        minima = groups.min(-1).astype(np.float16)
        scales = (np.ptp(groups, axis=-1) / np.float32(2**self.bits - 1)).astype(np.float16)
        step, low = scales.astype(np.float32)[..., None], minima.astype(np.float32)[..., None]
        codes = np.divide(groups - low, step, out=np.zeros_like(groups), where=step > 0)
        codes = np.clip(np.rint(codes), 0, 2**self.bits - 1).astype(np.uint8).reshape(now.shape)
        bits = np.unpackbits(codes[..., None], axis=-1)[..., 8 - self.bits :]
        packed = np.packbits(bits.reshape(*bits.shape[:-2], -1), axis=-1)
        self.codes = np.concatenate([self.codes, packed], axis=1)
        self.scales = np.concatenate([self.scales, scales], axis=1)
        self.minima = np.concatenate([self.minima, minima], axis=1)

    def restored(self, index):
        bits = np.unpackbits(self.codes[index], axis=-1)
        shape = *bits.shape[:-1], self.groups, bits.shape[-1] // self.bits // self.groups, self.bits
        codes = bits.reshape(shape) @ (2 ** np.arange(self.bits)[::-1]).astype(np.float32)
        numbers = (
            self.minima[index].astype(np.float32)[..., None] + self.scales[index].astype(np.float32)[..., None] * codes
        )
        numbers = numbers.reshape(-1, *self.waiting.shape[2:])
        return torch.from_numpy(np.concatenate([numbers, self.waiting[index]]).astype(np.float32))

    def keys(self):
        return self.restored(0)

    def values(self):
        return self.restored(1)

    def state(self):
        parts = {"codes": self.codes, "scales": self.scales, "minima": self.minima, "residual": self.waiting}
        return {
            f"{name}_{part}": torch.from_numpy(np.ascontiguousarray(both[index]))
            for index, name in enumerate(("key", "value"))
            for part, both in parts.items()
        }

    def num_bytes(self):
        return self.codes.nbytes + self.scales.nbytes + self.minima.nbytes + self.waiting.nbytes


# %% task="sliding_window_evict"
def sliding_window_evict(positions, window, sinks=0):
    check_count(window, "window", 1)
    check_count(sinks, "sinks")
    cached = np.array(positions, dtype=np.int64)
    age = cached.max(initial=-1) + 1 - cached
    return cached[(cached < sinks) | (age < window)].tolist()


def evict_blocks(block_table, num_tokens, block_size, window, sinks=0):
    check_count(block_size, "block_size", 1)
    check_count(window, "window", 1)
    check_count(sinks, "sinks")
    table = np.array(block_table, dtype=np.int64)
    ends = np.arange(1, len(table) + 1) * block_size
    gone = (ends + window <= num_tokens + 1) & (ends - block_size >= sinks)
    return np.where(gone, 0, table).tolist(), table[gone & (table > 0)].tolist()
