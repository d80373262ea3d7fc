"""Means with 95 % bootstrap intervals over questions; differences and Holm's correction are in eval/chunks/stats.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.chunks.stats import differences
from eval.measures.answers import Outcomes, abstention_f1

__all__ = ["Interval", "f1_interval", "intervals"]

Interval = tuple[float, float, float]
"""Mean, lower end, upper end."""


def intervals(scores: Mapping[str, Sequence[float]], *, resamples: int, seed: int) -> dict[str, Interval]:
    """Mean and percentile interval of every measure; measures with as many questions share the resamples."""
    import numpy as np

    by_size: dict[int, list[str]] = {}
    for name in sorted(scores):
        if scores[name]:
            by_size.setdefault(len(scores[name]), []).append(name)
    found: dict[str, Interval] = {}
    for names in by_size.values():
        matrix = np.asarray([scores[name] for name in names], dtype=np.float64)
        made = differences(matrix, np.zeros_like(matrix), resamples=resamples, seed=seed)
        found |= {name: (one.mean, one.low, one.high) for name, one in zip(names, made, strict=True)}
    return found


def f1_interval(outcomes: Sequence[Outcomes], *, resamples: int, seed: int) -> Interval:
    """F1 of abstaining over all questions, and its interval: resampled counts, not means of shares."""
    import numpy as np

    counts = np.asarray(outcomes, dtype=np.float64)
    size = len(outcomes)
    weights = np.random.default_rng(seed).multinomial(size, np.full(size, 1.0 / size), size=resamples)
    right, wrong, missed = (weights @ counts).T
    total = 2 * right + wrong + missed
    values = np.divide(2 * right, total, out=np.zeros_like(right), where=total > 0)
    low, high = np.percentile(values, [2.5, 97.5])
    return abstention_f1(outcomes), float(low), float(high)
