"""EPIC (LegoLink), arXiv 2410.15332: the first tokens of every chunk but the first are computed again.

A chunk prefilled alone makes its own first tokens an attention sink; in the middle of a prompt there is none.

Deviations: `first` also repairs the first chunk, for blocks that were made behind another prefix than this prompt's.
"""

from __future__ import annotations

from dataclasses import dataclass

from rag.engine.cache import KvCache
from rag.engine.errors import EngineError
from rag.engine.layout import Layout
from rag.engine.model import EngineModel
from rag.engine.repair._base import TokenRepair, first_tokens

__all__ = ["Epic"]


@dataclass(frozen=True, kw_only=True)
class Epic(TokenRepair):
    """Repairs the first `k` tokens of each block; of the first one only with `first`."""

    k: int = 16
    first: bool = False

    def __post_init__(self) -> None:
        if self.k < 0:
            raise EngineError(f"epic: k must be >= 0, not {self.k}")

    def tokens_to_repair(self, layout: Layout, model: EngineModel, cache: KvCache) -> tuple[int, ...]:
        return first_tokens(layout.placed if self.first else layout.placed[1:], self.k)
