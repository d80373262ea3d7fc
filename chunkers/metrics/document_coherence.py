"""DCC, document contextual coherence: how well a chunk fits the text around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from chunkers.metrics._base import Cuts, Sentences, SpanMetric
from rag.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_BLOCK = 64
"""How many windows are compared at a time."""


@dataclass(frozen=True, kw_only=True)
class DocumentCoherenceMetric(SpanMetric):
    """Mean cosine between a window of consecutive chunks and each chunk in it, over all windows.

    A window grows from each chunk while it holds at most `window_tokens`; it needs two chunks, and is left out when
    it ends where the one before it ends. None where there is no window.
    `leave_one_out`: compare a chunk with its window without that chunk. Otherwise a larger chunk, being more of the
    window, scores better for its size alone.

    Source: Adaptive Chunking (arXiv 2603.25333).
    Deviations: vectors of windows and chunks are means of sentence vectors, weighted by tokens; leave-one-out is ours.
    """

    label: ClassVar[str] = "DCC"
    needs_vectors: ClassVar[bool] = True

    window_tokens: int = 3000
    leave_one_out: bool = False

    def __post_init__(self) -> None:
        if self.window_tokens < 1:
            raise ConfigError(f"document-coherence: window_tokens must be >= 1, not {self.window_tokens}")

    def measure(self, cuts: Cuts, sentences: Sentences) -> float | None:
        import numpy as np

        first, last = self._windows(cuts)
        if not len(first):
            return None
        chunks = sentences.pooled(cuts.starts, cuts.ends)
        norms = np.maximum(np.linalg.norm(chunks, axis=1), 1e-12)
        whole = sentences.pooled(cuts.starts[first], np.maximum.accumulate(cuts.ends)[last])
        total, count = 0.0, 0
        for at in range(0, len(first), _BLOCK):  # windows side by side share most of their chunks: one product for all
            rows = slice(at, at + _BLOCK)
            low, high = int(first[rows][0]), int(last[rows][-1]) + 1
            columns = np.arange(low, high)
            inside = (columns >= first[rows, None]) & (columns <= last[rows, None])
            cosines, there = self._cosines(whole[rows], chunks[low:high], norms[low:high])
            total += float(cosines[inside & there].sum())
            count += int(inside.sum())
        return min(1.0, max(0.0, total / count))

    def _cosines(self, windows: Floats, chunks: Floats, norms: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """(windows, chunks) cosines, and where there is one: not where a chunk is its whole window."""
        import numpy as np

        inner = windows @ chunks.T
        squares = np.einsum("ij,ij->i", windows, windows)[:, None]
        rest = np.broadcast_to(squares, inner.shape)
        if self.leave_one_out:
            rest = rest - 2.0 * inner + norms**2
            inner = inner - norms**2
        there = rest > 1e-9 * squares
        return inner / (norms * np.sqrt(np.where(there, rest, 1.0))), there

    def _windows(self, cuts: Cuts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and last chunk of every window."""
        import numpy as np

        sums = np.concatenate(([0], np.cumsum(cuts.tokens)))
        last = np.searchsorted(sums, sums[:-1] + self.window_tokens, "right") - 2
        fresh = np.concatenate(([True], last[1:] != last[:-1]))
        first = np.flatnonzero((last > np.arange(len(last))) & fresh)
        return first, last[first]
