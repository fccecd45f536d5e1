"""Solved by somebody who had nothing but the handout and the public checks."""

# %% helpers="helpers"
# Your imports and helpers. Everything that several tasks share goes here; this cell is graded together with them.
import math
from collections import Counter, OrderedDict

import torch


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def layer_bytes(layer: AttentionLayer | LatentLayer, tp: int) -> int:
    """Bytes per token of one layer on one of `tp` ranks."""
    if layer.n_heads % tp:
        raise ValueError(f"tp={tp} does not divide {layer.n_heads} heads")
    if isinstance(layer, LatentLayer):
        return (layer.kv_lora_rank + layer.qk_rope_head_dim) * layer.dtype_bytes
    heads = layer.n_kv_heads
    if heads % tp and tp % heads:
        raise ValueError(f"{heads} KV heads cannot be spread over tp={tp} ranks")
    per_head = 0
    for dim in (layer.head_dim, layer.value_head_dim):
        if (coding := layer.quantization) is None:
            per_head += dim * layer.dtype_bytes
        else:
            per_head += dim * coding.bits // 8
            per_head += dim // coding.group_size * (coding.scale_bytes + coding.zero_point_bytes)
    return max(1, heads // tp) * per_head


def tokens_held(length: int, window: int | None, block_size: int | None) -> int:
    """Tokens for which a layer has room when a sequence has `length`."""
    if block_size is None:
        return length if window is None else min(length, window - 1)
    blocks = ceil_div(length, block_size)
    if window is not None:
        blocks = min(blocks, ceil_div(window, block_size) + 1)
    return blocks * block_size


def budget_bytes(budget: MemoryBudget) -> int:
    """What is left for the KV cache; may be negative."""
    usable = math.floor(budget.total_bytes * budget.utilization)
    return usable - budget.weight_bytes - budget.peak_activation_bytes


@dataclass
class Request:
    """What the manager knows of a request; `hashes` are those of its full blocks."""

    tokens: list[int]
    table: list[int]
    hashes: list[Hashable]
    extra_keys: tuple[Hashable, ...]


PARTS = {"codes": torch.uint8, "scales": torch.float16, "minima": torch.float16, "residual": torch.float32}


def quantize(x: torch.Tensor, bits: int, group_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Packed codes, scales and minima of `x`, `[tokens, heads, head_dim]`."""
    tokens, heads, dim = x.shape
    top = 2**bits - 1
    groups = x.reshape(tokens, heads, dim // group_size, group_size)
    low, high = groups.amin(dim=-1), groups.amax(dim=-1)
    minima, scales = low.half(), ((high - low) / top).half()
    m, s = minima.float()[..., None], scales.float()[..., None]
    codes = ((groups - m) / torch.where(s == 0, 1.0, s)).round().clamp(0, top)
    codes = torch.where(s == 0, 0.0, codes).to(torch.uint8).reshape(tokens, heads, dim * bits // 8, 8 // bits)
    return (codes << shifts(bits)).sum(dim=-1, dtype=torch.uint8), scales, minima


def shifts(bits: int) -> torch.Tensor:
    """How far each code of a byte is shifted: the first stands highest."""
    return torch.arange(8 - bits, -1, -bits, dtype=torch.uint8)


def restore(codes: torch.Tensor, scales: torch.Tensor, minima: torch.Tensor, bits: int) -> torch.Tensor:
    """What `quantize` made, as numbers."""
    plain = (codes[..., None] >> shifts(bits)) & (2**bits - 1)
    groups = plain.float().reshape(*scales.shape, -1) if codes.numel() else plain.float().reshape(*scales.shape, 0)
    restored = minima.float()[..., None] + scales.float()[..., None] * groups
    return restored.reshape(*codes.shape[:2], codes.shape[2] * 8 // bits)


# %% task="kv_bytes_per_token"
def kv_bytes_per_token(spec: KVSpec, tp: int = 1) -> int:
    """Bytes that one more token writes to the KV cache of one rank, summed over all layers.

    Args:
        spec: the layers of the model. They may differ.
        tp: number of ranks of tensor parallelism, at least 1.

    Raises:
        TypeError: `tp` is a bool or no int. The text names `tp`.
        ValueError: `tp` is below 1, or the heads of some layer cannot be spread over `tp` ranks: `tp` must divide
            `n_heads`, and must divide `n_kv_heads` or be a multiple of it. The text names `tp`.
    """
    check_count(tp, "tp", 1)
    return sum(layer_bytes(layer, tp) for layer in spec.layers)


# %% task="kv_cache_bytes"
def kv_cache_bytes(spec: KVSpec, seq_lens: Sequence[int], block_size: int | None = None, tp: int = 1) -> int:
    """Bytes that the KV cache of `seq_lens` occupies on one rank.

    Args:
        spec: the layers of the model. They may differ; some may have a window.
        seq_lens: tokens of each sequence, 0 or more: a list, a tuple or another sequence of Python ints (`check_count`
            refuses numpy's). Empty: 0 bytes. Not changed.
        block_size: tokens per block, at least 1; `None` for a contiguous cache.
        tp: as in `kv_bytes_per_token`.

    Raises:
        TypeError: a length, `block_size` or `tp` is a bool or no int. The text names `seq_lens`, `block_size` or `tp`.
        ValueError: a length is negative, `block_size` below 1, `tp` impossible. The text names it.
    """
    check_count(tp, "tp", 1)
    if block_size is not None:
        check_count(block_size, "block_size", 1)
    for length in seq_lens:
        check_count(length, "seq_lens")
    total = 0
    for layer, times in Counter(spec.layers).items():
        window = getattr(layer, "window", None)
        tokens = sum(tokens_held(length, window, block_size) for length in seq_lens)
        total += times * tokens * layer_bytes(layer, tp)
    return total


# %% task="max_concurrency"
def max_concurrency(spec: KVSpec, budget: MemoryBudget, max_model_len: int, block_size: int, tp: int = 1) -> float:
    """How many requests of `max_model_len` tokens the memory of one rank holds at once; not rounded, may be below 1.

    Args:
        spec: the layers of the model.
        budget: the memory of one rank.
        max_model_len: tokens of each request, at least 1.
        block_size: tokens per block, at least 1. `None` is a `TypeError` here.
        tp: as in `kv_bytes_per_token`; `budget` is that of one of these ranks.

    Raises:
        InfeasibleError: not one page fits; its `shortfall_bytes` is page bytes minus budget bytes.
        TypeError, ValueError: an argument is wrong, as in `kv_cache_bytes`, also where not one page fits. The text
            names `max_model_len`, `block_size` or `tp`.
    """
    check_count(max_model_len, "max_model_len", 1)
    check_count(block_size, "block_size", 1)
    page = block_size * kv_bytes_per_token(spec, tp)
    left = budget_bytes(budget)
    if left < page:
        raise InfeasibleError(f"a page has {page} bytes, {page - left} are missing", page - left)
    return left // page / ceil_div(kv_cache_bytes(spec, [max_model_len], block_size, tp), page)


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(
    spec: KVSpec, budget: MemoryBudget, concurrency: int, block_size: int, limit: int, tp: int = 1
) -> int:
    """The largest number of tokens, at most `limit`, that each of `concurrency` requests can have at once; 0 if none.

    Looks at about log2(`limit`) lengths.

    Args:
        spec: the layers of the model.
        budget: the memory of one rank.
        concurrency: requests at once, at least 1.
        block_size: tokens per block, at least 1. `None` is a `TypeError` here.
        limit: the largest answer that is of interest, at least 1.
        tp: as in `kv_bytes_per_token`.

    Raises:
        TypeError, ValueError: an argument is wrong, as in `kv_cache_bytes`, also where nothing fits. The text names
            `concurrency`, `block_size`, `limit` or `tp`.
    """
    check_count(concurrency, "concurrency", 1)
    check_count(block_size, "block_size", 1)
    check_count(limit, "limit", 1)
    page = block_size * kv_bytes_per_token(spec, tp)
    num_blocks = budget_bytes(budget) // page
    low, high = 0, limit  # low fits, everything above high does not
    while low < high:
        middle = (low + high + 1) // 2
        if concurrency * ceil_div(kv_cache_bytes(spec, [middle], block_size, tp), page) <= num_blocks:
            low = middle
        else:
            high = middle - 1
    return low


# %% task="BlockPool"
class BlockPool:
    """Hands out the blocks of a paged KV cache, counts who holds them, and finds them again by their content.

    Args:
        num_blocks: blocks in all, the null block 0 included; at least 2.
        block_size: tokens per block; at least 1.
        enable_caching: if false, nothing is ever cached or found.
        hash_fn: called as `hash_fn(parent_hash, token_ids, extra_keys)`, the last two as tuples, once per call of
            `cache_full_block` and at most once per call of `get_cached_block`. Different blocks may have the same hash.

    Raises:
        TypeError, ValueError: `num_blocks` or `block_size` is no int or too small. The text names it.
    """

    def __init__(
        self, num_blocks: int, block_size: int, enable_caching: bool = True, hash_fn: HashFunction = hash_block
    ) -> None:
        check_count(num_blocks, "num_blocks", 2)
        check_count(block_size, "block_size", 1)
        self._block_size = block_size
        self._enable_caching = enable_caching
        self._hash_fn = hash_fn
        self._holders = [0] * num_blocks
        self._free = OrderedDict.fromkeys(range(1, num_blocks))  # head first
        self._cached = {}  # block -> (hash, content)
        self._found = {}  # hash -> {block: content}, in the order in which they were cached

    def get_new_blocks(self, n: int) -> list[int]:
        """Take `n` blocks from the head of the free queue, in its order. Cached ones are evicted; each gets count 1.

        Raises:
            OutOfBlocksError: fewer than `n` are free. Nothing has changed then.
            TypeError, ValueError: `n` is no int or negative. The text names `n`.
        """
        check_count(n, "n")
        if n > len(self._free):
            raise OutOfBlocksError(f"{n} blocks were asked for, {len(self._free)} are free")
        blocks = [self._free.popitem(last=False)[0] for _ in range(n)]
        for block in blocks:
            self._evict(block)
            self._holders[block] = 1
        return blocks

    def touch(self, block_ids: Sequence[int]) -> None:
        """Add one holder to each block; a cached block that had none leaves the free queue.

        An id that stands twice gets two holders.

        Raises:
            KeyError: there is no such block.
            ValueError: the null block, or a block that has no holder and is not cached (its content is gone).
                If both apply, either. Nothing has changed then.
        """
        for block in block_ids:
            self._check_block(block)
            if not self._holders[block] and block not in self._cached:
                raise ValueError(f"block {block} has no holder and is not cached")
        for block in block_ids:
            if not self._holders[block]:
                del self._free[block]
            self._holders[block] += 1

    def free_blocks(self, block_ids: Sequence[int]) -> None:
        """Take one holder from each block, from the last to the first.

        A block that has no holder any more joins the tail of the free queue; if it is cached, it stays so. An id that
        stands twice loses two holders.

        Raises:
            KeyError: there is no such block.
            ValueError: the null block, or a block freed more often than it is held.
                If both apply, either. Nothing has changed then.
        """
        for block in block_ids:
            self._check_block(block)
        for block, times in Counter(block_ids).items():
            if times > self._holders[block]:
                raise ValueError(f"block {block} has {self._holders[block]} holders, {times} cannot leave")
        for block in reversed(block_ids):
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free[block] = None

    def cache_full_block(
        self, block_id: int, parent_hash: Hashable, token_ids: Sequence[int], extra_keys: Sequence[Hashable] = ()
    ) -> Hashable:
        """Make a full block findable by its content, and return its hash: the `parent_hash` of the block after it.

        With `enable_caching=False` the arguments are checked and the hash is returned, but nothing is kept.

        Args:
            block_id: a block that is in use.
            parent_hash: hash of the block before it in its sequence; `None` for the first.
            token_ids: the tokens in it, exactly `block_size` of them. They are ints; you need not check that.
            extra_keys: whatever else must be equal for the block to be used again.

        Raises:
            KeyError: there is no such block.
            ValueError: the null block, a block without holders, one that is cached already, or one that is not full
                (the text names `token_ids`). Nothing has changed then.
        """
        self._check_block(block_id)
        if not self._holders[block_id]:
            raise ValueError(f"block {block_id} has no holder")
        if block_id in self._cached:
            raise ValueError(f"block {block_id} is cached already")
        content = (parent_hash, tuple(token_ids), tuple(extra_keys))
        if len(content[1]) != self._block_size:
            raise ValueError(f"token_ids must be {self._block_size} tokens, not {len(content[1])}")
        key = self._hash_fn(*content)
        if self._enable_caching:
            self._cached[block_id] = (key, content)
            self._found.setdefault(key, {})[block_id] = content
        return key

    def get_cached_block(
        self, parent_hash: Hashable, token_ids: Sequence[int], extra_keys: Sequence[Hashable] = ()
    ) -> int | None:
        """The block with this content, in use or not; `None` if there is none. Changes nothing.

        Parent, tokens and extra keys must all be those that were cached; an equal hash is not enough. Of several such
        blocks, the one that was cached first. A wrong number of tokens is no error: no such block was ever cached, so
        the answer is `None`.
        """
        content = (parent_hash, tuple(token_ids), tuple(extra_keys))
        if not self._enable_caching or len(content[1]) != self._block_size:
            return None
        for block, cached in self._found.get(self._hash_fn(*content), {}).items():
            if cached == content:
                return block
        return None

    def reset(self) -> bool:
        """Forget everything that is cached and return True; while any block is in use, do nothing and return False.

        The free queue stays as it is.
        """
        if len(self._free) < len(self._holders) - 1:
            return False
        self._cached.clear()
        self._found.clear()
        return True

    def usage(self) -> float:
        """Share of the blocks that are in use, 0.0 to 1.0; the null block does not count."""
        blocks = len(self._holders) - 1
        return (blocks - len(self._free)) / blocks

    def num_free_blocks(self) -> int:
        """Blocks that `get_new_blocks` could hand out now."""
        return len(self._free)

    def ref_count(self, block_id: int) -> int:
        """How many holders a block has; 0 for the null block. `KeyError` if there is no such block."""
        if not 0 <= block_id < len(self._holders):
            raise KeyError(f"there is no block {block_id}")
        return self._holders[block_id]

    def _check_block(self, block_id: int) -> None:
        """Raise unless it is a block other than the null block."""
        if not 0 <= block_id < len(self._holders):
            raise KeyError(f"there is no block {block_id}")
        if block_id == 0:
            raise ValueError("block 0 is the null block")

    def _evict(self, block_id: int) -> None:
        """Forget what is in a block, if it is cached."""
        if block_id in self._cached:
            key, _ = self._cached.pop(block_id)
            del self._found[key][block_id]
            if not self._found[key]:
                del self._found[key]


# %% task="PagedKVCacheManager"
class PagedKVCacheManager:
    """Keeps the tokens and the block table of each request, on top of a block pool.

    Args:
        pool: a new `BlockPool` with the default `hash_fn`, or a `LentPool`. Nobody else takes blocks from it.
        block_size: tokens per block, that of the pool.
    """

    def __init__(self, pool: "BlockPool | LentPool", block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size
        self._requests = {}  # id -> Request
        self._queries = 0
        self._hits = 0

    def match_prefix(self, token_ids: Sequence[int], extra_keys: Sequence[Hashable] = ()) -> list[int]:
        """The cached blocks with which a request of these tokens could begin, in order. Changes nothing.

        The last token is never among what is found. No tokens: `[]`.
        """
        return [block for block, _ in self._match(tuple(token_ids), tuple(extra_keys))]

    def _match(self, tokens: tuple[int, ...], extra_keys: tuple[Hashable, ...]) -> list[tuple[int, Hashable]]:
        """The cached blocks of a prompt, each with its hash."""
        size, found, parent = self._block_size, [], None
        for start in range(0, (len(tokens) - 1) // size * size, size):
            content = tokens[start : start + size]
            block = self._pool.get_cached_block(parent, content, extra_keys)
            if block is None:
                break
            parent = hash_block(parent, content, extra_keys)
            found.append((block, parent))
        return found

    def _take(self, n: int) -> list[int]:
        """New blocks, or OutOfBlocksError."""
        if n > self._pool.num_free_blocks():
            raise OutOfBlocksError(f"{n} blocks are needed, {self._pool.num_free_blocks()} are free")
        return self._pool.get_new_blocks(n) if n else []

    def _cache_full(self, request: Request) -> None:
        """Make the blocks findable that have become full."""
        size = self._block_size
        for index in range(len(request.hashes), len(request.tokens) // size):
            parent = request.hashes[-1] if request.hashes else None
            content = tuple(request.tokens[index * size : (index + 1) * size])
            request.hashes.append(self._pool.cache_full_block(request.table[index], parent, content, request.extra_keys))

    def allocate(self, request_id: Hashable, token_ids: Sequence[int], extra_keys: Sequence[Hashable] = ()) -> int:
        """Admit a request with its prompt, and return how many of its tokens were found in the cache.

        Raises:
            OutOfBlocksError: there is no room. Nothing has changed then, the free queue included.
            ValueError: there is such a request already; or no tokens (the text names `token_ids`). Nothing has changed.
        """
        tokens, extra_keys = tuple(token_ids), tuple(extra_keys)
        if request_id in self._requests:
            raise ValueError(f"there is a request {request_id!r} already")
        if not tokens:
            raise ValueError("token_ids must not be empty")
        matched = self._match(tokens, extra_keys)
        found = [block for block, _ in matched]
        new = ceil_div(len(tokens), self._block_size) - len(found)
        revived = sum(self._pool.ref_count(block) == 0 for block in found)
        if new + revived > self._pool.num_free_blocks():
            raise OutOfBlocksError(f"{new + revived} blocks are needed, {self._pool.num_free_blocks()} are free")
        if found:
            self._pool.touch(found)
        table = found + self._take(new)
        request = Request(list(tokens), table, [key for _, key in matched], extra_keys)
        self._cache_full(request)
        self._requests[request_id] = request
        hits = len(found) * self._block_size
        self._queries += len(tokens)
        self._hits += hits
        return hits

    def append(self, request_id: Hashable, token_ids: Sequence[int]) -> list[tuple[int, int]]:
        """Add tokens to a request, and return the copies `(from, to)` that must be made before they are written.

        If a copy is needed, it goes to the first of the new blocks. There is never more than one.

        Raises:
            OutOfBlocksError: there is no room. Nothing has changed then.
            KeyError: there is no such request.
            ValueError: no tokens (the text names `token_ids`).
        """
        request, tokens = self._requests[request_id], list(token_ids)
        if not tokens:
            raise ValueError("token_ids must not be empty")
        table = request.table
        partly = len(request.tokens) % self._block_size != 0
        copy = partly and self._pool.ref_count(table[-1]) > 1
        needed = ceil_div(len(request.tokens) + len(tokens), self._block_size) - len(table) + copy
        new, copies = self._take(needed), []
        if copy:
            copies = [(table[-1], new[0])]
            table.pop()
            self._pool.free_blocks([copies[0][0]])
        table += new
        request.tokens += tokens
        self._cache_full(request)
        return copies

    def fork(self, parent_id: Hashable, child_id: Hashable) -> None:
        """Start a request with the tokens, the blocks and the extra keys of another one. It may go on otherwise.

        Raises:
            KeyError: there is no request `parent_id`.
            ValueError: there is a request `child_id` already. Nothing has changed then.
        """
        parent = self._requests[parent_id]
        if child_id in self._requests:
            raise ValueError(f"there is a request {child_id!r} already")
        self._pool.touch(list(parent.table))
        self._requests[child_id] = Request(
            list(parent.tokens), list(parent.table), list(parent.hashes), parent.extra_keys
        )

    def free(self, request_id: Hashable) -> None:
        """End a request and free its blocks. `KeyError` if there is no such request."""
        self._pool.free_blocks(self._requests[request_id].table)
        del self._requests[request_id]

    def block_table(self, request_id: Hashable) -> list[int]:
        """The blocks of a request, in the order of its tokens. `KeyError` if there is no such request."""
        return list(self._requests[request_id].table)

    def stats(self) -> dict[str, int]:
        """Five counts.

        `requests` that there are now, `tokens` of all of them, `blocks` that they hold (one that several hold counts
        once); `queries`, the tokens of all prompts that `allocate` has ever admitted, and `hits`, those of them found
        (vLLM's metrics `prefix_cache_queries` and `prefix_cache_hits`; a refused call counts nothing).
        """
        requests = self._requests.values()
        return {
            "requests": len(requests),
            "tokens": sum(len(request.tokens) for request in requests),
            "blocks": len({block for request in requests for block in request.table}),
            "queries": self._queries,
            "hits": self._hits,
        }


# %% task="PagedAttentionLayer"
class PagedAttentionLayer:
    """The pages of one attention layer, and attention over them. All numbers are fp32, all on the CPU.

    Args:
        num_blocks: blocks in all, the null block 0 included.
        block_size: tokens per block.
        n_kv_heads: KV heads.
        head_dim: length of a key, and of a value.
    """

    def __init__(self, num_blocks: int, block_size: int, n_kv_heads: int, head_dim: int) -> None:
        self._block_size = block_size
        self._n_kv_heads = n_kv_heads
        self._head_dim = head_dim
        self._keys = torch.zeros(num_blocks, block_size, n_kv_heads, head_dim)
        self._values = torch.zeros(num_blocks, block_size, n_kv_heads, head_dim)

    def write(self, k: torch.Tensor, v: torch.Tensor, slot_mapping: torch.Tensor) -> None:
        """Store the keys and values of `n` tokens.

        Args:
            k, v: `[n, n_kv_heads, head_dim]`.
            slot_mapping: `[n]`, int64; the slot of each token, all different. Negative: padding, not stored.
        """
        real = slot_mapping >= 0
        slots = slot_mapping[real]
        self._keys.view(-1, self._n_kv_heads, self._head_dim)[slots] = k[real]
        self._values.view(-1, self._n_kv_heads, self._head_dim)[slots] = v[real]

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy keys and values of each block `from` to the block `to`. No block stands on both sides."""
        for source, target in copies:
            self._keys[target] = self._keys[source]
            self._values[target] = self._values[source]

    def attend(
        self, q: torch.Tensor, block_tables: torch.Tensor, context_lens: torch.Tensor, scale: float | None = None
    ) -> torch.Tensor:
        """What each sequence's newest token reads from the tokens of its sequence.

        Args:
            q: `[n_seqs, n_heads, head_dim]`; `n_heads` is a multiple of `n_kv_heads`.
            block_tables: `[n_seqs, most_blocks]`, int64; each row is filled up with 0.
            context_lens: `[n_seqs]`, int64; tokens of each sequence, at least 1, the newest one included.
            scale: what scores are multiplied by; `None`: 1 / sqrt(`head_dim`).

        Returns:
            `[n_seqs, n_heads, head_dim]`.
        """
        if scale is None:
            scale = 1 / math.sqrt(self._head_dim)
        n_seqs, n_heads, head_dim = q.shape
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for row, length in enumerate(context_lens.tolist()):
            blocks = block_tables[row, : ceil_div(length, self._block_size)]
            keys = self._keys[blocks].flatten(0, 1)[:length]  # [length, n_kv_heads, head_dim]
            values = self._values[blocks].flatten(0, 1)[:length]
            groups = q[row].reshape(self._n_kv_heads, -1, head_dim)  # the query heads of each KV head
            scores = scale * torch.einsum("kgd,tkd->kgt", groups, keys)
            weights = torch.softmax(scores, dim=-1)
            out[row] = torch.einsum("kgt,tkd->kgd", weights, values).reshape(n_heads, head_dim)
        return out


# %% task="QuantizedKVLayer"
class QuantizedKVLayer:
    """The keys and values of one layer and one sequence: quantised, but for the newest tokens.

    Args:
        n_kv_heads: KV heads.
        head_dim: length of a key, and of a value.
        bits: 2, 4 or 8.
        group_size: numbers that share a scale and a minimum.
        residual_length: so many tokens are quantised together; at least 1.

    Raises:
        TypeError, ValueError: an argument is no int or too small, `bits` is another number, `group_size` does not
            divide `head_dim`, or a head's codes do not fill whole bytes. The text names `bits`, `group_size` or
            `residual_length` if it is that one alone which is wrong.
    """

    def __init__(self, n_kv_heads: int, head_dim: int, bits: int, group_size: int, residual_length: int) -> None:
        check_count(n_kv_heads, "n_kv_heads", 1)
        check_count(head_dim, "head_dim", 1)
        check_count(bits, "bits", 1)
        check_count(group_size, "group_size", 1)
        check_count(residual_length, "residual_length", 1)
        if bits not in (2, 4, 8):
            raise ValueError(f"bits must be 2, 4 or 8, not {bits}")
        if head_dim % group_size:
            raise ValueError(f"group_size {group_size} does not divide head_dim {head_dim}")
        if head_dim * bits % 8:
            raise ValueError(f"a head of head_dim {head_dim} with {bits} bits does not fill whole bytes")
        self._bits, self._group_size, self._residual_length = bits, group_size, residual_length
        self._shape = (n_kv_heads, head_dim)
        self._waiting = 0  # tokens of the residual
        # For "key" and "value": the pieces of each part of the state, one after the other
        self._parts = {name: {part: [] for part in PARTS} for name in ("key", "value")}

    def append(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """Add the keys and values of `n` tokens, each `[n, n_kv_heads, head_dim]` in fp32. They are not changed."""
        self._waiting += k.shape[0]
        full = self._waiting - self._waiting % self._residual_length
        for name, x in (("key", k), ("value", v)):
            parts = self._parts[name]
            parts["residual"].append(x.detach().clone())
            if full:
                residual = torch.cat(parts["residual"])
                codes, scales, minima = quantize(residual[:full], self._bits, self._group_size)
                parts["codes"].append(codes)
                parts["scales"].append(scales)
                parts["minima"].append(minima)
                parts["residual"] = [residual[full:].clone()]
        self._waiting -= full

    def keys(self) -> torch.Tensor:
        """All keys, `[tokens, n_kv_heads, head_dim]` in fp32: quantised ones restored, the residual as it came."""
        return self._restored("key")

    def values(self) -> torch.Tensor:
        """All values, likewise."""
        return self._restored("value")

    def _restored(self, name: str) -> torch.Tensor:
        """All keys or all values."""
        state = self.state()
        codes, scales, minima = (state[f"{name}_{part}"] for part in ("codes", "scales", "minima"))
        return torch.cat([restore(codes, scales, minima, self._bits), state[f"{name}_residual"]])

    def state(self) -> dict[str, torch.Tensor]:
        """All that is held: for $Q$ quantised tokens and $R$ others, $H$ KV heads, and once more with `value_...`:

        `key_codes`     uint8, `[Q, H, head_dim * bits // 8]`, the first code of a byte in its highest bits
        `key_scales`    float16, `[Q, H, head_dim // group_size]`
        `key_minima`    float16, the same shape
        `key_residual`  float32, `[R, H, head_dim]`
        """
        heads, dim = self._shape
        widths = {"codes": dim * self._bits // 8, "residual": dim}
        state = {}
        for name, parts in self._parts.items():
            for part, pieces in parts.items():
                empty = torch.empty(0, heads, widths.get(part, dim // self._group_size), dtype=PARTS[part])
                state[f"{name}_{part}"] = torch.cat([empty, *pieces])
        return state

    def num_bytes(self) -> int:
        """Bytes of all that `state` gives."""
        return sum(
            piece.numel() * piece.element_size() for parts in self._parts.values() for pieces in parts.values() for piece in pieces
        )


# %% task="sliding_window_evict"
def sliding_window_evict(positions: Sequence[int], window: int, sinks: int = 0) -> list[int]:
    """The positions that stay in the cache, in their order.

    Args:
        positions: those that are cached, ascending, perhaps with gaps. The next token has the position after the last.
            Not changed. Empty: `[]`.
        window: tokens that a token attends to, itself included; at least 1.
        sinks: so many positions at the very beginning stay for ever; 0 or more.

    Raises:
        TypeError, ValueError: `window` or `sinks` is no int or too small. The text names it.
    """
    check_count(window, "window", 1)
    check_count(sinks, "sinks")
    if not len(positions):
        return []
    oldest = positions[-1] + 1 - (window - 1)
    return [position for position in positions if position < sinks or position >= oldest]


def evict_blocks(
    block_table: Sequence[int], num_tokens: int, block_size: int, window: int, sinks: int = 0
) -> tuple[list[int], list[int]]:
    """The block table after eviction, and the blocks that can be freed.

    Args:
        block_table: the blocks of `num_tokens` tokens, as in task 6; 0 where one has gone already. Not changed.
        num_tokens: tokens that are cached or have been; the next one has this position.
        block_size: tokens per block, at least 1.
        window: as above.
        sinks: as above.

    Returns:
        The table, with 0 in place of every block that nobody needs; and what stood there, in the order of the table,
        without the null block.

    Raises:
        TypeError, ValueError: `block_size`, `window` or `sinks` is no int or too small. The text names it.
    """
    check_count(num_tokens, "num_tokens")
    check_count(block_size, "block_size", 1)
    check_count(window, "window", 1)
    check_count(sinks, "sinks")
    table, freed = list(block_table), []
    oldest = num_tokens - (window - 1)  # the oldest position that the next token sees
    for index, block in enumerate(table):
        first, stop = index * block_size, (index + 1) * block_size
        if first >= sinks and stop <= oldest:
            table[index] = 0
            if block != 0:
                freed.append(block)
    return table, freed
