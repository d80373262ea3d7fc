"""Semantic chunks by threshold: cut where neighbouring sentences differ more than usual in this document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from chunkers._embedded import EmbeddedChunker
from chunkers._segment import Atoms, within_limits
from rag.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_AMOUNTS = {"percentile": 95.0, "sd": 3.0, "iqr": 1.5, "gradient": 95.0}


@dataclass(frozen=True, kw_only=True)
class SemanticChunker(EmbeddedChunker):
    """Cuts where the distance between the sentences around a place exceeds a threshold of the document.

    `threshold`: what the threshold is made of: the `amount`-th percentile of the distances (95), their mean plus
    `amount` standard deviations (3), their mean plus `amount` interquartile ranges (1.5), or the `amount`-th percentile
    of their gradient (95). `amount` None is the number in brackets. `buffer`: how many sentences on each side of a
    place are averaged.
    A group over the limit is cut again where its inner distance is largest.

    Source: Kamradt's semantic splitter as in LangChain's SemanticChunker.
    Deviations: hard limits; a sentence is embedded once and windows are averages of its vectors, where the original
    embeds every window anew; exact spans.
    """

    threshold: Literal["percentile", "sd", "iqr", "gradient"] = "percentile"
    amount: float | None = None
    buffer: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold not in _AMOUNTS:
            raise ConfigError(f"semantic: threshold must be one of {', '.join(_AMOUNTS)}, not {self.threshold!r}")
        self._check_at_least("buffer", self.buffer, 1)
        percent = self.threshold in ("percentile", "gradient")
        if self.amount is not None and not 0.0 <= self.amount <= (100.0 if percent else float("inf")):
            raise ConfigError(
                f"semantic: amount must be >= 0{' and <= 100' if percent else ''} for {self.threshold}, "
                f"not {self.amount}"
            )

    def segment(self, atoms: Atoms, low: NDArray[np.int64]) -> list[int]:
        if len(atoms) == 1:
            return [1]
        distances = self.distances(atoms)
        cuts = [int(at) + 1 for at in _above(distances, self.threshold, self._amount)]
        return within_limits([*cuts, len(atoms)], distances, low)

    @property
    def _amount(self) -> float:
        return _AMOUNTS[self.threshold] if self.amount is None else self.amount

    def distances(self, atoms: Atoms) -> NDArray[np.float64]:
        """(n - 1,) 1 - cosine between the `buffer` sentences before and after each inner place."""
        import numpy as np

        count, sums = len(atoms), atoms.sums
        places = np.arange(1, count)
        left = sums[places] - sums[np.maximum(places - self.buffer, 0)]
        right = sums[np.minimum(places + self.buffer, count)] - sums[places]
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        cosines = np.einsum("ij,ij->i", left, right) / np.where(norms > 0, norms, 1.0)
        values: NDArray[np.float64] = 1.0 - cosines
        return values


def _above(distances: NDArray[np.float64], kind: str, amount: float) -> NDArray[np.int64]:
    """Places whose distance (or its gradient) is over the threshold."""
    import numpy as np

    values = distances
    if kind == "gradient" and len(distances) > 1:
        values = np.gradient(distances)
    if kind in ("percentile", "gradient"):
        limit = np.percentile(values, amount)
    elif kind == "sd":
        limit = values.mean() + amount * values.std()
    else:
        low, high = np.percentile(values, [25, 75])
        limit = values.mean() + amount * (high - low)
    found: NDArray[np.int64] = np.flatnonzero(values > limit)
    return found
