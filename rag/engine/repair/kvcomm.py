"""KVCOMM, arXiv 2510.12872: what other texts did to a chunk's KV tells what this one will do.

An anchor is a text that stood before the chunk once, and the offset of the chunk's keys and values behind it from those
of its block. Behind a new text the block gets the mean offset of its anchors, weighted by how near their texts are; one
without a near anchor is computed, and is an anchor from then on.

Deviations: anchors are those of the same chunk, not of similar ones; a text is the mean of its token embeddings, set to
length 1; weights are the softmax of minus the distance. A chunk that is computed stands behind chunks that may be
approximate, and so does its anchor. A prompt's first chunk is treated like the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rag.engine.cache import KvCache
from rag.engine.chunks import complete, open_at_prefix
from rag.engine.errors import EngineError
from rag.engine.layout import Layout, Placed
from rag.engine.model import EngineModel
from rag.engine.prefill import KeepGoing, Prefill
from rag.engine.repair._base import RepairPolicy
from rag.engine.rotate import rotate

__all__ = ["Kvcomm"]


@dataclass(frozen=True, slots=True, eq=False)
class _Anchor:
    """`text` (hidden) has length 1; offsets are (layers, kv heads, tokens, d), keys as if the chunk stood at 0."""

    text: Tensor
    k: Tensor
    v: Tensor


@dataclass(frozen=True, kw_only=True)
class Kvcomm(RepairPolicy):
    """`far` is the largest distance of an anchor that still helps, between 0 (the same text) and 2. At most
    `per_chunk` anchors of a chunk are kept, the latest, in memory. Not for several threads, and for one model only."""

    far: float = 0.5
    per_chunk: int = 4
    _anchors: dict[tuple[str, tuple[int, ...]], list[_Anchor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.far < 0 or self.per_chunk < 1:
            raise EngineError(f"kvcomm: far must be >= 0 and per_chunk >= 1, not {self.far} and {self.per_chunk}")

    @property
    def size_bytes(self) -> int:
        return sum(each.k.nbytes + each.v.nbytes for anchors in self._anchors.values() for each in anchors)

    def assemble(self, model: EngineModel, cache: KvCache, layout: Layout) -> None:
        open_at_prefix(model, cache, layout)
        for place in layout.placed:
            keys, values = place.block.k.to(model.device), place.block.v.to(model.device)
            near = self._near(model, layout, place)
            if near:
                weights = torch.tensor([-distance for distance, _ in near]).softmax(0).tolist()
                keys, values = (
                    (base.float() + sum(w * getattr(each, kind) for w, (_, each) in zip(weights, near, strict=True)))
                    for base, kind in ((keys, "k"), (values, "v"))
                )
            cache.write(place.start, rotate(keys, place.start, model.frequencies).to(model.dtype), values)

    def finish(
        self,
        model: EngineModel,
        cache: KvCache,
        layout: Layout,
        *,
        chunk_tokens: int = 512,
        keep_going: KeepGoing | None = None,
    ) -> Prefill:
        unknown = [place for place in layout.placed if not self._near(model, layout, place)]
        repair = [position for place in unknown for position in range(place.start, place.stop)]
        done = complete(model, cache, layout, repair, chunk_tokens=chunk_tokens, keep_going=keep_going)
        for place in unknown:
            keys, values = cache.read(place.start, place.stop)
            keys = rotate(keys.float(), -place.start, model.frequencies)
            anchor = _Anchor(
                _text(model, layout.ids[: place.start]),
                keys - place.block.k.to(keys).float(),
                values.float() - place.block.v.to(values).float(),
            )
            kept = self._anchors.setdefault((model.fingerprint, place.block.ids), [])
            kept.append(anchor)
            del kept[: -self.per_chunk]
        return done

    def _near(self, model: EngineModel, layout: Layout, place: Placed) -> list[tuple[float, _Anchor]]:
        text = _text(model, layout.ids[: place.start])
        known = self._anchors.get((model.fingerprint, place.block.ids), ())
        near = [(float((text - anchor.text).norm()), anchor) for anchor in known]
        return [pair for pair in near if pair[0] <= self.far]


def _text(model: EngineModel, ids: Sequence[int]) -> Tensor:
    """(hidden), float32, of length 1; zeros for no text."""
    weights: Tensor = model.model.get_input_embeddings().weight
    if not ids:
        return torch.zeros(weights.shape[1], device=weights.device)
    with torch.no_grad():
        mean = weights[torch.tensor(list(ids), device=weights.device)].float().mean(0)
    length: Tensor = mean.norm().clamp_min(1e-12)
    return mean.div(length)
