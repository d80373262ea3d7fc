"""Chunk reuse behind a prompt: the keys and values of whole chunks come from a store, or are made and kept there.

What a block holds depends on the chunk alone, and on where it stands only if it is first: the answer is the same
whether the blocks were loaded, made now or could not be kept. A `neighbour-mean` depends on the chunk's neighbours in
the index too, and is another block when those have changed. (`cache-craft` is the exception: by its method a block
remembers the chunks that stood before it when it was made.) What is left of a chunk that was cut is a part of the block
of the whole chunk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rag.engine.blobs import KvType, kv_type
from rag.engine.blocks import KvBlock, make_block
from rag.engine.chunks import prefill_chunks
from rag.engine.donor import DonorMean
from rag.engine.errors import EngineError
from rag.engine.model import EngineModel
from rag.engine.observed import chunk_name, make_observed_block
from rag.engine.prune import prune_block
from rag.engine.repair import RepairPolicy
from rag.engine.repair.auto import Auto
from rag.engine.store import KvStore
from rag.engine.tiers import KvTiers
from rag.generators._decode import Reading, read_on
from rag.generators._neighbours import EACH, TOKENS, Behind, Neighbours
from rag.generators._parts import Part
from rag.generators._unread import PLAIN_REPAIRS, empty_block, without
from rag.store.kv import KV_NAME, SHARED_OWNER

if TYPE_CHECKING:
    from rag.generators._sparsely import SparsePrompt
    from rag.protocols import Corpus

__all__ = ["ChunkKv"]

BlockKind = Literal["solo", "donor-mean", "neighbour-mean", "observed"]
_START = 512
"""Tokens that are left for the start of a prompt."""


class KvShelf:
    """The store of one index for one prompt, opened when a block is not in `memory`, and what was taken from it and put
    there. Without a folder that can be written nothing is kept on disk, and everything works.

    `loaded` are the bytes of blocks that came from disk; `behind` tells the neighbours of a chunk in the index.
    """

    def __init__(
        self, directory: Path | None, *, max_bytes: int, dtype: KvType, memory: KvTiers | None = None,
        behind: Callable[[str], Behind] | None = None,
    ) -> None:  # fmt: skip
        self.dtype, self.behind = dtype, behind
        self.loaded, self.made, self.made_tokens = 0, 0, 0
        self._directory, self._max_bytes, self._memory = directory, max_bytes, memory
        self._opened = False
        self._held: KvStore | None = None

    @property
    def _store(self) -> KvStore | None:
        if not self._opened and self._directory is not None:
            self._opened = True
            try:
                self._held = KvStore(self._directory / KV_NAME, max_bytes=self._max_bytes)
            except (OSError, sqlite3.Error, EngineError):
                self._held = None
        return self._held

    def block(
        self, ids: Sequence[int], fingerprint: str, policy: str, owner: str, make: Callable[[], KvBlock], cost: float,
        sources: Sequence[str] = (),
    ) -> KvBlock:  # fmt: skip
        place = f"{policy} of {owner}"  # what is in memory for one document may not be on disk for another
        if self._memory is not None and (near := self._memory.get(ids, fingerprint, place)) is not None:
            return near
        held = self._get(ids, fingerprint, policy)
        if held is not None:
            self.loaded += held.size_bytes
            self._put(held, policy, owner, cost, sources)  # another document may have the same chunk
        else:
            made = make()
            self.made, self.made_tokens = self.made + 1, self.made_tokens + len(made)
            self._put(made, policy, owner, cost, sources)
            # so that the first use reads what the second one will
            held = self._get(ids, fingerprint, policy) if self.dtype == "int8" else made
            if held is None:
                return made
        if self._memory is not None and held.size_bytes <= self._memory.max_bytes:
            held = _copied(held)
            self._memory.put(held, place, [owner])
        return held

    def has_room(self, size: int) -> bool:
        """Whether `size` bytes more push nothing out."""
        return self._store is not None and self._store.size_bytes + size <= self._store.max_bytes

    def _get(self, ids: Sequence[int], fingerprint: str, policy: str) -> KvBlock | None:
        try:
            return self._store.get(ids, fingerprint, policy, dtype=self.dtype) if self._store is not None else None
        except (OSError, sqlite3.Error):
            return None

    def _put(self, block: KvBlock, policy: str, owner: str, cost: float, sources: Sequence[str]) -> None:
        try:
            if self._store is not None:
                self._store.put(block, policy, [owner], dtype=self.dtype, cost=cost, sources=sources)
        except (OSError, sqlite3.Error):
            pass  # busy, full or read-only: it is made again

    def close(self) -> None:
        if self._held is not None:  # an empty store is false
            self._held.close()


def _copied(block: KvBlock) -> KvBlock:
    """Not mapped from a file."""
    variance, seen = block.variance, block.seen
    if variance is not None:
        variance = variance.clone()
    if seen is not None:
        seen = replace(seen, inter=seen.inter.clone(), intra=seen.intra.clone())
    return replace(block, k=block.k.clone(), v=block.v.clone(), variance=variance, seen=seen)


@dataclass(eq=False, kw_only=True)
class ChunkKv:
    """Reads prompts with `policy` over blocks of `kind`. `donors` are passages as ids; `neighbours` gives those of a
    chunk, for that kind. Not for several threads.

    At most `max_bytes` of blocks are kept below the folder of an index, and at most `ram_bytes` of those of one state
    of the index that was read last in memory too.
    """

    engine: EngineModel
    policy: RepairPolicy
    label: str
    kind: BlockKind
    donors: Sequence[Sequence[int]]
    max_bytes: int
    int8: bool = False
    ram_bytes: int = 0
    neighbours: Neighbours | None = None
    _donor_mean: dict[tuple[int, ...], DonorMean] = field(default_factory=dict, init=False)
    _memory: tuple[tuple[Path | None, int], KvTiers] | None = field(default=None, init=False)

    def read(
        self,
        parts: Sequence[Part],
        corpus: Corpus,
        room: int,
        sparse: SparsePrompt | None = None,
    ) -> Reading:
        """`parts[0]` is the start of every prompt, the last part is computed; KV is kept below the folder of `corpus`,
        where it has one. Chunks that no one reads in `sparse` attention are neither loaded nor made."""
        directory: Path | None = getattr(corpus, "directory", None)
        shelf = self._shelf(directory, self._near((directory, getattr(corpus, "generation", 0))), corpus)
        try:
            prefix = parts[0].ids
            start = self._start(prefix, shelf)
            skipped = self._skipped(parts, sparse)
            blocks = self._blocks(parts, shelf, skipped)
        finally:
            shelf.close()
        total = sum(len(part.ids) for part in parts)
        cache = sparse.cache(self.engine, total + room) if sparse else self.engine.new_cache(total + room)
        cache.write(0, start.k.to(self.engine.device), start.v.to(self.engine.device))
        done = prefill_chunks(self.engine, cache, prefix, blocks, without(blocks, skipped, self.policy))
        if sparse:
            sparse.prompt_read()
        # what was made for this prompt was not there before, and counts as computed; what was left out as neither
        left_out = sum(len(parts[place].ids) for place in skipped)
        reused = max(0, done.reused - left_out - shelf.made_tokens)
        counts = [replace(one, reused=0) if at in skipped else one for at, one in enumerate(done.parts)]
        return read_on(
            self.engine, done, reused=reused, computed=total - left_out - reused, loaded=shelf.loaded, made=shelf.made,
            made_tokens=done.reused - left_out - reused, parts=tuple(counts), skipped=skipped,
            policy=f"chunk: {self.kind}, {self._repair(total)}",
        )  # fmt: skip

    def _skipped(self, parts: Sequence[Part], sparse: SparsePrompt | None) -> tuple[int, ...]:
        """The places in `parts` of chunks that nobody reads. Only where the repair reads no others than it repairs;
        the first chunk stays, by which repairs know where the others begin."""
        if sparse is None or self.label not in PLAIN_REPAIRS:
            return ()
        return tuple(2 + 2 * piece for piece in sparse.unread if piece and parts[2 + 2 * piece].owner)

    def _repair(self, tokens: int) -> str:
        """What stats call the repair of a prompt of so many tokens; of `auto` also what it takes."""
        taken = self.policy.choose(tokens)[0] or "all" if isinstance(self.policy, Auto) else ""
        return f"{self.label} ({taken})" if taken else self.label

    def prepare(
        self, prefix: Sequence[int], chunks: Sequence[Part], directory: Path, corpus: Corpus | None = None
    ) -> int:
        """Makes the blocks of `chunks`, which are those of `corpus`, that are not kept yet; how many were made. Stops
        where they would push others out, or cannot be kept."""
        shelf = self._shelf(directory, corpus=corpus)
        try:
            self._start(tuple(prefix), shelf)
            for part in chunks:
                if not shelf.has_room(len(part.ids) * self.engine.token_bytes):
                    break
                self._block(part, tuple(prefix), [], shelf)
        finally:
            shelf.close()
        return shelf.made

    def _near(self, index: tuple[Path | None, int]) -> KvTiers | None:
        """What is in memory of this state of an index: what a changed document left goes with the state before."""
        if not self.ram_bytes:
            return None
        if self._memory is None or self._memory[0] != index:
            self._memory = index, KvTiers(max_bytes=self.ram_bytes, tokens=None)
        return self._memory[1]

    def _shelf(self, directory: Path | None, memory: KvTiers | None = None, corpus: Corpus | None = None) -> KvShelf:
        dtype: KvType = "int8" if self.int8 else kv_type(self.engine.dtype)
        near = self.neighbours if self.kind == "neighbour-mean" else None
        behind = near.of(corpus) if near and corpus is not None else None
        return KvShelf(directory, max_bytes=self.max_bytes, dtype=dtype, memory=memory, behind=behind)

    def _start(self, prefix: tuple[int, ...], shelf: KvShelf) -> KvBlock:
        cost = self.engine.cost(0, len(prefix))
        fingerprint = self.engine.fingerprint
        return shelf.block(prefix, fingerprint, "start", SHARED_OWNER, lambda: make_block(self.engine, prefix), cost)

    def _blocks(
        self, parts: Sequence[Part], shelf: KvShelf, skipped: Sequence[int] = ()
    ) -> list[KvBlock | Sequence[int]]:
        """The parts after the first. A chunk that stands first of all is made behind what truly stands before it. Where
        `auto` would compute all of them again, no blocks are made. `skipped` ones are empty."""
        if isinstance(self.policy, Auto) and not self.policy.choose(sum(len(part.ids) for part in parts))[0]:
            return [part.ids for part in parts[1:]]
        out: list[KvBlock | Sequence[int]] = []
        chunks: list[Part] = []
        before = list(parts[0].ids)
        for place, part in enumerate(parts[1:], start=1):
            if place in skipped:
                out.append(empty_block(self.engine, part.ids))
            elif part.owner:
                made, whole = shelf.made, Part(part.whole or part.ids, part.owner, chunk_id=part.chunk_id)
                if place <= 2:
                    held = self._first(whole, tuple(before), shelf)
                else:
                    held = self._block(whole, parts[0].ids, chunks, shelf)
                out.append(self._part_of(held, part, shelf, made=shelf.made > made))
                chunks.append(part)
            else:
                out.append(part.ids)
            before += part.ids
        return out

    def _part_of(self, block: KvBlock, part: Part, shelf: KvShelf, *, made: bool) -> KvBlock:
        """What of the chunk's block is read. Of one that was made for it, only those tokens count as made."""
        if not part.rows:
            return block
        kept = prune_block(block, part.rows, self.engine.frequencies)
        if made:
            shelf.made_tokens -= len(block) - len(kept)
        return kept

    @property
    def longest(self) -> int:
        """The most tokens of a chunk that the model reads behind the start of a prompt and the longest donor."""
        room = int(getattr(self.engine.config, "max_position_embeddings", None) or 1 << 30)
        longest = max(map(len, self.donors), default=0)
        return room - _START - longest - (EACH * TOKENS if self.kind == "neighbour-mean" else 0)

    def _first(self, part: Part, before: tuple[int, ...], shelf: KvShelf) -> KvBlock:
        name, cost = f"behind {chunk_name(before)}", self.engine.cost(0, len(before) + len(part.ids))
        return shelf.block(
            part.ids, self.engine.fingerprint, name, part.owner, lambda: make_block(self.engine, part.ids, before), cost
        )

    def _block(self, part: Part, prefix: tuple[int, ...], chunks: Sequence[Part], shelf: KvShelf) -> KvBlock:
        engine, ids = self.engine, part.ids
        cost = engine.cost(0, len(ids))
        if self.kind == "solo":
            return shelf.block(ids, engine.fingerprint, "solo", part.owner, lambda: make_block(engine, ids), cost)
        if self.kind == "observed":
            name, behind = f"observed {chunk_name(prefix)}", [one.ids for one in chunks]
            return shelf.block(
                ids, engine.fingerprint, name, part.owner,
                lambda: make_observed_block(engine, ids, prefix, behind), cost,
                tuple(dict.fromkeys(one.owner for one in chunks)),
            )  # fmt: skip
        if self.kind == "neighbour-mean" and shelf.behind:
            return self._behind_neighbours(part, prefix, shelf.behind(part.chunk_id), shelf)
        before = [*prefix, *(token for donor in self.donors for token in donor)]
        name, cost = f"donor-mean {len(self.donors)} {chunk_name(before)}", cost * len(self.donors)
        return shelf.block(
            ids, engine.fingerprint, name, part.owner, lambda: self._donors_before(prefix).block(ids), cost
        )

    def _behind_neighbours(self, part: Part, prefix: tuple[int, ...], behind: Behind, shelf: KvShelf) -> KvBlock:
        engine, ids, texts = self.engine, part.ids, behind.between
        before = [token for donor, text in zip(self.donors, texts, strict=True) for token in (*donor, *text)]
        name = f"neighbour-mean {len(texts)} {chunk_name([*prefix, *before])}"
        return shelf.block(
            ids, engine.fingerprint, name, part.owner, lambda: self._donors_before(prefix).block(ids, texts),
            sum(engine.cost(0, len(text) + len(ids)) for text in texts), behind.sources,
        )  # fmt: skip

    def _donors_before(self, prefix: tuple[int, ...]) -> DonorMean:
        if prefix not in self._donor_mean:
            self._donor_mean[prefix] = DonorMean(self.engine, prefix, self.donors)
        return self._donor_mean[prefix]
