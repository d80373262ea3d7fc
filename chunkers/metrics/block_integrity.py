"""BI, block integrity: how many paragraphs, tables, lists and code blocks stay whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from chunkers._cuts import outer_blocks
from chunkers.metrics._base import Cuts, Sentences, SpanMetric
from rag.errors import ConfigError
from rag.types import Chunk, Document


@dataclass(frozen=True, kw_only=True)
class BlockIntegrityMetric(SpanMetric):
    """The share of blocks in which no chunk starts, but for `tolerance` characters at either end.

    Blocks are those of the parser, each up to the next; paragraphs between empty lines where it found none.

    Source: Adaptive Chunking (arXiv 2603.25333), tolerance 5.
    Deviations: the blocks of our parsers instead of those of a layout service.
    """

    label: ClassVar[str] = "BI"

    tolerance: int = 5

    def __post_init__(self) -> None:
        if self.tolerance < 0:
            raise ConfigError(f"block-integrity: tolerance must be >= 0, not {self.tolerance}")

    def measure(self, cuts: Cuts, sentences: Sentences) -> float | None:
        import numpy as np

        blocks = sentences.blocks
        before = np.searchsorted(cuts.starts, blocks[:, 0] + self.tolerance, "right")
        upto = np.searchsorted(cuts.starts, blocks[:, 1] - self.tolerance, "left")
        return float(1.0 - np.mean(upto > before)) if len(blocks) else None

    def inner_cuts(self, chunks: Sequence[Chunk], document: Document) -> dict[str, int]:
        """How many chunks start inside of a table, and of a code block: `{"table": 0, "code": 2}`."""
        found = {"table": 0, "code": 0}
        for block in outer_blocks(document):
            if block.kind in found:
                low, high = block.span.start + self.tolerance, block.span.end - self.tolerance
                found[block.kind] += sum(low < chunk.span.start < high for chunk in chunks)
        return found
