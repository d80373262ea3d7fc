"""SC, size compliance: the share of chunks whose size is within bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from chunkers.metrics._base import Cuts, Sentences, SpanMetric
from rag.errors import ConfigError

_LIMIT = 256


@dataclass(frozen=True, kw_only=True)
class SizeComplianceMetric(SpanMetric):
    """1 - the share of chunks with fewer than `least` or more than `most` tokens.

    `most`: None means the size limit that the sentences were cut with, else 256; `least`: None means an eighth of
    that limit.

    Source: Adaptive Chunking (arXiv 2603.25333), whose bounds are 100 and 1100 tokens of GPT-4o.
    Deviations: tokens of the counter that cut the chunks; bounds in proportion to what the encoder reads.
    """

    label: ClassVar[str] = "SC"

    least: int | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        if (self.least or 0) < 0 or (self.most is not None and not (self.least or 0) <= self.most):
            raise ConfigError(f"size-compliance: 0 <= least <= most is needed, not {self.least} and {self.most}")

    def measure(self, cuts: Cuts, sentences: Sentences) -> float | None:
        limit = sentences.limit or _LIMIT
        most = limit if self.most is None else self.most
        least = min(most, limit // 8) if self.least is None else self.least
        return float(((cuts.tokens >= least) & (cuts.tokens <= most)).mean())
