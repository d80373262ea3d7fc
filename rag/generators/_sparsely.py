"""One prompt read by sparse attention: its pieces are the units, their scores the prior, and what was read is counted.

What a prompt begins with can be kept for others up to the end of its last piece, as long as they are read the same way
and have the same pieces there: no selection lets the rows of a piece depend on what stands behind their pass.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from rag.engine.attend import SparseCache
from rag.engine.attention import AttentionStats, Kept, Memory, Selection, Sparse, Step, Units
from rag.engine.attention.chunk_block import ChunkBlock
from rag.engine.model import EngineModel
from rag.engine.prefix import PrefixPool
from rag.generators._attention_calibration import choose, retrieval_heads
from rag.generators._parts import Plan
from rag.generators._sparse import Attention, build_selection, checked_attention

__all__ = ["SparsePrompt", "SparseTold", "sparse_prompt", "unread_spans"]

_EVERY = 16
"""Of so many tokens of the answer one is looked at."""


@dataclass(frozen=True, slots=True)
class SparseTold:
    """How a prompt and its answer were read. Densities are shares of the pairs of a token and a slot that it could
    read; that of `decode` is None where the answer has one token, which needs no pass. `read` (segments) is the share
    of each segment's keys that the question's last token and every 16th of the answer read, over layers and heads."""

    selection: str
    executor: str
    density: float
    prefill: float
    decode: float | None
    read: tuple[float, ...]
    dense_masks: int

    def notes(self) -> dict[str, Any]:
        """Of a trace."""
        told = {"selection": self.selection, "executor": self.executor, "prefill_density": round(self.prefill, 4)}
        decode = None if self.decode is None else round(self.decode, 4)
        dense = {"dense_masks": self.dense_masks} if self.dense_masks else {}
        return {**told, "decode_density": decode, **dense}


@dataclass(eq=False, slots=True)
class _Seen:
    total: Tensor | None = None
    rows: int = 0

    def add(self, shares: Tensor) -> None:
        self.total = shares if self.total is None else self.total + shares
        self.rows += 1

    def mean(self, segments: int) -> tuple[float, ...]:
        return (1.0,) * segments if self.total is None else tuple((self.total / self.rows).tolist())


@dataclass(frozen=True, kw_only=True)
class _Watched(Selection):
    """`inner`, of whose choices some are looked at; `spans` are the segments of a prompt of `tokens`."""

    name: ClassVar[str] = "watched"
    foresight: ClassVar[Literal["none", "block", "pass"]] = "block"
    inner: Selection
    spans: tuple[tuple[int, int], ...]
    seen: _Seen = field(default_factory=_Seen)

    def __post_init__(self) -> None:
        object.__setattr__(self, "foresight", self.inner.foresight)

    @property
    def label(self) -> str:
        return self.inner.label

    def select(self, step: Step, memory: Memory) -> Kept | None:
        kept = self.inner.select(step, memory)
        behind = int(step.places[-1]) + 1 - self.spans[-1][1]
        if behind == 0 or (behind > 0 and behind % _EVERY == 1):
            self.seen.add(self._shares(kept, int(step.places[-1]) + 1, step))
        return kept

    def _shares(self, kept: Kept | None, slots: int, step: Step) -> Tensor:
        """(segments): what of each the last row reads."""
        read = torch.ones(slots, device=step.device)
        if kept is not None:
            read[: kept.local[-1]] = kept.past(len(kept.local) - 1).float().mean((0, 1))
        upto = torch.nn.functional.pad(read.double().cumsum(0), (1, 0))
        return torch.stack([(upto[stop] - upto[start]) / (stop - start) for start, stop in self.spans])


@dataclass(eq=False, kw_only=True)
class SparsePrompt:
    """One prompt. What stands in its first `fixed` tokens is the same for every prompt with the same `name`."""

    sparse: Sparse
    watched: _Watched
    name: bytes
    fixed: int
    unread: tuple[int, ...] = ()
    """Pieces, by number, that no token of another one reads, whatever the question is."""
    _prefill: AttentionStats | None = None

    def cache(self, engine: EngineModel, capacity: int) -> SparseCache:
        return SparseCache(engine.layers, max(1, capacity), self.sparse)

    @contextmanager
    def salted(self, pool: PrefixPool) -> Iterator[None]:
        """Inside, `pool` knows only what was read this way."""
        before, pool.salt = pool.salt, pool.salt + self.name
        try:
            yield
        finally:
            pool.salt = before

    def prompt_read(self) -> None:
        """All passes from now on are of the answer."""
        self._prefill = self.sparse.stats

    def told(self) -> SparseTold:
        stats = self.sparse.stats
        prompt = self._prefill or stats
        pairs = stats.causal_pairs - prompt.causal_pairs
        decode = min(1.0, (stats.kept_pairs - prompt.kept_pairs) / pairs) if pairs else None
        read = self.watched.seen.mean(len(self.watched.spans))
        whole, before = (min(1.0, one.density) for one in (stats, prompt))
        return SparseTold(stats.selection, stats.ran, whole, before, decode, read, stats.unread_masks)


def sparse_prompt(spec: Attention, engine: EngineModel, plan: Plan) -> SparsePrompt | None:
    """None where the attention is dense: asked for, or chosen by `auto`."""
    name, given, executor = checked_attention(spec)
    edges = list(accumulate((len(part.ids) for part in plan.parts), initial=0))
    if name == "auto":
        found = choose(engine.fingerprint, edges[-1], given.get("table", ""))
        if found is None or found["use"] in ("dense", "auto"):
            return None
        chosen = found if executor == "auto" else {**found, "executor": executor}
        return sparse_prompt(chosen, engine, plan)
    if name == "dense":
        return None
    spans = tuple(pairwise([0, *edges[1:-1:2], edges[-1]]))  # start, each piece with its head, question
    units = _units(spans[1:-1], plan).to(engine.device)
    if name == "chunk-block" and "heads" not in given:
        given = {**given, "heads": retrieval_heads(engine.fingerprint)}
    selection = build_selection({"use": name, **given})
    watched = _Watched(inner=selection, spans=spans)
    told = json.dumps([name, given, executor, spans[1:-1]], sort_keys=True).encode()
    return SparsePrompt(
        sparse=Sparse(watched, executor, units),  # type: ignore[arg-type]  # checked to be one of the names
        watched=watched,
        name=hashlib.blake2b(told, digest_size=16).digest(),
        fixed=units.stop,
        unread=unread_spans(selection, units),
    )


def _units(spans: Sequence[tuple[int, int]], plan: Plan) -> Units:
    """The pieces, each with its head; their scores are the prior where all of them have one."""
    pieces = plan.context.pieces
    scores = [one.score for one in pieces if one.score is not None and math.isfinite(one.score)]
    priors = scores if len(scores) == len(pieces) else ()
    return Units.of_spans(spans, ids=[one.chunk_id for one in pieces], priors=priors)


def unread_spans(selection: Selection, units: Units) -> tuple[int, ...]:
    """The numbers of the spans that no row outside of them ever reads, as far as that is known before any key is: of
    `chunk-block` whose chunks read themselves, whose question chooses too, and whose anchor and `floor` chunks by prior
    leave no room for another unit."""
    if not isinstance(selection, ChunkBlock) or selection.question_dense or selection.density >= 1 or not len(units):
        return ()
    if selection.context != "own" or selection.dense_layers:
        return ()
    layout = selection.layout(units)
    parts, always = layout.units, layout.always
    if bool(always.all()):
        return ()
    left = int(selection.density * int(parts.lengths.sum())) - int(parts.lengths[always].sum())
    if left >= int(parts.lengths[~always].min()):
        return ()  # the scores of the keys decide
    read = set(parts.parents[always].tolist())
    return tuple(number for number in range(len(units)) if number not in read)
