"""ChunkScore: how independent the chunks of a segmentation are of those before them, and how spread out they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chunkers._selection import random_cuts
from chunkers.metrics._base import Cuts, Sentences
from rag.protocols import TextModel
from rag.text import TokenMap

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["ModelIndependence", "Windows", "chunk_score", "dispersion", "scaled", "spread", "vector_independence"]

_RIDGE = 1e-3
_LEAST_SPREAD = 0.01
"""The least standard deviation of random cuts that a gain is divided by."""
_HALF = 2.0
"""A dispersion that many standard deviations above chance gains 0.5."""


def dispersion(vectors: Floats) -> float:
    """SD = (1/n) ln det(G + 1e-3 I), G the (n, n) Gram matrix of the n unit rows after their mean is taken off."""
    import numpy as np

    count, width = len(vectors), int(vectors.shape[1])
    centred = vectors - vectors.mean(axis=0)
    gram = centred @ centred.T if count <= width else centred.T @ centred  # the same eigenvalues but for zeros
    size = min(count, width)
    logdet = float(np.linalg.slogdet(gram + _RIDGE * np.eye(size))[1])
    return (logdet + (count - size) * math.log(_RIDGE)) / count


def _units(rows: Floats) -> Floats:
    import numpy as np

    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    units: Floats = rows / np.where(norms > 0, norms, 1.0)
    return units


def spread(cuts: Cuts, sentences: Sentences, samples: int) -> tuple[float, float | None]:
    """SD of the chunks, and with `samples` above 0 how far it lies above that of as many random cuts of the same sizes.

    The gain of z standard deviations is z / (2 + |z|). It takes away what SD owes to the number of chunks alone.
    """
    raw = dispersion(_units(sentences.pooled(cuts.starts, cuts.ends)))
    if not samples:
        return raw, None
    drawn = {one.starts.tobytes(): one for one in random_cuts(cuts, sentences, samples)}
    values = [dispersion(_units(sentences.pooled(one.starts, one.ends))) for one in drawn.values()]
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    z = (raw - mean) / max(_LEAST_SPREAD, deviation)
    return raw, z / (_HALF + abs(z))


def scaled(values: Sequence[float]) -> list[float]:
    """Each value's place between the smallest (0) and the largest (1); 0.5 for all where they are equal."""
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high - low > 1e-9 else 0.5 for value in values]


def chunk_score(independence: float, dispersion_scaled: float, lam: float) -> float:
    """lam LI + (1 - lam) SD, SD scaled over the candidates of one document."""
    return lam * independence + (1.0 - lam) * dispersion_scaled


@dataclass(frozen=True)
class Windows:
    """What is compared at a boundary: the first `opening` tokens of a chunk (None: all), given the last `tail` of the
    chunk before it. A fixed opening keeps long chunks, of which the context can help but the start, from gaining.
    """

    tokens: TokenMap
    opening: int | None
    tail: int

    def at(self, before: int, start: int, end: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(range of the tail, range of the opening) for neighbours [before, start) and [start, end)."""
        stop = end if self.opening is None else min(end, self.tokens.reach(start, self.opening))
        return (max(before, self.tokens.reach_back(start, self.tail)), start), (start, max(start + 1, stop))


def boundaries(cuts: Cuts, most: int | None) -> list[tuple[int, int, int]]:
    """(start of the chunk before, boundary, end of the chunk after) of `most` boundaries, evenly spaced; None: of all.

    [] for one chunk.
    """
    starts, ends = cuts.starts.tolist(), cuts.ends.tolist()
    rows = list(zip(starts[:-1], starts[1:], ends[1:], strict=True))
    if most is None or len(rows) <= most:
        return rows
    return [rows[at * len(rows) // most] for at in range(most)]


def vector_independence(cuts: Cuts, sentences: Sentences, windows: Windows) -> float:
    """Ours, where no model tells likelihoods: the mean over all boundaries of 1 - max(0, cosine) of tail and opening.

    1 for one chunk: nothing leans on anything. A tail here is as long as an opening; without limit both are whole.
    """
    import numpy as np

    rows = boundaries(cuts, None)
    if not rows:
        return 1.0
    if windows.opening is None:
        pairs = [((before, start), (start, end)) for before, start, end in rows]
    else:
        pairs = [windows.at(*row) for row in rows]
    left = np.array([pair[0] for pair in pairs], dtype=np.int64)
    right = np.array([pair[1] for pair in pairs], dtype=np.int64)
    first = _units(sentences.pooled(left[:, 0], left[:, 1]))
    second = _units(sentences.pooled(right[:, 0], right[:, 1]))
    cosines = np.einsum("ij,ij->i", first, second)
    return float(np.mean(1.0 - np.clip(cosines, 0.0, 1.0)))


@dataclass
class ModelIndependence:
    """LI of the paper: the mean over boundaries of min(1, nll(c_i | c_{i-1}) / nll(c_i)), from a language model.

    A ratio near 1 says that the chunk before does not help to read this one. Nothing is asked twice; `calls` and
    `chars` count what the model was given.
    """

    model: TextModel
    text: str
    windows: Windows
    most: int | None = None
    calls: int = 0
    chars: int = 0
    _known: dict[tuple[str, str], float | None] = field(default_factory=dict)

    def of(self, cuts: Cuts) -> float | None:
        """None where the model does not tell. 1 for one chunk."""
        ratios = []
        for row in boundaries(cuts, self.most):
            (low, high), (start, end) = self.windows.at(*row)
            opening = self.text[start:end]
            alone = self._loss(opening, "")
            given = self._loss(opening, self.text[low:high]) if alone is not None else None
            if alone is None or given is None:
                return None
            ratios.append(min(1.0, given / alone) if alone > 0 else 1.0)
        return math.fsum(ratios) / len(ratios) if ratios else 1.0

    def _loss(self, text: str, after: str) -> float | None:
        """Sum of the nats of the tokens of `text`; the two that are divided have the same tokens."""
        if (text, after) not in self._known:
            self.calls += 1
            self.chars += len(text) + len(after)
            losses = self.model.losses(text, after=after)
            self._known[text, after] = None if losses is None else math.fsum(nats for *_, nats in losses)
        return self._known[text, after]
