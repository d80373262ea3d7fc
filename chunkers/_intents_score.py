"""The two objectives of intent-driven chunking, term by term, for all chunks that end at one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from chunkers._intents import Intents
from chunkers._segment import Atoms, mean_similarity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["TERMS", "Score", "Weights"]

_TITLE = 3.0
"""Off for a cut between a title and its text: more than any other term gives for one."""
TERMS = ("intent", "coherence", "size", "structure")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The numbers in an objective; see the plugin's fields of the same names."""

    objective: Literal["length-weighted", "paper"]
    lam: float
    beta: float
    w_intent: float
    w_coherence: float
    w_size: float
    w_paragraph: float
    w_section: float
    target_chars: int
    line_paragraphs: bool = False


@dataclass(frozen=True)
class Score:
    """An additive objective over the segmentations of `atoms`: the sum of `gain` over chunks and `prior` at cuts."""

    atoms: Atoms
    intents: Intents
    weights: Weights

    @cached_property
    def prior(self) -> Floats:
        """(n,) the structure term of a cut before each atom; the first atom's is 0, since no cut stands there."""
        import numpy as np

        weights, values = self.weights, np.full(len(self.atoms), -self.weights.beta)
        if weights.objective == "length-weighted":
            paragraphs, sections = self.atoms.paragraphs, self.atoms.sections
            if weights.line_paragraphs:
                opened, titles = self.atoms.lines
                paragraphs, sections = paragraphs | opened, sections | titles
                values[1:] -= _TITLE * (titles[:-1] & opened[1:])
            values += weights.w_paragraph * paragraphs + weights.w_section * sections
        values[0] = 0.0
        return values

    @cached_property
    def _relevance(self) -> Floats:
        """(n + 1, M) prefix rows of S = X Q^T."""
        rows: Floats = self.atoms.sums @ self.intents.vectors.T
        return rows

    @cached_property
    def _squares(self) -> Floats:
        import numpy as np

        values: Floats = np.einsum("ij,ij->i", self.atoms.sums, self.atoms.sums)
        return values

    @cached_property
    def _chars(self) -> Floats:
        import numpy as np

        return np.concatenate(([0], np.cumsum(self.atoms.chars))).astype(np.float64)

    @cached_property
    def _mean(self) -> float:
        return mean_similarity(self.atoms.sums)

    def gain(self, i: int, low: int) -> Floats:
        """(i - low,) the scores of the chunks (j, i), j = low .. i-1."""
        intent, coherence, size = self.parts(i, low)
        values: Floats = intent + coherence + size
        return values

    def parts(self, i: int, low: int) -> tuple[Floats, Floats, Floats]:
        """The intent, coherence and size terms of the chunks (j, i), j = low .. i-1, each (i - low,)."""
        import numpy as np

        sums, weights = self.atoms.sums, self.weights
        counts = np.arange(i - low, 0, -1, dtype=np.float64)
        squares = np.maximum(self._squares[i] + self._squares[low:i] - 2.0 * (sums[low:i] @ sums[i]), 0.0)
        relevance = self._best(i, low, squares)
        if weights.objective == "paper":
            return relevance, np.zeros(i - low), -weights.lam * counts**2
        lengths = (self._chars[i] - self._chars[low:i]) / weights.target_chars
        pairs = np.maximum(counts * (counts - 1.0), 1.0)
        cohesion = np.where(counts > 1, (squares - counts) / pairs - self._mean, 0.0)  # one sentence says nothing
        return (
            weights.w_intent * lengths * relevance,
            weights.w_coherence * lengths * cohesion,
            -weights.w_size * (lengths - 1.0) ** 2,
        )

    def _best(self, i: int, low: int, squares: Floats) -> Floats:
        """R of the chunks: the largest cosine of their mean vectors with an intent; 0 where there is none."""
        import numpy as np

        if not len(self.intents):
            return np.zeros(i - low)
        tops = (self._relevance[i] - self._relevance[low:i]).max(axis=1)
        values: Floats = tops / np.sqrt(np.where(squares > 1e-12, squares, np.inf))
        return values

    def serves(self, j: int, i: int) -> int:
        """The intent that the chunk (j, i) fits best; -1 without intents."""
        return int((self._relevance[i] - self._relevance[j]).argmax()) if len(self.intents) else -1

    def terms(self, cuts: Sequence[int]) -> Floats:
        """(k, 4) the terms of every chunk, as in TERMS, its structure being that of the cut before it."""
        import numpy as np

        rows = [[*(part[0] for part in self.parts(i, j)), self.prior[j]] for j, i in pairwise((0, *cuts))]
        return np.array(rows)

    def margin(self, before: int, cut: int, after: int) -> float:
        """What the objective has more with this cut than without it, its neighbours in place."""
        apart = self.gain(cut, before)[0] + self.gain(after, cut)[0] + self.prior[cut]
        return float(apart - self.gain(after, before)[0])
