"""Loops over tokens, heads and numbers; lists in place of tensors until something is returned."""

# %% helpers="helpers"
# Lists and math are enough. Only the borders know tensors.
import math

import torch


def weighted_sum(weights, rows):
    return [sum(weight * row[i] for weight, row in zip(weights, rows)) for i in range(len(rows[0]))]


def softmax(scores):
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]


def half(number):
    """The float16 next to a number, as a Python float."""
    return torch.tensor(number, dtype=torch.float64).to(torch.float16).item()


def encode(numbers, bits):
    """Scale, minimum and codes of one group."""
    low = half(min(numbers))
    scale = half((max(numbers) - min(numbers)) / (2**bits - 1))
    codes = []
    for number in numbers:
        code = 0 if scale == 0 else math.floor((number - low) / scale + 0.5)
        codes.append(min(max(code, 0), 2**bits - 1))
    return scale, low, codes


def bytes_of(codes, bits):
    packed = []
    for start in range(0, len(codes), 8 // bits):
        byte = 0
        for code in codes[start : start + 8 // bits]:
            byte = byte * 2**bits + code
        packed.append(byte)
    return packed


# %% task="PagedKVCacheManager"
class PagedKVCacheManager:
    def __init__(self, pool, block_size):
        self.pool = pool
        self.block_size = block_size
        self.tokens = {}
        self.tables = {}
        self.extras = {}
        self.hash_of = {}
        self.queries = 0
        self.hits = 0

    def match_prefix(self, token_ids, extra_keys=()):
        blocks = []
        parent = None
        start = 0
        while start + self.block_size < len(token_ids):
            content = []
            for i in range(start, start + self.block_size):
                content.append(token_ids[i])
            block = self.pool.get_cached_block(parent, content, extra_keys)
            if block is None:
                break
            blocks.append(block)
            parent = self.hash_of[block]
            start += self.block_size
        return blocks

    def blocks_for(self, count):
        blocks = 0
        while blocks * self.block_size < count:
            blocks += 1
        return blocks

    def cache_block(self, request_id, number):
        """Cache one block if it is full."""
        tokens = self.tokens[request_id][number * self.block_size :][: self.block_size]
        if len(tokens) < self.block_size:
            return
        table = self.tables[request_id]
        parent = None
        if number > 0:
            parent = self.hash_of[table[number - 1]]
        made = self.pool.cache_full_block(table[number], parent, tokens, self.extras[request_id])
        self.hash_of[table[number]] = made

    def allocate(self, request_id, token_ids, extra_keys=()):
        if request_id in self.tokens:
            raise ValueError("this request is there already")
        if len(token_ids) == 0:
            raise ValueError("token_ids must have a token")
        hits = self.match_prefix(token_ids, extra_keys)
        new = self.blocks_for(len(token_ids)) - len(hits)
        need = new
        for block in hits:
            if self.pool.ref_count(block) == 0:
                need += 1
        if need > self.pool.num_free_blocks():
            raise OutOfBlocksError("not enough blocks for this prompt")
        self.pool.touch(hits)
        table = list(hits)
        for _ in range(new):
            table += self.pool.get_new_blocks(1)
        self.tokens[request_id] = list(token_ids)
        self.extras[request_id] = list(extra_keys)
        self.tables[request_id] = table
        for number in range(len(hits), len(table)):
            self.cache_block(request_id, number)
        self.queries += len(token_ids)
        self.hits += len(hits) * self.block_size
        return len(hits) * self.block_size

    def append(self, request_id, token_ids):
        tokens = self.tokens[request_id]
        table = self.tables[request_id]
        if len(token_ids) == 0:
            raise ValueError("token_ids must have a token")
        copy = len(tokens) % self.block_size != 0 and self.pool.ref_count(table[-1]) > 1
        need = self.blocks_for(len(tokens) + len(token_ids)) - len(table)
        if copy:
            need += 1
        if need > self.pool.num_free_blocks():
            raise OutOfBlocksError("not enough blocks for these tokens")
        copies = []
        if copy:
            old = table[-1]
            table[-1] = self.pool.get_new_blocks(1)[0]
            self.pool.free_blocks([old])
            copies.append((old, table[-1]))
        for token in token_ids:
            if len(tokens) == len(table) * self.block_size:
                table.append(self.pool.get_new_blocks(1)[0])
            tokens.append(token)
            if len(tokens) % self.block_size == 0:
                self.cache_block(request_id, len(tokens) // self.block_size - 1)
        return copies

    def fork(self, parent_id, child_id):
        if parent_id not in self.tokens:
            raise KeyError(parent_id)
        if child_id in self.tokens:
            raise ValueError("this request is there already")
        self.pool.touch(self.tables[parent_id])
        self.tables[child_id] = self.tables[parent_id][:]
        self.tokens[child_id] = self.tokens[parent_id][:]
        self.extras[child_id] = self.extras[parent_id]

    def free(self, request_id):
        self.pool.free_blocks(self.tables[request_id])
        del self.tables[request_id]
        del self.tokens[request_id]
        del self.extras[request_id]

    def block_table(self, request_id):
        return [block for block in self.tables[request_id]]

    def stats(self):
        tokens = 0
        seen = []
        for request_id in self.tables:
            tokens += len(self.tokens[request_id])
            for block in self.tables[request_id]:
                if block not in seen:
                    seen.append(block)
        return {
            "requests": len(self.tables),
            "tokens": tokens,
            "blocks": len(seen),
            "queries": self.queries,
            "hits": self.hits,
        }


# %% task="PagedAttentionLayer"
class PagedAttentionLayer:
    def __init__(self, num_blocks, block_size, n_kv_heads, head_dim):
        self.block_size = block_size
        self.k = {}  # slot -> heads -> numbers
        self.v = {}

    def write(self, k, v, slot_mapping):
        k, v = k.tolist(), v.tolist()
        for i, slot in enumerate(slot_mapping.tolist()):
            if slot >= 0:
                self.k[slot] = k[i]
                self.v[slot] = v[i]

    def copy_blocks(self, copies):
        for source, target in copies:
            for place in range(self.block_size):
                for memory in (self.k, self.v):
                    if source * self.block_size + place in memory:
                        memory[target * self.block_size + place] = memory[source * self.block_size + place]

    def attend(self, q, block_tables, context_lens, scale=None):
        if scale is None:
            scale = 1 / math.sqrt(q.shape[-1])
        out = []
        for queries, table, length in zip(q.tolist(), block_tables.tolist(), context_lens.tolist()):
            slots = []
            for i in range(length):
                slots.append(table[i // self.block_size] * self.block_size + i % self.block_size)
            heads = []
            for head, query in enumerate(queries):
                kv_head = head * len(self.k[slots[0]]) // len(queries)
                keys = [self.k[slot][kv_head] for slot in slots]
                values = [self.v[slot][kv_head] for slot in slots]
                scores = [scale * sum(a * b for a, b in zip(query, key)) for key in keys]
                heads.append(weighted_sum(softmax(scores), values))
            out.append(heads)
        return torch.tensor(out, dtype=torch.float32)


# %% task="QuantizedKVLayer"
class QuantizedKVLayer:
    def __init__(self, n_kv_heads, head_dim, bits, group_size, residual_length):
        check_count(bits, "bits")
        check_count(group_size, "group_size", 1)
        check_count(residual_length, "residual_length", 1)
        if bits != 2 and bits != 4 and bits != 8:
            raise ValueError("bits must be 2, 4 or 8")
        if head_dim % group_size != 0:
            raise ValueError("group_size must divide head_dim")
        if head_dim * bits % 8 != 0:
            raise ValueError("the codes of a head must fill whole bytes")
        self.bits, self.group_size, self.residual_length = bits, group_size, residual_length
        self.n_kv_heads, self.head_dim = n_kv_heads, head_dim
        self.held = {}
        for name in ("key", "value"):
            self.held[name] = {"codes": [], "scales": [], "minima": [], "residual": []}

    def append(self, k, v):
        for name, x in (("key", k), ("value", v)):
            held = self.held[name]
            for token in x.tolist():
                held["residual"].append(token)
                if len(held["residual"]) == self.residual_length:
                    for waiting in held["residual"]:
                        self.quantise(held, waiting)
                    held["residual"] = []

    def quantise(self, held, token):
        all_codes, all_scales, all_minima = [], [], []
        for head in token:
            codes, scales, minima = [], [], []
            for start in range(0, self.head_dim, self.group_size):
                scale, low, part = encode(head[start : start + self.group_size], self.bits)
                scales.append(scale)
                minima.append(low)
                codes += part
            all_codes.append(bytes_of(codes, self.bits))
            all_scales.append(scales)
            all_minima.append(minima)
        held["codes"].append(all_codes)
        held["scales"].append(all_scales)
        held["minima"].append(all_minima)

    def restore(self, name):
        held, tokens = self.held[name], []
        for packed, scales, minima in zip(held["codes"], held["scales"], held["minima"]):
            heads = []
            for head in range(self.n_kv_heads):
                numbers = []
                for byte in packed[head]:
                    for place in range(8 // self.bits):
                        code = byte >> (8 - self.bits * (place + 1)) & 2**self.bits - 1
                        group = len(numbers) // self.group_size
                        numbers.append(minima[head][group] + scales[head][group] * code)
                heads.append(numbers)
            tokens.append(heads)
        return torch.tensor(tokens + held["residual"], dtype=torch.float32).reshape(-1, self.n_kv_heads, self.head_dim)

    def keys(self):
        return self.restore("key")

    def values(self):
        return self.restore("value")

    def state(self):
        state = {}
        groups = self.head_dim // self.group_size
        for name, held in self.held.items():
            for part, dtype, last in (
                ("codes", torch.uint8, self.head_dim * self.bits // 8),
                ("scales", torch.float16, groups),
                ("minima", torch.float16, groups),
                ("residual", torch.float32, self.head_dim),
            ):
                state[name + "_" + part] = torch.tensor(held[part], dtype=dtype).reshape(-1, self.n_kv_heads, last)
        return state

    def num_bytes(self):
        total = 0
        for tensor in self.state().values():
            total += tensor.numel() * tensor.element_size()
        return total


# %% task="sliding_window_evict"
def sliding_window_evict(positions, window, sinks=0):
    check_count(window, "window", 1)
    check_count(sinks, "sinks")
    kept = []
    for position in positions:
        if position < sinks:
            kept.append(position)
        elif positions[len(positions) - 1] - position < window - 1:
            kept.append(position)
    return kept


def evict_blocks(block_table, num_tokens, block_size, window, sinks=0):
    check_count(block_size, "block_size", 1)
    check_count(window, "window", 1)
    check_count(sinks, "sinks")
    table, freed = [], []
    for number in range(len(block_table)):
        needed = False
        for position in range(number * block_size, (number + 1) * block_size):
            if position < sinks or num_tokens - position < window or position >= num_tokens:
                needed = True
        if needed:
            table.append(block_table[number])
        else:
            table.append(0)
            if block_table[number] != 0:
                freed.append(block_table[number])
    return table, freed
