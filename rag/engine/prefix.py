"""Exact prefix reuse: blocks of tokens chained by hash, as vLLM does (arXiv 2309.06180), in a pool with a byte cap.

A block's key hashes the block before it and its own token ids, so it stands for one whole prefix; the ids are compared
too. What is reused is what was computed, at the same positions: the result is that of a full prefill.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

from torch import Tensor

from rag.engine.cache import KvCache
from rag.engine.errors import EngineError, InterruptedPrefillError
from rag.engine.model import EngineModel
from rag.engine.prefill import KeepGoing, Prefill, prefill

__all__ = ["Lease", "PrefixPool", "prefill_with_prefix"]


@dataclass(eq=False, slots=True)
class _PoolBlock:
    """`ids` at the positions [start, start + len(ids)) behind `parent`; `k`, `v` are (layers, kv heads, tokens, d)."""

    key: bytes
    parent: _PoolBlock | None
    ids: tuple[int, ...]
    start: int
    k: Tensor
    v: Tensor
    refs: int = 0
    children: int = 0
    uses: int = 1
    rank: float = 0.0

    @property
    def size_bytes(self) -> int:
        return self.k.nbytes + self.v.nbytes


@dataclass(eq=False, slots=True)
class Lease:
    """The known start of a prompt. Its blocks cannot be evicted until it is released, best by `with`."""

    blocks: tuple[_PoolBlock, ...] = ()
    _open: bool = field(default=True, init=False)

    @property
    def tokens(self) -> int:
        return sum(len(block.ids) for block in self.blocks)

    def copy_into(self, cache: KvCache) -> None:
        if not self._open or cache.length:
            raise EngineError("a prefix goes from an open lease into an empty cache")
        for block in self.blocks:
            cache.append(block.k, block.v)

    def release(self) -> None:
        if self._open:
            self._open = False
            for block in self.blocks:
                block.refs -= 1

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@dataclass(eq=False, kw_only=True)
class PrefixPool:
    """Blocks of `block_tokens` tokens, never more than `max_bytes` in all.

    Evicted are blocks that no lease holds and no other block continues. `eviction` "lru" takes the one unused for
    longest; "cost" the one whose uses x recompute cost per byte, plus an ageing clock, is lowest (GreedyDual-Size with
    frequency, Cherkasova 1998): `cost(start, stop)` is the price of computing those positions, as `EngineModel.cost`.
    `salt` keeps apart what must not be shared: models (their fingerprint), tenants. Not for several threads at once.
    """

    max_bytes: int
    block_tokens: int = 32
    eviction: Literal["lru", "cost"] = "lru"
    cost: Callable[[int, int], float] | None = None
    salt: bytes = b""
    _blocks: dict[bytes, _PoolBlock] = field(default_factory=dict, init=False)
    _bytes: int = field(default=0, init=False)
    _clock: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if self.max_bytes < 0 or self.block_tokens < 1:
            raise EngineError(
                f"max_bytes must be >= 0 and block_tokens >= 1, not {self.max_bytes} and {self.block_tokens}"
            )
        if self.eviction not in ("lru", "cost") or (self.eviction == "cost" and self.cost is None):
            raise EngineError(f"eviction is lru, or cost with a cost function, not {self.eviction!r} and {self.cost!r}")

    @property
    def size_bytes(self) -> int:
        return self._bytes

    @property
    def leased(self) -> int:
        """Blocks that a lease holds now."""
        return sum(1 for block in self._blocks.values() if block.refs)

    def __len__(self) -> int:
        return len(self._blocks)

    def lease(self, ids: Sequence[int], *, most: int | None = None) -> Lease:
        """The longest chain of blocks that starts `ids`, at most `most` tokens."""
        room = len(ids) if most is None else min(most, len(ids))
        found: list[_PoolBlock] = []
        for start in range(0, room - self.block_tokens + 1, self.block_tokens):
            block = self._find(found[-1] if found else None, tuple(ids[start : start + self.block_tokens]))
            if block is None:
                break
            found.append(block)
        for block in found:
            block.refs += 1
            block.uses += 1
        self._touch(found)
        return Lease(tuple(found))

    def store(self, ids: Sequence[int], cache: KvCache) -> int:
        """Keeps the full blocks of `ids`, which `cache` holds from position 0; returns how many were new.

        Stops early when the cap leaves no room: a block without those before it would be no use.
        """
        if cache.length < len(ids):
            raise EngineError(f"the cache holds {cache.length} of {len(ids)} tokens")
        if cache.moved:
            raise EngineError("the keys of this cache were turned to other positions: no other prompt starts with them")
        parent: _PoolBlock | None = None
        pinned: list[_PoolBlock] = []
        new = 0
        for start in range(0, len(ids) - self.block_tokens + 1, self.block_tokens):
            part = tuple(ids[start : start + self.block_tokens])
            block = self._find(parent, part)
            if block is None:
                block = self._add(parent, part, start, cache)
                if block is None:
                    break
                new += 1
            block.refs += 1  # until the end of this call: a chain must not evict its own start
            pinned.append(block)
            parent = block
        for block in pinned:
            block.refs -= 1
        return new

    def clear(self) -> None:
        """Drops every block that no lease holds."""
        while self._evict():
            pass

    def _key(self, parent: _PoolBlock | None, ids: tuple[int, ...]) -> bytes:
        state = hashlib.blake2b(parent.key if parent else b"start:" + self.salt, digest_size=16)
        state.update(array("q", ids).tobytes())
        return state.digest()

    def _find(self, parent: _PoolBlock | None, ids: tuple[int, ...]) -> _PoolBlock | None:
        block = self._blocks.get(self._key(parent, ids))
        return block if block is not None and block.parent is parent and block.ids == ids else None

    def _add(self, parent: _PoolBlock | None, ids: tuple[int, ...], start: int, cache: KvCache) -> _PoolBlock | None:
        """None where there is no room, or where another prefix has the same hash."""
        key = self._key(parent, ids)
        if key in self._blocks:
            return None
        k, v = cache.read(start, start + len(ids))
        block = _PoolBlock(key, parent, ids, start, k, v)
        while self._bytes + block.size_bytes > self.max_bytes:
            if not self._evict():
                return None
        self._blocks[key] = block
        self._bytes += block.size_bytes
        if parent is not None:
            parent.children += 1
        self._touch([block])
        return block

    def _touch(self, blocks: Sequence[_PoolBlock]) -> None:
        if self.cost is None or self.eviction == "lru":
            self._clock += 1
        for block in blocks:
            worth = 0.0
            if self.cost is not None and self.eviction == "cost":
                worth = block.uses * self.cost(block.start, block.start + len(block.ids)) / block.size_bytes
            block.rank = self._clock + worth

    def _evict(self) -> bool:
        free = [block for block in self._blocks.values() if not block.refs and not block.children]
        if not free:
            return False
        worst = min(free, key=lambda block: block.rank)
        if self.eviction == "cost":
            self._clock = worst.rank
        del self._blocks[worst.key]
        self._bytes -= worst.size_bytes
        if worst.parent is not None:
            worst.parent.children -= 1
        return True


def prefill_with_prefix(
    model: EngineModel,
    ids: Sequence[int],
    pool: PrefixPool,
    *,
    room: int = 0,
    chunk_tokens: int = 512,
    keep_going: KeepGoing | None = None,
) -> Prefill:
    """Copies the known start of `ids`, computes the rest, and keeps it for the next prompt.

    At least the last id is computed, since its logits are not kept. `room` is for tokens to come. The pool must be of
    this model: give it the model's fingerprint as salt. What was computed before an interruption is kept too.
    """
    cache = model.new_cache(len(ids) + room)
    with pool.lease(ids, most=len(ids) - 1) as lease:
        lease.copy_into(cache)
        try:
            result = prefill(model, ids, cache, chunk_tokens=chunk_tokens, keep_going=keep_going)
        except InterruptedPrefillError:  # and no other error: that may have left some layers behind the others
            pool.store(ids[: cache.length], cache)
            raise
        pool.store(ids, cache)
        return result
