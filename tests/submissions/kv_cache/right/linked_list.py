"""Objects throughout: a cost object per layer, a plan for both capacity questions, a pool of linked block objects."""

# %% helpers="helpers"
# Imports and helpers: the two kinds of layers behind one interface, and the plan of a server's memory.
from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import field
from typing import Iterator


class Storage(ABC):
    """What one layer of one rank stores."""

    def __init__(self, layer, tp: int) -> None:
        if layer.n_heads % tp > 0:
            raise ValueError(f"tp must divide the number of heads ({layer.n_heads}), got {tp}")
        self.layer = layer
        self.tp = tp

    @abstractmethod
    def per_token(self) -> int: ...

    def window(self) -> int | None:
        return None

    def contiguous(self, tokens: int) -> int:
        window = self.window()
        kept = tokens if window is None or tokens < window else window - 1
        return kept * self.per_token()

    def paged(self, tokens: int, block_size: int) -> int:
        full, rest = divmod(tokens, block_size)
        blocks = full + bool(rest)
        window = self.window()
        if window is not None:
            blocks = min(blocks, (window + block_size - 1) // block_size + 1)
        return blocks * block_size * self.per_token()


class LatentStorage(Storage):
    def per_token(self) -> int:
        return self.layer.dtype_bytes * self.layer.kv_lora_rank + self.layer.dtype_bytes * self.layer.qk_rope_head_dim


class HeadStorage(Storage):
    def window(self) -> int | None:
        return self.layer.window

    def local_heads(self) -> int:
        heads = self.layer.n_kv_heads
        if heads >= self.tp and heads % self.tp == 0:
            return heads // self.tp
        if self.tp > heads and self.tp % heads == 0:
            return 1
        raise ValueError(f"tp={self.tp} and {heads} KV heads: neither is a multiple of the other")

    def vector_bytes(self, numbers: int) -> int:
        quantization = self.layer.quantization
        if quantization is None:
            return numbers * self.layer.dtype_bytes
        bits = numbers * quantization.bits
        bits += 8 * (numbers // quantization.group_size) * quantization.scale_bytes
        bits += 8 * (numbers // quantization.group_size) * quantization.zero_point_bytes
        return bits // 8

    def per_token(self) -> int:
        return self.local_heads() * (
            self.vector_bytes(self.layer.head_dim) + self.vector_bytes(self.layer.value_head_dim)
        )


def storages(spec, tp: int) -> list[Storage]:
    check_count(tp, "tp", 1)
    return [(LatentStorage if isinstance(layer, LatentLayer) else HeadStorage)(layer, tp) for layer in spec.layers]


class Plan:
    """Pages of a server: how many there are and how many a request needs."""

    def __init__(self, spec, budget, block_size: int, tp: int) -> None:
        check_count(block_size, "block_size", 1)
        self.storages = storages(spec, tp)
        self.block_size = block_size
        self.page_bytes = block_size * sum(storage.per_token() for storage in self.storages)
        self.bytes = int(budget.total_bytes * budget.utilization)
        self.bytes -= budget.weight_bytes + budget.peak_activation_bytes

    @property
    def pages(self) -> int:
        return max(0, self.bytes) // self.page_bytes

    def pages_per_request(self, tokens: int) -> int:
        need = sum(storage.paged(tokens, self.block_size) for storage in self.storages)
        return (need + self.page_bytes - 1) // self.page_bytes


@dataclass(eq=False)
class Block:
    """A block, and its neighbours in the free queue while it is in it."""

    number: int
    holders: int = 0
    content: tuple | None = None
    before: Block | None = field(default=None, repr=False)
    after: Block | None = field(default=None, repr=False)


class FreeQueue:
    """A doubly linked list with a sentinel at either end."""

    def __init__(self, blocks) -> None:
        self.head, self.tail, self.length = Block(-1), Block(-2), 0
        self.head.after, self.tail.before = self.tail, self.head
        for block in blocks:
            self.append(block)

    def append(self, block: Block) -> None:
        last = self.tail.before
        last.after, block.before, block.after, self.tail.before = block, last, self.tail, block
        self.length += 1

    def remove(self, block: Block) -> None:
        block.before.after, block.after.before = block.after, block.before
        block.before = block.after = None
        self.length -= 1

    def take(self) -> Block:
        first = self.head.after
        self.remove(first)
        return first


# %% task="kv_bytes_per_token"
def kv_bytes_per_token(spec: KVSpec, tp: int = 1) -> int:
    return sum(storage.per_token() for storage in storages(spec, tp))


# %% task="kv_cache_bytes"
def kv_cache_bytes(spec: KVSpec, seq_lens: Sequence[int], block_size: int | None = None, tp: int = 1) -> int:
    if block_size is not None:
        check_count(block_size, "block_size", 1)
    total = 0
    layers = storages(spec, tp)
    for tokens in seq_lens:
        check_count(tokens, "seq_lens", 0)
        for storage in layers:
            total += storage.contiguous(tokens) if block_size is None else storage.paged(tokens, block_size)
    return total


# %% task="max_concurrency"
def max_concurrency(spec: KVSpec, budget: MemoryBudget, max_model_len: int, block_size: int, tp: int = 1) -> float:
    check_count(max_model_len, "max_model_len", 1)
    plan = Plan(spec, budget, block_size, tp)
    if plan.pages == 0:
        missing = plan.page_bytes - plan.bytes
        raise InfeasibleError(f"{missing} bytes are missing to the first page", missing)
    return plan.pages / plan.pages_per_request(max_model_len)


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(
    spec: KVSpec, budget: MemoryBudget, concurrency: int, block_size: int, limit: int, tp: int = 1
) -> int:
    check_count(concurrency, "concurrency", 1)
    check_count(limit, "limit", 1)
    plan = Plan(spec, budget, block_size, tp)
    share = plan.pages // concurrency
    # Gallop in powers of two, downwards from the highest bit of the limit.
    longest = 0
    for bit in reversed(range(limit.bit_length())):
        longer = longest | 1 << bit
        if longer <= limit and plan.pages_per_request(longer) <= share:
            longest = longer
    return longest


# %% task="BlockPool"
class BlockPool:
    def __init__(
        self, num_blocks: int, block_size: int, enable_caching: bool = True, hash_fn: HashFunction = hash_block
    ) -> None:
        check_count(num_blocks, "num_blocks", 2)
        check_count(block_size, "block_size", 1)
        self.block_size = block_size
        self.enable_caching = enable_caching
        self.hash_fn = hash_fn
        self.blocks = {number: Block(number) for number in range(num_blocks)}
        self.null = self.blocks[0]
        self.free = FreeQueue(self.blocks[number] for number in range(1, num_blocks))
        self.index: dict[Hashable, list[Block]] = {}

    def __len__(self) -> int:
        return len(self.blocks) - 1

    def real(self, block_id: int) -> Block:
        block = self.blocks[block_id]
        if block is self.null:
            raise ValueError("block 0 is a place-holder")
        return block

    def evict(self, block: Block) -> None:
        if block.content is None:
            return
        twins = self.index[block.content[0]]
        twins.remove(block)
        if not twins:
            del self.index[block.content[0]]
        block.content = None

    def get_new_blocks(self, n: int) -> list[int]:
        check_count(n, "n")
        if self.free.length < n:
            raise OutOfBlocksError(f"need {n} blocks, have {self.free.length}")
        taken = [self.free.take() for _ in range(n)]
        for block in taken:
            self.evict(block)
            block.holders = 1
        return [block.number for block in taken]

    def touch(self, block_ids: Sequence[int]) -> None:
        blocks = [self.real(block_id) for block_id in block_ids]
        if any(block.holders == 0 and block.content is None for block in blocks):
            raise ValueError("a block without holders and content cannot be shared")
        for block in blocks:
            if block.holders == 0:
                self.free.remove(block)
            block.holders += 1

    def free_blocks(self, block_ids: Sequence[int]) -> None:
        blocks = [self.real(block_id) for block_id in block_ids]
        done: list[Block] = []
        for block in blocks:
            if block.holders == 0:
                for undo in done:
                    undo.holders += 1
                raise ValueError(f"block {block.number} is freed more often than it is held")
            block.holders -= 1
            done.append(block)
        placed: set[int] = set()
        # A block that stands twice is let go for good where it stands first in the list.
        last: list[Block] = []
        for block in blocks:
            if block.holders == 0 and block.number not in placed:
                placed.add(block.number)
                last.append(block)
        for block in reversed(last):
            self.free.append(block)

    def cache_full_block(
        self, block_id: int, parent_hash: Hashable, token_ids: Sequence[int], extra_keys: Sequence[Hashable] = ()
    ) -> Hashable:
        block = self.real(block_id)
        if block.holders < 1:
            raise ValueError(f"{block} is free")
        if block.content is not None:
            raise ValueError(f"{block} has its content already")
        if len(token_ids) != self.block_size:
            raise ValueError(f"token_ids: {len(token_ids)} instead of {self.block_size}")
        key = (parent_hash, tuple(token_ids), tuple(extra_keys))
        value = self.hash_fn(*key)
        if self.enable_caching:
            block.content = (value, key)
            self.index.setdefault(value, []).append(block)
        return value

    def matches(self, key: tuple) -> Iterator[Block]:
        for block in self.index.get(self.hash_fn(*key), ()):
            if block.content[1] == key:
                yield block

    def get_cached_block(
        self, parent_hash: Hashable, token_ids: Sequence[int], extra_keys: Sequence[Hashable] = ()
    ) -> int | None:
        for block in self.matches((parent_hash, tuple(token_ids), tuple(extra_keys))):
            return block.number
        return None

    def reset(self) -> bool:
        if self.free.length < len(self):
            return False
        self.index.clear()
        for block in self.blocks.values():
            block.content = None
        return True

    def usage(self) -> float:
        return (len(self) - self.free.length) / len(self)

    def num_free_blocks(self) -> int:
        return self.free.length

    def ref_count(self, block_id: int) -> int:
        return self.blocks[block_id].holders
