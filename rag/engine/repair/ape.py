"""APE, arXiv 2502.05431: the chunks stand side by side, and their attention is sharpened and weighed down.

All chunks were computed behind one shared prefix and keep the same range of positions after it; the question follows
the longest. Attention to them has a temperature below 1, and their log-sum-exp is multiplied by a scale.

Deviations: prefix and chunks move up so that the question keeps its usual positions; rotary attention knows distances
only, so that is the same. All new tokens stand after the chunks: text between them belongs into them.
"""

from __future__ import annotations

from dataclasses import dataclass

from rag.engine.attend import ScaledContext
from rag.engine.cache import KvCache
from rag.engine.chunks import complete, open_at_prefix
from rag.engine.errors import EngineError
from rag.engine.layout import Layout
from rag.engine.model import EngineModel
from rag.engine.prefill import KeepGoing, Prefill
from rag.engine.repair._base import RepairPolicy
from rag.engine.rotate import rotate

__all__ = ["Ape"]


@dataclass(frozen=True, kw_only=True)
class Ape(RepairPolicy):
    """Repairs nothing. The cache stays read this way until it is assembled again, so that the answer is too."""

    temperature: float = 0.9
    scale: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.temperature <= 1 or not 0 < self.scale <= 1:
            raise EngineError(f"ape: temperature and scale must lie in (0, 1], not {self.temperature} and {self.scale}")

    def assemble(self, model: EngineModel, cache: KvCache, layout: Layout) -> None:
        stop = layout.placed[-1].stop if layout.placed else layout.prefix
        if layout.fresh[0] < stop:
            raise EngineError(
                f"ape: position {layout.fresh[0]} is new but stands before a chunk: put text between chunks into them"
            )
        open_at_prefix(model, cache, layout)
        start = stop - max((len(place.block) for place in layout.placed), default=0)
        if layout.prefix and start > layout.prefix:
            keys, values = cache.read(0, layout.prefix)
            cache.write(0, rotate(keys, start - layout.prefix, model.frequencies), values)
            cache.moved = True
        for place in layout.placed:
            cache.write(place.start, rotate(place.block.k.to(model.device), start, model.frequencies), place.block.v)
        if (self.temperature, self.scale) != (1, 1) and layout.placed:
            context = ScaledContext(layout.prefix, stop, self.temperature, self.scale)
            cache.attention = {"scaled_context": context}

    def finish(
        self,
        model: EngineModel,
        cache: KvCache,
        layout: Layout,
        *,
        chunk_tokens: int = 512,
        keep_going: KeepGoing | None = None,
    ) -> Prefill:
        return complete(model, cache, layout, chunk_tokens=chunk_tokens, keep_going=keep_going)
