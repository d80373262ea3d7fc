"""ICC, intrachunk cohesion: how near the sentences of a chunk are to the chunk as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from chunkers.metrics._base import Cuts, Sentences, SpanMetric


@dataclass(frozen=True, kw_only=True)
class IntrachunkCohesionMetric(SpanMetric):
    """Mean over chunks of the mean cosine between a chunk and its sentences; chunks of one sentence do not count.

    None when no chunk has two sentences.

    Source: Adaptive Chunking (arXiv 2603.25333).
    Deviations: pieces are sentences, not the parser's blocks; the vector of a chunk is the mean of its sentences'
    vectors, weighted by tokens, so that nothing is encoded for the measure.
    """

    label: ClassVar[str] = "ICC"
    needs_vectors: ClassVar[bool] = True

    def measure(self, cuts: Cuts, sentences: Sentences) -> float | None:
        import numpy as np

        first, last = sentences.pieces(cuts)
        several = last - first > 1
        if not several.any():
            return None
        first, last = first[several], last[several]
        whole = sentences.pooled(cuts.starts[several], cuts.ends[several])
        parts = sentences.plain_sums[last] - sentences.plain_sums[first]
        norms = np.maximum(np.linalg.norm(whole, axis=1), 1e-12)
        cosines = np.einsum("ij,ij->i", parts, whole) / (norms * (last - first))
        return float(np.clip(cosines.mean(), 0.0, 1.0))
