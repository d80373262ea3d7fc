"""Paired bootstrap over questions, and Holm's correction over the chunkers that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Difference", "differences", "holm", "spearman"]

_BLOCK = 500  # resamples at a time: bounds memory


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean paired difference, its 95 % percentile interval, and a two-sided bootstrap p-value."""

    mean: float
    low: float
    high: float
    p: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def differences(
    scores: NDArray[np.float64], baseline: NDArray[np.float64], *, resamples: int = 10_000, seed: int = 0
) -> list[Difference]:
    """One Difference per row: (m, questions) scores minus (m, questions) of the baseline.

    All rows share the resampled questions. p is twice the share of resampled means on the other side of 0, with one
    added to both counts, so it is never 0.
    """
    import numpy as np

    paired = np.asarray(scores, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    count = paired.shape[1]
    draw = np.random.default_rng(seed)
    share = np.full(count, 1.0 / count)
    blocks = []
    for at in range(0, resamples, _BLOCK):
        weights = draw.multinomial(count, share, size=min(_BLOCK, resamples - at))
        blocks.append(weights @ paired.T / count)
    means = np.concatenate(blocks)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    below, above = (means <= 0).sum(axis=0), (means >= 0).sum(axis=0)
    p = np.minimum(1.0, 2 * (np.minimum(below, above) + 1) / (resamples + 1))
    return [
        Difference(mean=float(m), low=float(a), high=float(b), p=float(q))
        for m, a, b, q in zip(paired.mean(axis=1), low, high, p, strict=True)
    ]


def holm(values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): the k-th smallest of m times (m - k + 1), never falling, 1 at most."""
    order = sorted(range(len(values)), key=lambda at: values[at])
    adjusted = [0.0] * len(values)
    largest = 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, values[at] * (len(values) - rank)))
        adjusted[at] = largest
    return adjusted


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Rank correlation, ties with their mean rank; None with fewer than three pairs or where one side is constant."""
    import numpy as np

    if len(left) < 3 or len(set(left)) < 2 or len(set(right)) < 2:
        return None
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (left, right)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: NDArray[np.float64] = (ends - (counts - 1) / 2.0)[inverse]
    return means
