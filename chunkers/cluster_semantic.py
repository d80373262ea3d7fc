"""Globally optimal semantic chunks: the segmentation whose chunks are most coherent inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chunkers._embedded import EmbeddedChunker
from chunkers._segment import Atoms, best_cuts, coherence_gain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class ClusterSemanticChunker(EmbeddedChunker):
    """Maximises the sum over all sentence pairs inside of chunks of (cosine - mean cosine of the document).

    Source: ClusterSemanticChunker of Chroma's chunking evaluation (Smith and Troynikov, 2024).
    Deviations: sentences instead of pieces of 50 tokens; prefix sums instead of the n x n matrix; the first chunk
    keeps the limit too (the original starts at 0 instead of minus infinity, so that it may not).
    """

    def segment(self, atoms: Atoms, low: NDArray[np.int64]) -> list[int]:
        return best_cuts(low, coherence_gain(atoms.sums))
