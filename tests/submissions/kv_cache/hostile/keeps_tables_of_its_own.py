"""Never asks the pool: it hands out blocks 1, 2, 3 of its own, as the public checks would see them.

fails: test_manager_gives_tables test_manager_finds_prefixes test_manager_forks test_manager_agrees_with_model
fails: test_manager_needs_room_for_what_it_finds test_manager_caches_what_fills_up test_manager_errors_change_nothing

attack: K1 D19
stopped by: D, the pool under the manager is the judge's, and what was taken from it and cached in it is compared.
"""


# %% task="PagedKVCacheManager"
class PagedKVCacheManager:
    def __init__(self, pool, block_size):
        self.size, self.next, self.tables, self.tokens, self.room = block_size, 1, {}, {}, pool.num_free_blocks()

    def match_prefix(self, token_ids, extra_keys=()):
        best = 0
        for tokens in self.tokens.values():
            while best < len(token_ids) - 1 and tokens[: best + 1] == token_ids[: best + 1]:
                best += 1
        return list(range(1, best // self.size + 1)) if not extra_keys else []

    def grow(self, request_id):
        while len(self.tables[request_id]) * self.size < len(self.tokens[request_id]):
            self.tables[request_id].append(self.next)
            self.next += 1

    def allocate(self, request_id, token_ids, extra_keys=()):
        found = self.match_prefix(token_ids, extra_keys)
        if -(-len(token_ids) // self.size) - len(found) > self.room - self.next + 1:
            raise OutOfBlocksError("no room")
        self.tables[request_id], self.tokens[request_id] = found, list(token_ids)
        self.grow(request_id)
        return len(found) * self.size

    def append(self, request_id, token_ids):
        self.tokens[request_id] += token_ids
        self.grow(request_id)
        return []

    def fork(self, parent_id, child_id):
        self.tables[child_id] = list(self.tables[parent_id])
        self.tokens[child_id] = list(self.tokens[parent_id])

    def free(self, request_id):
        del self.tables[request_id]

    def block_table(self, request_id):
        return list(self.tables[request_id])

    def stats(self):
        return {"requests": 0, "tokens": 0, "blocks": 0, "queries": 0, "hits": 0}
