"""Where the hidden checks of tasks 6 to 9 of `kv_cache` get expected values from: never the reference or its formulas.

`ListPool`       a block pool of lists, lent to a submission's manager; it refuses what a right manager never does
`ManagerModel`   block tables by whole prefixes: no hashes, and counts follow from who holds what
`attention`      PyTorch's own attention in double precision, on keys that lie one after the other
`restored`       quantised keys and values, read bit by bit from what the submission says it holds
`needed`         positions that some later token sees, by looking from each of them
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from autograder.checks import fail

Prefix = tuple[tuple[int, ...], tuple[str, ...]]
"""All tokens up to the end of a block, and the extra keys of its request."""


# ------------------------------------------------------------------------------------------------------------ manager


class ListPool:
    """A block pool without any cleverness. What its functions are given comes from a submission, and may be anything."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.free = list(range(1, num_blocks))
        self.counts = [0] * num_blocks
        self.cached: list[tuple[int, Prefix]] = []
        """Blocks with what they are found by, in the order in which they were cached."""
        self._keys: dict[int, Any] = {}
        self._prefixes: dict[str | None, tuple[int, ...]] = {None: ()}

    def lent(self, submission: Any) -> Any:
        """The pool as an object in the submission's worker."""
        return submission.LentPool(
            get_new_blocks=self._get_new_blocks,
            touch=self._touch,
            free_blocks=self._free_blocks,
            cache_full_block=self._cache_full_block,
            get_cached_block=self._get_cached_block,
            num_free_blocks=lambda: len(self.free),
            ref_count=lambda block_id: self.counts[self._ids([block_id], "ref_count")[0]],
        )

    def _ids(self, block_ids: Any, name: str) -> list[int]:
        if type(block_ids) is not list or any(
            type(each) is not int or not 0 < each < len(self.counts) for each in block_ids
        ):
            fail(f"Your manager called {name} of the pool with something that is no block.", value=block_ids)
        return list(block_ids)

    def _get_new_blocks(self, n: Any) -> list[int] | None:
        if type(n) is not int or n < 0:
            fail("Your manager called get_new_blocks of the pool with something that is no count.", value=n)
        if n > len(self.free):
            return None
        taken, self.free = self.free[:n], self.free[n:]
        self.cached = [entry for entry in self.cached if entry[0] not in taken]
        for block in taken:
            self._keys.pop(block, None)
            self.counts[block] = 1
        return taken

    def _touch(self, block_ids: Any) -> None:
        for block in self._ids(block_ids, "touch"):
            if not self.counts[block] and block not in self._keys:
                fail(f"Your manager touched block {block}, which is free and not cached (any more).", value=block_ids)
            if not self.counts[block]:
                self.free.remove(block)
            self.counts[block] += 1

    def _free_blocks(self, block_ids: Any) -> None:
        for block in reversed(self._ids(block_ids, "free_blocks")):
            if not self.counts[block]:
                fail(f"Your manager freed block {block} more often than it held it.", value=block_ids)
            self.counts[block] -= 1
            if not self.counts[block]:
                self.free.append(block)

    def _key(self, parent: Any, tokens: Any, extra: Any, name: str) -> Any:
        if type(tokens) is not tuple or any(type(each) is not int for each in tokens):
            fail(f"Your manager called {name} of the pool with token_ids that are no tokens.", value=tokens)
        if type(extra) is not tuple or any(type(each) is not str for each in extra):
            fail(f"Your manager called {name} of the pool with extra_keys that are no such keys.", value=extra)
        if (type(parent) is not str and parent is not None) or parent not in self._prefixes:
            fail(f"Your manager called {name} of the pool with a parent_hash that is no block's.", value=parent)
        return parent, tokens, extra

    def _cache_full_block(self, block: Any, parent: Any, tokens: Any, extra: Any) -> str:
        (block,) = self._ids([block], "cache_full_block")
        key = self._key(parent, tokens, extra, "cache_full_block")
        if len(tokens) != self.block_size:
            fail("Your manager cached a block that is not full.", value=tokens, expected=f"{self.block_size} tokens")
        if not self.counts[block] or block in self._keys:
            fail(f"Your manager cached block {block}, which is free or cached already.", value=tokens)
        made = hashlib.sha256(repr(key).encode()).hexdigest()  # hash_block of the course
        self._keys[block] = key
        self._prefixes[made] = self._prefixes[parent] + tokens
        self.cached.append((block, (self._prefixes[made], extra)))
        return made

    def _get_cached_block(self, parent: Any, tokens: Any, extra: Any) -> int | None:
        key = self._key(parent, tokens, extra, "get_cached_block")
        return next((block for block, _ in self.cached if self._keys[block] == key), None)


@dataclass
class ManagerModel:
    """A manager as the handout describes it. A block's count is how often it stands in `tables`."""

    num_blocks: int
    block_size: int
    tables: dict[str, list[int]] = field(default_factory=dict)
    texts: dict[str, Prefix] = field(default_factory=dict)
    cached: list[tuple[int, Prefix]] = field(default_factory=list)
    queries: int = 0
    hits: int = 0

    def __post_init__(self) -> None:
        self.free = list(range(1, self.num_blocks))

    def count(self, block: int) -> int:
        return sum(block in table for table in self.tables.values())

    def found(self, tokens: tuple[int, ...], extra: tuple[str, ...]) -> list[int]:
        """The blocks that a request of these tokens would find."""
        blocks = []
        for end in range(self.block_size, len(tokens), self.block_size):
            wanted = (tokens[:end], extra)
            here = [block for block, prefix in self.cached if prefix == wanted]
            if not here:
                break
            blocks.append(here[0])
        return blocks

    def allocate(self, name: str, tokens: tuple[int, ...], extra: tuple[str, ...]) -> int | None:
        """How many tokens are found; `None` where there is no room."""
        found = self.found(tokens, extra)
        need = self._blocks(len(tokens)) - len(found)
        if need + sum(block in self.free for block in found) > len(self.free):
            return None
        self.free = [block for block in self.free if block not in found]
        self.tables[name] = found + self._take(need)
        self.texts[name] = ((), extra)
        self._extend(name, tokens, len(found))
        self.queries += len(tokens)
        self.hits += len(found) * self.block_size
        return len(found) * self.block_size

    def append(self, name: str, tokens: tuple[int, ...]) -> list[tuple[int, int]] | None:
        """The copies that must be made; `None` where there is no room."""
        text, table = self.texts[name][0], self.tables[name]
        shared = len(text) % self.block_size > 0 and self.count(table[-1]) > 1
        need = self._blocks(len(text) + len(tokens)) - len(table) + shared
        if need > len(self.free):
            return None
        blocks = self._take(need)
        copies = [(table.pop(), blocks[0])] if shared else []
        table.extend(blocks)
        self._extend(name, tokens, len(text) // self.block_size)
        return copies

    def fork(self, parent: str, child: str) -> None:
        self.tables[child] = list(self.tables[parent])
        self.texts[child] = self.texts[parent]

    def release(self, name: str) -> None:
        del self.texts[name]
        self.free += [block for block in reversed(self.tables.pop(name)) if not self.count(block)]

    def stats(self) -> dict[str, int]:
        return {
            "requests": len(self.tables),
            "tokens": sum(len(text) for text, _ in self.texts.values()),
            "blocks": self.num_blocks - 1 - len(self.free),
            "queries": self.queries,
            "hits": self.hits,
        }

    def _blocks(self, tokens: int) -> int:
        return len(range(0, tokens, self.block_size))

    def _take(self, need: int) -> list[int]:
        taken, self.free = self.free[:need], self.free[need:]
        self.cached = [entry for entry in self.cached if entry[0] not in taken]
        return taken

    def _extend(self, name: str, tokens: tuple[int, ...], uncached: int) -> None:
        """Add tokens, and cache the blocks from number `uncached` on that are full now."""
        text, extra = self.texts[name][0] + tokens, self.texts[name][1]
        self.texts[name] = (text, extra)
        for number, block in enumerate(self.tables[name]):
            end = (number + 1) * self.block_size
            if number >= uncached and end <= len(text):
                self.cached.append((block, (text[:end], extra)))


# ---------------------------------------------------------------------------------------------------------- attention


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
    """One query per head, `[n_heads, head_dim]`, over `[tokens, n_kv_heads, head_dim]`; computed in fp64."""
    q, k, v = (x.double()[None] for x in (q[:, None], k.movedim(0, 1), v.movedim(0, 1)))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True)[0, :, 0]


# ------------------------------------------------------------------------------------------------------- quantisation


def restored(codes: torch.Tensor, scales: torch.Tensor, minima: torch.Tensor, bits: int) -> np.ndarray:
    """What the packed codes stand for, as float64."""
    stream = np.unpackbits(codes.numpy(), axis=-1)  # the highest bit of each byte first
    values = stream.reshape(*stream.shape[:-1], -1, bits) @ (1 << np.arange(bits)[::-1])
    size = values.shape[-1] // scales.shape[-1]
    step, low = (np.repeat(x.numpy().astype(np.float64), size, axis=-1) for x in (scales, minima))
    return np.asarray(low + step * values)


def bounds(x: torch.Tensor, like: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and minimum of each group, not rounded; there are as many groups as in `like`."""
    groups = x.double().reshape(*x.shape[:-1], like.shape[-1], -1)
    low, high = groups.amin(-1), groups.amax(-1)
    return (high - low) / (2**bits - 1), low


def nearest(
    x: torch.Tensor, scales: torch.Tensor, minima: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far each number is from the nearest that some code stands for, by trying all codes; and its group's step."""
    size = x.shape[-1] // scales.shape[-1]
    step, low = (part.double().repeat_interleave(size, -1) for part in (scales, minima))
    codes = torch.arange(2**bits, dtype=torch.float64)
    off = (low[..., None] + step[..., None] * codes - x.double()[..., None]).abs().amin(-1)
    return off, step.where(step > 0, 1.0)


# ------------------------------------------------------------------------------------------------------------- window


def needed(position: int, now: int, window: int, sinks: int) -> bool:
    """Whether the token at `now`, or any later one, attends to an older `position`."""
    return position < sinks or any(later - position < window for later in range(now, now + window + 1))
