"""How candidates are compared: their measures, the same measures on random cuts, and what only follows size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from chunkers.metrics._base import Cuts, Sentences, SpanMetric
from rag.protocols import Metric
from rag.types import Chunk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Candidate", "left_one_out", "mean_score", "measured", "random_cuts", "rank_correlation", "size_relations"]

_PLACES = 6
"""Scores are rounded to this many decimals before they are compared: below that is rounding."""
_SPREAD = 0.01
"""The least standard deviation of random cuts that a gain is divided by."""
_HALF = 2.0
"""A measure that many standard deviations above chance gains 0.5."""
_OF_SIZE = ("SC",)
"""Measures that see sizes only: random cuts of the same sizes tell nothing of them."""


@dataclass
class Candidate:
    """One way to cut the document, and what was found out about it. `why_not` says why it could not be chosen."""

    name: str
    chunks: list[Chunk] = field(default_factory=list)
    record: Mapping[str, Any] | None = None
    why_not: str = ""
    raw: dict[str, float | None] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    values: dict[str, float | None] = field(default_factory=dict)
    """What is averaged: the raw measures, or their gains over chance."""
    score: float | None = None
    inner_cuts: dict[str, int] = field(default_factory=dict)

    @property
    def mean_tokens(self) -> float:
        return sum(chunk.token_count for chunk in self.chunks) / max(1, len(self.chunks))

    def row(self) -> dict[str, Any]:
        """For the decision record."""
        if self.why_not:
            return {"chunker": self.name, "left_out": self.why_not}
        row: dict[str, Any] = {
            "chunker": self.name,
            "score": self.score,
            "chunks": len(self.chunks),
            "mean_tokens": round(self.mean_tokens, 1),
            "max_tokens": max((chunk.token_count for chunk in self.chunks), default=0),
            "metrics": self.raw,
        }
        if self.chance:
            row |= {"chance": self.chance, "gains": self.values}
        return row | ({"inner_cuts": self.inner_cuts} if self.inner_cuts else {})


def measured(candidate: Candidate, metrics: Sequence[Metric], sentences: Sentences, permutations: int) -> None:
    """Fill in the measures of a candidate; with `permutations` above 0 also the same on random cuts, and the gains."""
    if not permutations:
        candidate.raw = {metric.label: _rounded(metric.score(candidate.chunks, sentences)) for metric in metrics}
        candidate.values = dict(candidate.raw)
        return
    samples = random_cuts(Cuts.of(candidate.chunks), sentences, permutations)
    distinct = {cuts.starts.tobytes(): cuts for cuts in samples}  # in small documents most are the same
    for metric in metrics:
        label, raw = metric.label, _rounded(metric.score(candidate.chunks, sentences))
        candidate.raw[label] = raw
        if raw is None or label in _OF_SIZE or not isinstance(metric, SpanMetric):
            candidate.values[label] = None if raw is None else round(raw - 1.0, _PLACES)
            continue
        found = {key: _rounded(metric.measure(cuts, sentences)) for key, cuts in distinct.items()}
        values = [value for cuts in samples if (value := found[cuts.starts.tobytes()]) is not None]
        candidate.values[label] = None
        if values:
            candidate.chance[label], candidate.values[label] = _gain(raw, values)


def _gain(raw: float, values: Sequence[float]) -> tuple[float, float]:
    """The mean of random cuts, and how far above it `raw` lies: in (-1, 1), 0 for no better than chance."""
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    z = (raw - mean) / max(_SPREAD, spread)
    return round(mean, _PLACES), round(z / (_HALF + abs(z)), _PLACES) + 0.0  # no -0.0


def random_cuts(cuts: Cuts, sentences: Sentences, count: int) -> list[Cuts]:
    """Cuts at random sentences whose chunks are about as long as those given: their lengths in another order.

    The first chunk starts at a random place inside of one, as if the text were a ring; otherwise cuts of equal
    lengths would always come back as they are. What that leaves at the ends joins its neighbour.
    """
    import numpy as np

    size = len(sentences.document.text)
    lengths = np.diff(np.concatenate(([0], cuts.starts[1:], [size])))
    rng = np.random.default_rng(0)
    places = sentences.starts
    drawn = []
    for _ in range(count):
        order = rng.permutation(lengths)
        head = int(rng.integers(0, order[-1])) if order[-1] > 0 else 0
        edges = head + np.concatenate(([0], np.cumsum(order[:-1])))
        edges = edges[1:] if 2 * head <= order[-1] else edges[:-1]
        at = np.clip(np.searchsorted(places, edges), 1, max(1, len(places) - 1))
        if len(places) > 1:
            at = np.where(edges - places[at - 1] < places[at] - edges, at - 1, at)
            inner = np.unique(at[at > 0])
        else:
            inner = np.zeros(0, dtype=np.int64)
        first, last = np.concatenate(([0], inner)), np.concatenate((inner, [len(places)]))
        tokens = sentences.token_sums[last] - sentences.token_sums[first]
        drawn.append(Cuts(places[first], sentences.ends[last - 1], tokens))
    return drawn


def left_one_out(metric: Metric) -> Metric:
    """The metric without the chunk itself in what it is compared with, where it can."""
    if any(one.name == "leave_one_out" for one in fields(metric)):  # type: ignore[arg-type]  # plugins are dataclasses
        return replace(metric, leave_one_out=True)  # type: ignore[type-var]
    return metric


def mean_score(values: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """The weighted mean over the measures that say something; None where none does."""
    there = {label: value for label, value in values.items() if value is not None and weights[label] > 0}
    total = math.fsum(weights[label] for label in there)
    if not total:
        return None
    return round(math.fsum(weights[label] * value for label, value in there.items()) / total, _PLACES) + 0.0


def size_relations(candidates: Sequence[Candidate], labels: Sequence[str]) -> dict[str, float]:
    """Label -> rank correlation of a measure with the mean size over the candidates; needs three that differ."""
    found = {}
    for label in labels:
        pairs = [(one.raw[label], one.mean_tokens) for one in candidates if one.raw.get(label) is not None]
        value = rank_correlation([float(raw or 0.0) for raw, _ in pairs], [size for _, size in pairs])
        if value is not None:
            found[label] = value
    return found


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's; None for less than three pairs, and where one side does not vary."""
    import numpy as np

    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return round(float(np.corrcoef(_ranks(first), _ranks(second))[0, 1]), 3)


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    import numpy as np

    array = np.array(values)
    below, equal = (array[:, None] > array).sum(axis=1), (array[:, None] == array).sum(axis=1)
    ranks: NDArray[np.float64] = below + (equal + 1) / 2
    return ranks


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(float(value), _PLACES) + 0.0  # no -0.0
