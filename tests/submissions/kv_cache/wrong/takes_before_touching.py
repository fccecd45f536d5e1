"""Takes new blocks before it touches those that it found: they may be evicted meanwhile.

fails: test_manager_agrees_with_model test_manager_needs_room_for_what_it_finds
"""


# %% task="PagedKVCacheManager"
class PagedKVCacheManager:
    def __init__(self, pool: "BlockPool | LentPool", block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size
        self._tokens: dict[Hashable, list[int]] = {}
        self._extra_keys: dict[Hashable, tuple[Hashable, ...]] = {}
        self._tables: dict[Hashable, list[int]] = {}
        self._hashes: dict[int, Hashable] = {}  # of every block that was cached last with this content
        self._queries = 0
        self._hits = 0

    def match_prefix(self, token_ids: Sequence[int], extra_keys: Sequence[Hashable] = ()) -> list[int]:
        found: list[int] = []
        parent = None
        for start in range(0, len(token_ids) - self._block_size, self._block_size):
            block = self._pool.get_cached_block(parent, token_ids[start : start + self._block_size], extra_keys)
            if block is None:
                break
            found.append(block)
            parent = self._hashes[block]
        return found

    def allocate(self, request_id: Hashable, token_ids: Sequence[int], extra_keys: Sequence[Hashable] = ()) -> int:
        if request_id in self._tables:
            raise ValueError(f"there is a request {request_id!r} already")
        if not token_ids:
            raise ValueError("token_ids must not be empty")
        found = self.match_prefix(token_ids, extra_keys)
        new = -(-len(token_ids) // self._block_size) - len(found)
        revived = sum(self._pool.ref_count(block) == 0 for block in found)
        self._require(new + revived)
        self._tokens[request_id] = list(token_ids)
        self._extra_keys[request_id] = tuple(extra_keys)
        blocks = self._pool.get_new_blocks(new)
        self._pool.touch(found)
        self._tables[request_id] = found + blocks
        self._cache(request_id, len(found))
        self._queries += len(token_ids)
        self._hits += len(found) * self._block_size
        return len(found) * self._block_size

    def append(self, request_id: Hashable, token_ids: Sequence[int]) -> list[tuple[int, int]]:
        tokens, table = self._tokens[request_id], self._tables[request_id]
        if not token_ids:
            raise ValueError("token_ids must not be empty")
        full, rest = divmod(len(tokens), self._block_size)
        shared = rest > 0 and self._pool.ref_count(table[-1]) > 1
        new = -(-(len(tokens) + len(token_ids)) // self._block_size) - len(table) + shared
        self._require(new)
        blocks = self._pool.get_new_blocks(new)
        copies = []
        if shared:
            copies.append((table[-1], blocks[0]))
            self._pool.free_blocks([table.pop()])
        table += blocks
        tokens += token_ids
        self._cache(request_id, full)
        return copies

    def fork(self, parent_id: Hashable, child_id: Hashable) -> None:
        table = self._tables[parent_id]
        if child_id in self._tables:
            raise ValueError(f"there is a request {child_id!r} already")
        self._pool.touch(table)
        self._tables[child_id] = list(table)
        self._tokens[child_id] = list(self._tokens[parent_id])
        self._extra_keys[child_id] = self._extra_keys[parent_id]

    def free(self, request_id: Hashable) -> None:
        self._pool.free_blocks(self._tables.pop(request_id))
        del self._tokens[request_id], self._extra_keys[request_id]

    def block_table(self, request_id: Hashable) -> list[int]:
        return list(self._tables[request_id])

    def stats(self) -> dict[str, int]:
        return {
            "requests": len(self._tables),
            "tokens": sum(map(len, self._tokens.values())),
            "blocks": len(set().union(*self._tables.values())),
            "queries": self._queries,
            "hits": self._hits,
        }

    def _require(self, blocks: int) -> None:
        if blocks > self._pool.num_free_blocks():
            raise OutOfBlocksError(f"{blocks} blocks are needed, {self._pool.num_free_blocks()} are free")

    def _cache(self, request_id: Hashable, first: int) -> None:
        tokens, table = self._tokens[request_id], self._tables[request_id]
        for number in range(first, len(tokens) // self._block_size):
            parent = self._hashes[table[number - 1]] if number else None
            content = tokens[number * self._block_size : (number + 1) * self._block_size]
            self._hashes[table[number]] = self._pool.cache_full_block(
                table[number], parent, content, self._extra_keys[request_id]
            )
