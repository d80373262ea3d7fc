"""SC, size compliance: the share of chunks whose size is within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rag.errors import ConfigError
from rag.protocols import Metric, SentenceView
from rag.types import Chunk


@dataclass(frozen=True, kw_only=True)
class SizeComplianceMetric(Metric):
    """1 - the share of chunks with fewer than `least` or more than `most` tokens.

    Source: Adaptive Chunking (arXiv 2603.25333), whose bounds are 100 and 1100 tokens of GPT-4o.
    Deviations: tokens of the counter that cut the chunks; bounds in proportion to encoders of 256 tokens.
    """

    label: ClassVar[str] = "SC"

    least: int = 32
    most: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most:
            raise ConfigError(f"size-compliance: 0 <= least <= most is needed, not {self.least} and {self.most}")

    def score(self, chunks: Sequence[Chunk], view: SentenceView) -> float | None:
        if not chunks:
            return None
        return sum(self.least <= chunk.token_count <= self.most for chunk in chunks) / len(chunks)
