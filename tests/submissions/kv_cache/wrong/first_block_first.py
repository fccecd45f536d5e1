"""Frees from the first block to the last: evicts the prefixes that are worth most.

fails: test_pool_frees_last_block_first test_pool_finds_prefixes test_pool_agrees_with_model
fails: test_pool_errors_change_nothing test_pool_without_caching test_pool_constant_time
"""

# %% helpers="helpers"
# Imports.
from collections import Counter, OrderedDict, defaultdict


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
        for block in block_ids:
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
