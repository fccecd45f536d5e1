"""Puts a class of its own between manager and pool that counts calls and prints, and looks at attributes by name.

twin of: V1 V6
"""

# %% helpers="helpers"
# Everything that the manager asks its pool goes through here.
from collections import Counter


class Watched:
    def __init__(self, pool):
        self.__dict__["pool"], self.__dict__["calls"] = pool, Counter()

    def __getattr__(self, name):
        method = getattr(self.pool, name)

        def call(*args, **kwargs):
            self.calls[name] += 1
            return method(*args, **kwargs)

        return call


# %% task="PagedKVCacheManager"
class PagedKVCacheManager:
    def __init__(self, pool, block_size):
        self.pool, self.size = Watched(pool), block_size
        self.tokens, self.tables, self.extra, self.seen = {}, {}, {}, Counter(queries=0, hits=0)

    def match_prefix(self, token_ids, extra_keys=()):
        found, parent = [], None
        for start in range(0, len(token_ids) - self.size, self.size):
            part = tuple(token_ids[start : start + self.size])
            if (block := self.pool.get_cached_block(parent, part, extra_keys)) is None:
                break
            found.append(block)
            parent = hash_block(parent, part, tuple(extra_keys))
        return found

    def publish(self, name, known):
        parent, tokens = None, self.tokens[name]
        for number in range(len(tokens) // self.size):
            part = tuple(tokens[number * self.size : (number + 1) * self.size])
            if number >= known:
                self.pool.cache_full_block(self.tables[name][number], parent, part, self.extra[name])
            parent = hash_block(parent, part, self.extra[name])

    def allocate(self, request_id, token_ids, extra_keys=()):
        if request_id in self.tables or not token_ids:
            raise ValueError("token_ids, or a name that is taken")
        found = self.match_prefix(token_ids, extra_keys)
        need = -(-len(token_ids) // self.size) - len(found)
        if need + [self.pool.ref_count(block) for block in found].count(0) > self.pool.num_free_blocks():
            raise OutOfBlocksError(f"no room after {self.pool.calls}")
        self.pool.touch(found)
        self.tables[request_id] = found + self.pool.get_new_blocks(need)
        self.tokens[request_id], self.extra[request_id] = list(token_ids), tuple(extra_keys)
        self.publish(request_id, len(found))
        self.seen.update(queries=len(token_ids), hits=len(found) * self.size)
        print(dict(self.pool.calls))
        return len(found) * self.size

    def append(self, request_id, token_ids):
        tokens, table = self.tokens[request_id], self.tables[request_id]
        if not token_ids:
            raise ValueError("token_ids")
        copy = len(tokens) % self.size > 0 and self.pool.ref_count(table[-1]) > 1
        new = self.pool.get_new_blocks(-(-(len(tokens) + len(token_ids)) // self.size) - len(table) + copy)
        copies = []
        if copy:
            copies = [(table[-1], new[0])]
            self.pool.free_blocks([table.pop()])
        table.extend(new)
        known = len(tokens) // self.size
        tokens.extend(token_ids)
        self.publish(request_id, known)
        return copies

    def fork(self, parent_id, child_id):
        if parent_id in self.tables and child_id in self.tables:
            raise ValueError("a name that is taken")
        self.pool.touch(self.tables[parent_id])
        for kept in (self.tokens, self.tables):
            kept[child_id] = kept[parent_id].copy()
        self.extra[child_id] = self.extra[parent_id]

    def free(self, request_id):
        self.pool.free_blocks(self.tables.pop(request_id))
        del self.tokens[request_id], self.extra[request_id]

    def block_table(self, request_id):
        return self.tables[request_id].copy()

    def stats(self):
        blocks = {block for table in self.tables.values() for block in table}
        counts = {"requests": len(self.tables), "blocks": len(blocks), "tokens": sum(map(len, self.tokens.values()))}
        return counts | dict(self.seen)
