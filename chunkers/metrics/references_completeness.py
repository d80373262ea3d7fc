"""RC, references completeness: how many pronouns stay in one chunk with what they refer to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from chunkers.metrics._base import Cuts, Sentences, SpanMetric
from rag.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReferencesCompletenessMetric(SpanMetric):
    """1 - the share of (entity, pronoun) pairs that a chunk boundary parts.

    A pair reaches from the first character of the entity to the end of the pronoun; a boundary b (starts of chunks
    but the first, ends but the last) with start < b <= end breaks it. None for a document without pairs.
    `pairs`: (start, end) of the pairs of the one document at hand, from a coreference model or by hand; None finds
    them by rules.

    Source: Adaptive Chunking (arXiv 2603.25333).
    Deviations: the pairs. The paper takes those of a coreference model; the rules here (`_references`) know English
    third-person pronouns and `this` + noun, and take the nearest compatible name or noun up to two sentences back.
    """

    label: ClassVar[str] = "RC"

    pairs: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        for start, end in self.pairs or ():
            if not 0 <= start < end:
                raise ConfigError(f"references-completeness: a pair needs 0 <= start < end, not ({start}, {end})")

    def measure(self, cuts: Cuts, sentences: Sentences) -> float | None:
        import numpy as np

        pairs = sentences.references
        if self.pairs is not None:
            pairs = np.array(self.pairs, dtype=np.int64).reshape(-1, 2)
        if not len(pairs):
            return None
        borders = np.unique(np.concatenate((cuts.starts[1:], cuts.ends[:-1])))
        inside = np.searchsorted(borders, pairs, "right")
        return float(1.0 - np.mean(inside[:, 1] > inside[:, 0]))
