"""What the measures share: chunks as arrays of offsets, and vectors of any range pooled from sentence vectors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from chunkers._cuts import CutLevels, outer_blocks
from chunkers._segment import Atoms
from chunkers.metrics._references import mention_pairs
from rag.protocols import Metric, SentenceView
from rag.types import Chunk, Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rag.protocols import Vectors

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = ["Cuts", "Sentences", "SpanMetric"]


@dataclass(frozen=True)
class Cuts:
    """Chunks as three arrays of the same length, sorted by start: first character, end, tokens."""

    starts: Ints
    ends: Ints
    tokens: Ints

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Cuts:
        import numpy as np

        rows = sorted((chunk.span.start, chunk.span.end, chunk.token_count) for chunk in chunks)
        table = np.array(rows, dtype=np.int64).reshape(-1, 3)
        return cls(table[:, 0], table[:, 1], table[:, 2])


class Sentences(SentenceView):
    """A view with what the measures derive from it, each made once: prefix sums, blocks, mention pairs."""

    def __init__(self, view: SentenceView | Atoms) -> None:
        self._view = view
        self.document: Document = view.document

    @classmethod
    def of(cls, view: SentenceView) -> Sentences:
        return view if isinstance(view, cls) else cls(view)

    @cached_property
    def starts(self) -> Ints:  # type: ignore[override]  # an array is a sequence in all that matters here
        return self._offsets(self._view.starts)

    @cached_property
    def ends(self) -> Ints:  # type: ignore[override]
        return self._offsets(self._view.ends)

    @property
    def tokens(self) -> Ints:
        return self._view.tokens

    @property
    def vectors(self) -> Vectors:
        return self._view.vectors

    @property
    def limit(self) -> int | None:
        """The size limit that the view was made with, where it tells."""
        ruler: Any = getattr(self._view, "ruler", None)
        return getattr(ruler, "max_tokens", None)

    @cached_property
    def token_sums(self) -> Ints:
        """(n + 1,) prefix sums of the tokens."""
        import numpy as np

        return np.concatenate(([0], np.cumsum(self.tokens, dtype=np.int64)))

    @cached_property
    def weights(self) -> Floats:
        """(n,) what a sentence weighs in a mean: its tokens, at least 1."""
        import numpy as np

        return np.maximum(self.tokens, 1).astype(np.float64)

    @cached_property
    def sums(self) -> Floats:
        """(n + 1, d) prefix sums of the vectors times their weights."""
        return self._prefix(self.weights)

    @cached_property
    def plain_sums(self) -> Floats:
        """(n + 1, d) prefix sums of the vectors."""
        import numpy as np

        return self._prefix(np.ones(len(self.ends)))

    def pieces(self, cuts: Cuts) -> tuple[Ints, Ints]:
        """For each chunk the first sentence that it touches, and the one after the last."""
        import numpy as np

        return np.searchsorted(self.ends, cuts.starts, "right"), np.searchsorted(self.starts, cuts.ends, "left")

    def pooled(self, starts: Ints, ends: Ints) -> Floats:
        """(k, d) weighted sums over the ranges [start, end); a sentence that is cut counts by its share."""
        return self._sum_before(ends) - self._sum_before(starts)

    @cached_property
    def blocks(self) -> Ints:
        """(b, 2) ranges between the starts of the parser's outer blocks; paragraphs where it found none."""
        import numpy as np

        text = self.document.text
        points = [block.span.start for block in outer_blocks(self.document)]
        if not points:
            points = CutLevels(self.document, ("blank-lines",)).points(0)
        edges = np.unique(np.array([0, *(at for at in points if at < len(text)), len(text)], dtype=np.int64))
        return np.column_stack((edges[:-1], edges[1:]))

    @cached_property
    def references(self) -> Ints:
        """(p, 2) from the start of a mention to the end of a pronoun that refers to it, found by rules."""
        import numpy as np

        return np.array(mention_pairs(self.document, self._view.ends), dtype=np.int64).reshape(-1, 2)

    def _offsets(self, values: Sequence[int]) -> Ints:
        import numpy as np

        return np.asarray(values, dtype=np.int64)

    def _prefix(self, weights: Floats) -> Floats:
        import numpy as np

        sums = np.zeros((len(weights) + 1, self.vectors.shape[1]))
        np.cumsum(self.vectors * weights[:, None], axis=0, out=sums[1:])
        return sums

    def _sum_before(self, offsets: Ints) -> Floats:
        import numpy as np

        at = np.searchsorted(self.ends, offsets, "right")
        sums: Floats = self.sums[at]
        inside = np.flatnonzero((at < len(self.ends)) & (offsets > self.starts[np.minimum(at, len(self.ends) - 1)]))
        if len(inside):
            row = at[inside]
            share = (offsets[inside] - self.starts[row]) / (self.ends[row] - self.starts[row])
            sums[inside] += (share * self.weights[row])[:, None] * self.vectors[row]
        return sums


class SpanMetric(Metric):
    """Base of measures that need the offsets and token counts of the chunks only."""

    needs_vectors: ClassVar[bool] = False
    """True for measures that look at the vectors of the sentences."""

    def score(self, chunks: Sequence[Chunk], view: SentenceView) -> float | None:
        return self.measure(Cuts.of(chunks), Sentences.of(view)) if chunks else None

    @abstractmethod
    def measure(self, cuts: Cuts, sentences: Sentences) -> float | None:
        """The score of at least one chunk; None where the measure says nothing."""
