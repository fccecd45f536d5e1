"""Objects throughout: a cost object per layer, a plan for both capacity questions, a pool of linked block objects."""

# %% helpers="helpers"
# Imports and helpers: the two kinds of layers behind one interface, and the plan of a server's memory.
from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import field
from typing import Iterator

import torch


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


class Sequence_:
    """One request: its tokens, its blocks, and the hash of each of its full blocks."""

    def __init__(self, tokens: list[int], extra: tuple, blocks: list[int], hashes: list) -> None:
        self.tokens, self.extra, self.blocks, self.hashes = tokens, extra, blocks, hashes

    def copy(self) -> Sequence_:
        return Sequence_([*self.tokens], self.extra, [*self.blocks], [*self.hashes])

    def missing(self, more: int, block_size: int) -> int:
        """Blocks that so many more tokens need beyond those that are there."""
        room = len(self.blocks) * block_size - len(self.tokens)
        return max(0, (more - room + block_size - 1) // block_size)

    def publish(self, pool, block_size: int) -> None:
        """Cache the blocks that are full and were not before."""
        while (len(self.hashes) + 1) * block_size <= len(self.tokens):
            number = len(self.hashes)
            content = self.tokens[number * block_size : (number + 1) * block_size]
            parent = self.hashes[-1] if self.hashes else None
            self.hashes.append(pool.cache_full_block(self.blocks[number], parent, content, self.extra))


class Codec:
    """Groups of numbers to packed codes and back."""

    def __init__(self, bits: int, group_size: int) -> None:
        self.bits, self.group_size, self.top = bits, group_size, (1 << bits) - 1

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        grouped = x.reshape(*x.shape[:-1], x.shape[-1] // self.group_size, self.group_size)
        minima = grouped.min(-1).values.to(torch.float16)
        scales = ((grouped.max(-1).values - grouped.min(-1).values) / self.top).to(torch.float16)
        steps = scales.to(torch.float32)
        flat = steps == 0
        codes = torch.round((grouped - minima.to(torch.float32)[..., None]) / (steps + flat)[..., None])
        codes[flat] = 0
        codes = codes.clamp_(0, self.top).to(torch.uint8).reshape(*x.shape)
        packed = torch.zeros(*x.shape[:-1], x.shape[-1] * self.bits // 8, dtype=torch.uint8)
        per_byte = 8 // self.bits
        for place in range(per_byte):
            packed += codes[..., place::per_byte] << (8 - self.bits * (place + 1))
        return packed, scales, minima

    def decode(self, packed: torch.Tensor, scales: torch.Tensor, minima: torch.Tensor) -> torch.Tensor:
        per_byte = 8 // self.bits
        codes = torch.empty(*packed.shape[:-1], packed.shape[-1] * per_byte)
        for place in range(per_byte):
            codes[..., place::per_byte] = (packed >> (8 - self.bits * (place + 1))) & self.top
        wide = [part.to(torch.float32).repeat_interleave(self.group_size, -1) for part in (scales, minima)]
        return codes * wide[0] + wide[1]


class Half:
    """The keys, or the values, of a layer."""

    def __init__(self, codec: Codec, n_kv_heads: int, head_dim: int, residual_length: int) -> None:
        self.codec, self.residual_length = codec, residual_length
        self.residual = torch.zeros(0, n_kv_heads, head_dim)
        self.coded = self.nothing(n_kv_heads, head_dim)

    def nothing(self, n_kv_heads: int, head_dim: int) -> tuple[torch.Tensor, ...]:
        groups = torch.zeros(0, n_kv_heads, head_dim // self.codec.group_size, dtype=torch.float16)
        return torch.zeros(0, n_kv_heads, head_dim * self.codec.bits // 8, dtype=torch.uint8), groups, groups

    def append(self, x: torch.Tensor) -> None:
        for token in x:
            self.residual = torch.cat([self.residual, token[None]])
            if len(self.residual) == self.residual_length:
                self.coded = tuple(map(torch.cat, zip(self.coded, self.codec.encode(self.residual), strict=True)))
                self.residual = self.residual[:0]

    def all(self) -> torch.Tensor:
        return torch.cat([self.codec.decode(*self.coded), self.residual])

    def state(self, name: str) -> dict[str, torch.Tensor]:
        codes, scales, minima = self.coded
        return {
            f"{name}_codes": codes,
            f"{name}_scales": scales,
            f"{name}_minima": minima,
            f"{name}_residual": self.residual,
        }


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


# %% task="PagedKVCacheManager"
class PagedKVCacheManager:
    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self.pool = pool
        self.block_size = block_size
        self.sequences: dict[Hashable, Sequence_] = {}
        self.asked = 0
        self.found = 0

    def match_prefix(self, token_ids: Sequence[int], extra_keys: Sequence[Hashable] = ()) -> list[int]:
        return [block for block, _ in self.walk(list(token_ids), tuple(extra_keys))]

    def walk(self, tokens: list[int], extra: tuple) -> Iterator[tuple[int, Hashable]]:
        parent: Hashable = None
        for number in range((len(tokens) - 1) // self.block_size):
            content = tuple(tokens[number * self.block_size : (number + 1) * self.block_size])
            block = self.pool.get_cached_block(parent, content, extra)
            if block is None:
                return
            parent = hash_block(parent, content, extra)
            yield block, parent

    def allocate(self, request_id: Hashable, token_ids: Sequence[int], extra_keys: Sequence[Hashable] = ()) -> int:
        self.new(request_id)
        tokens, extra = list(token_ids), tuple(extra_keys)
        if not tokens:
            raise ValueError("token_ids: a request needs at least one token")
        hits = list(self.walk(tokens, extra))
        sequence = Sequence_([], extra, [block for block, _ in hits], [made for _, made in hits])
        idle = [block for block in sequence.blocks if self.pool.ref_count(block) == 0]
        missing = sequence.missing(len(tokens), self.block_size)
        if missing + len(idle) > self.pool.num_free_blocks():
            raise OutOfBlocksError(f"{missing} blocks and {len(idle)} idle ones are more than there are")
        self.pool.touch(sequence.blocks)
        sequence.blocks += self.pool.get_new_blocks(missing)
        sequence.tokens = tokens
        sequence.publish(self.pool, self.block_size)
        self.sequences[request_id] = sequence
        self.asked += len(tokens)
        self.found += len(hits) * self.block_size
        return len(hits) * self.block_size

    def append(self, request_id: Hashable, token_ids: Sequence[int]) -> list[tuple[int, int]]:
        sequence = self.sequences[request_id]
        if len(token_ids) == 0:
            raise ValueError("token_ids: nothing to append")
        missing = sequence.missing(len(token_ids), self.block_size)
        partial = len(sequence.tokens) < len(sequence.blocks) * self.block_size
        must_copy = partial and self.pool.ref_count(sequence.blocks[-1]) >= 2
        if missing + must_copy > self.pool.num_free_blocks():
            raise OutOfBlocksError("no room to grow")
        copies = []
        if must_copy:
            old, (new,) = sequence.blocks[-1], self.pool.get_new_blocks(1)
            self.pool.free_blocks([old])
            sequence.blocks[-1] = new
            copies = [(old, new)]
        if missing:
            sequence.blocks += self.pool.get_new_blocks(missing)
        sequence.tokens += token_ids
        sequence.publish(self.pool, self.block_size)
        return copies

    def new(self, request_id: Hashable) -> None:
        if request_id in self.sequences:
            raise ValueError(f"{request_id!r} is taken")

    def fork(self, parent_id: Hashable, child_id: Hashable) -> None:
        parent = self.sequences[parent_id]
        self.new(child_id)
        for block in parent.blocks:
            self.pool.touch([block])
        self.sequences[child_id] = parent.copy()

    def free(self, request_id: Hashable) -> None:
        blocks = self.sequences[request_id].blocks
        del self.sequences[request_id]
        for block in reversed(blocks):
            self.pool.free_blocks([block])

    def block_table(self, request_id: Hashable) -> list[int]:
        return self.sequences[request_id].blocks.copy()

    def stats(self) -> dict[str, int]:
        held: set[int] = set()
        for sequence in self.sequences.values():
            held.update(sequence.blocks)
        return {
            "requests": len(self.sequences),
            "tokens": sum(len(sequence.tokens) for sequence in self.sequences.values()),
            "blocks": len(held),
            "queries": self.asked,
            "hits": self.found,
        }


# %% task="PagedAttentionLayer"
class PagedAttentionLayer:
    def __init__(self, num_blocks: int, block_size: int, n_kv_heads: int, head_dim: int) -> None:
        self.k = [torch.zeros(block_size, n_kv_heads, head_dim) for _ in range(num_blocks)]
        self.v = [torch.zeros(block_size, n_kv_heads, head_dim) for _ in range(num_blocks)]
        self.block_size = block_size

    def write(self, k: torch.Tensor, v: torch.Tensor, slot_mapping: torch.Tensor) -> None:
        for token, slot in enumerate(slot_mapping.tolist()):
            if slot >= 0:
                block, place = divmod(slot, self.block_size)
                self.k[block][place] = k[token]
                self.v[block][place] = v[token]

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        for source, target in copies:
            self.k[target] = self.k[source].clone()
            self.v[target] = self.v[source].clone()

    def attend(
        self, q: torch.Tensor, block_tables: torch.Tensor, context_lens: torch.Tensor, scale: float | None = None
    ) -> torch.Tensor:
        out = torch.empty_like(q)
        for row in range(len(q)):
            length = int(context_lens[row])
            blocks = block_tables[row, : (length + self.block_size - 1) // self.block_size].tolist()
            k = torch.cat([self.k[block] for block in blocks])[:length]
            v = torch.cat([self.v[block] for block in blocks])[:length]
            share = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
            scores = (q[row] * k).sum(-1) * (scale if scale is not None else 1 / q.shape[-1] ** 0.5)
            out[row] = (torch.softmax(scores, dim=0).unsqueeze(-1) * v).sum(0)
        return out


# %% task="QuantizedKVLayer"
class QuantizedKVLayer:
    def __init__(self, n_kv_heads: int, head_dim: int, bits: int, group_size: int, residual_length: int) -> None:
        quantization = Quantization(bits, group_size, scale_bytes=2, zero_point_bytes=2)
        AttentionLayer(n_kv_heads, n_kv_heads, head_dim, quantization=quantization)
        check_count(residual_length, "residual_length", 1)
        codec = Codec(bits, group_size)
        self.k, self.v = (Half(codec, n_kv_heads, head_dim, residual_length) for _ in range(2))

    def append(self, k: torch.Tensor, v: torch.Tensor) -> None:
        self.k.append(k)
        self.v.append(v)

    def keys(self) -> torch.Tensor:
        return self.k.all()

    def values(self) -> torch.Tensor:
        return self.v.all()

    def state(self) -> dict[str, torch.Tensor]:
        return self.k.state("key") | self.v.state("value")

    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.itemsize for tensor in self.state().values())


# %% task="sliding_window_evict"
def sliding_window_evict(positions: Sequence[int], window: int, sinks: int = 0) -> list[int]:
    check_count(window, "window", 1)
    check_count(sinks, "sinks", 0)
    kept: list[int] = []
    if positions:
        following = positions[-1] + 1
        for position in positions:
            if position < sinks or following - position <= window - 1:
                kept.append(position)
    return kept


def evict_blocks(
    block_table: Sequence[int], num_tokens: int, block_size: int, window: int, sinks: int = 0
) -> tuple[list[int], list[int]]:
    check_count(block_size, "block_size", 1)
    stay = set(sliding_window_evict(range(num_tokens), window, sinks)) | {num_tokens}
    blocks_that_stay = {position // block_size for position in stay}
    table, freed = [], []
    for number, block in enumerate(block_table):
        if number in blocks_that_stay:
            table.append(block)
        else:
            table.append(0)
            if block:
                freed.append(block)
    return table, freed
