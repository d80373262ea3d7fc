"""Blocks in memory over blocks on disk, and what can be known of a block's attention without its keys.

LeoAM, arXiv 2506.20187, keeps a small abstract of every chunk near, to decide which chunks to fetch. Here the abstract
is the smallest and largest value of each key dimension over some tokens; with it no dot product of a query with those
keys can pass a bound.

Deviations: groups have one size, not one that follows the skew of attention; there are two tiers below the cache,
memory and disk; nothing is prefetched.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from rag.engine.blobs import KvType, block_key
from rag.engine.blocks import KvBlock
from rag.engine.errors import EngineError
from rag.engine.rotate import rotate

if TYPE_CHECKING:
    from rag.engine.store import KvStore

__all__ = ["KeyAbstract", "KvTiers", "TierStats", "abstract"]


@dataclass(frozen=True, slots=True, eq=False)
class KeyAbstract:
    """`low` and `high` (layers, kv heads, groups, d), float32: bounds of the keys of every `tokens` tokens of a block,
    as they are rotated at position 0."""

    low: Tensor
    high: Tensor
    tokens: int

    @property
    def size_bytes(self) -> int:
        return self.low.nbytes + self.high.nbytes

    def bound(self, query: Tensor, layer: int, *, start: int, frequencies: Tensor) -> Tensor:
        """(kv heads, queries, groups): no key of a group has a larger dot product with `query` (kv heads, queries, d)
        in that layer, where the block stands at position `start`. Not divided by the root of d.

        The query is turned back by `start` instead of the keys being turned on: their products are the same.
        """
        turned = rotate(query.float(), -start, frequencies)
        above, below = turned.clamp_min(0), turned.clamp_max(0)
        high, low = self.high[layer].transpose(1, 2), self.low[layer].transpose(1, 2)
        largest = torch.maximum(self.high[layer].abs(), self.low[layer].abs()).transpose(1, 2)
        # float32 sums round, and keys that were rotated once more are rounded to their own type
        slack = turned.abs() @ largest * (query.shape[-1] * torch.finfo(torch.float32).eps * 4)
        return above @ high + below @ low + slack


def abstract(block: KvBlock, tokens: int = 64) -> KeyAbstract:
    """Bounds of the keys of every `tokens` tokens; the last group may have fewer."""
    if tokens < 1:
        raise EngineError(f"an abstract is over at least one token, not {tokens}")
    keys = block.k.float().cpu()
    groups = -(-len(block) // tokens)
    rest = groups * tokens - len(block)
    low, high = (
        pad(keys, (0, 0, 0, rest), value=fill).reshape(*keys.shape[:2], groups, tokens, -1)
        for fill in (torch.inf, -torch.inf)
    )
    return KeyAbstract(low.amin(3), high.amax(3), tokens)


@dataclass(slots=True)
class TierStats:
    """Blocks found in memory, on disk and nowhere; bytes of blocks that came from disk."""

    memory: int = 0
    disk: int = 0
    missing: int = 0
    loaded_bytes: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    block: KvBlock
    owners: set[str]


class KvTiers:
    """At most `max_bytes` of blocks in memory, the least recently used going first, over `store` where there is one.

    A block that comes from disk is kept in memory too. Abstracts of every `tokens` tokens (None: there are none) are
    made when a block is put or loaded, and stay when it leaves memory: `abstract_bytes` counts them apart. Owners are
    those of the store: `drop` here drops them there. Dropping in the store alone, or in another process, leaves in
    memory what is there. Threads may share it.
    """

    def __init__(self, *, max_bytes: int, store: KvStore | None = None, tokens: int | None = 64) -> None:
        if max_bytes < 0 or (tokens is not None and tokens < 1):
            raise EngineError(f"max_bytes must be >= 0 and tokens >= 1, not {max_bytes} and {tokens}")
        self.max_bytes, self.store, self.tokens = max_bytes, store, tokens
        self.stats = TierStats()
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._abstracts: dict[str, KeyAbstract] = {}
        self._bytes = 0
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def size_bytes(self) -> int:
        return self._bytes

    @property
    def abstract_bytes(self) -> int:
        with self._lock:
            return sum(one.size_bytes for one in self._abstracts.values())

    def put(
        self, block: KvBlock, policy: str, owners: Iterable[str], *, dtype: KvType = "bf16", cost: float = 1.0
    ) -> bool:
        """Keeps `block`, made by `policy`, for `owners`; whether it is in either tier now. Parameters as in KvStore."""
        names = tuple(owners)
        if not names:
            raise EngineError("a block needs at least one owner")
        key = block_key(block.ids, block.fingerprint, policy, dtype)
        stored = self.store is not None and self.store.put(block, policy, names, dtype=dtype, cost=cost) is not None
        with self._lock:
            kept = self._hold(key, block, names)
            if (kept or stored) and self.tokens is not None:
                self._abstracts[key] = abstract(block, self.tokens)
        return kept or stored

    def get(self, ids: Sequence[int], fingerprint: str, policy: str, *, dtype: KvType = "bf16") -> KvBlock | None:
        """The block with exactly these ids, or None."""
        key = block_key(ids, fingerprint, policy, dtype)
        with self._lock:
            held = self._held.get(key)
            if held is not None and held.block.ids == tuple(ids):
                self._held.move_to_end(key)
                self.stats.memory += 1
                return held.block
            found = None if self.store is None else self.store.get(ids, fingerprint, policy, dtype=dtype)
            if found is None:
                self.stats.missing += 1
                return None
            self.stats.disk += 1
            self.stats.loaded_bytes += found.size_bytes
            if found.size_bytes <= self.max_bytes:
                found = replace(found, k=found.k.clone(), v=found.v.clone())  # of the file, it is only mapped
            self._hold(key, found, ())
            if key not in self._abstracts and self.tokens is not None:
                self._abstracts[key] = abstract(found, self.tokens)
            return found

    def abstract(
        self, ids: Sequence[int], fingerprint: str, policy: str, *, dtype: KvType = "bf16"
    ) -> KeyAbstract | None:
        """That of a block which was put or loaded here, without loading it; None where it never was."""
        with self._lock:
            return self._abstracts.get(block_key(ids, fingerprint, policy, dtype))

    def drop(self, owner: str) -> int:
        """Takes `owner` from its blocks; those with no owner left are gone from both tiers. How many went from memory.

        With a store, also what is in memory and no longer on disk goes.
        """
        with self._lock:
            left: set[str] | None = None
            if self.store is not None:
                self.store.drop(owner)
                left = {entry.key for entry in self.store.entries()}
            gone = []
            for key, held in self._held.items():
                mine = owner in held.owners
                held.owners.discard(owner)
                if (mine and not held.owners and left is None) or (left is not None and key not in left):
                    gone.append(key)
            for key in gone:
                self._forget(key)
            self._abstracts = {
                key: one for key, one in self._abstracts.items() if key in self._held or (left and key in left)
            }
        return len(gone)

    def _hold(self, key: str, block: KvBlock, owners: Sequence[str]) -> bool:
        if block.size_bytes > self.max_bytes:
            return False
        before = self._held[key].owners if key in self._held else set()
        if key in self._held:
            self._forget(key)
        while self._bytes + block.size_bytes > self.max_bytes:
            self._forget(next(iter(self._held)))
        self._held[key] = _Held(block, before | set(owners))
        self._bytes += block.size_bytes
        if self.store is None:
            self._abstracts = {one: told for one, told in self._abstracts.items() if one in self._held}
        return True

    def _forget(self, key: str) -> None:
        self._bytes -= self._held.pop(key).block.size_bytes
