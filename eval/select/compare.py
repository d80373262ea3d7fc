"""Rows of figures per question -> means, differences to the baseline with intervals, and where chance and gold lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from eval.chunks.stats import differences, holm
from eval.select.rows import Row
from eval.sets import Question

__all__ = ["COMPARED", "comparisons", "means"]

COMPARED = ("recall", "all", "precision")
_FEW = 8
"""Sets with at most so many documents are also scored document by document."""


def means(rows: Sequence[Row], questions: Sequence[Question], documents: int) -> list[dict[str, Any]]:
    """Every row with its mean scores, its mean work, the laws it broke, and its normalised gain.

    The gain is (recall - random) / (oracle - random) at the same budget; None without these two.
    """
    best = {(row.place, row.selector): _mean(row.scores("recall")) for row in rows}
    shrunk = _shrunk(rows)
    found: list[dict[str, Any]] = []
    for row in rows:
        low, high = best.get((row.place, "(random)")), best.get((row.place, "(oracle)"))
        recall = best[row.place, row.selector]
        gain = None if low is None or high is None or high <= low else round((recall - low) / (high - low), 4)
        one = {
            **_named(row),
            "scores": {name: round(_mean(row.scores(name)), 4) for name in row.measured[0].scores},
            "gain": gain,
            "work": {name: round(_mean([asdict(w)[name] for w in row.work]), 1) for name in asdict(row.work[0])},
            "broken": _counted(law for one in row.measured for law in one.broken),
            "less_than_with_a_smaller_budget": shrunk.get((row.retriever, row.counter, row.selector, row.budget), 0),
        }
        if documents <= _FEW:
            one["recall_by_document"] = _by_document(row, questions)
        found.append(one)
    return found


def comparisons(rows: Sequence[Row], baseline: str, *, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Every selector minus the baseline over the same hits at the same budget, references left out.

    Holm's correction over the selectors of one place and measure. `relative` is None where the baseline has 0.
    """
    import numpy as np

    found: list[dict[str, Any]] = []
    for place in dict.fromkeys(row.place for row in rows):
        here = [row for row in rows if row.place == place and not row.selector.startswith("(")]
        base = next(row for row in here if row.selector == baseline)
        others = [row for row in here if row is not base]
        if not others:
            continue
        scores = np.array([row.scores(name) for row in others for name in COMPARED])
        against = np.array([base.scores(name) for _ in others for name in COMPARED])
        made = differences(scores, against, resamples=resamples, seed=seed)
        for at, name in enumerate(COMPARED):
            column = made[at :: len(COMPARED)]
            adjusted = holm([one.p for one in column])
            below = _mean(base.scores(name))
            for row, one, p in zip(others, column, adjusted, strict=True):
                figures = {key: round(value, 4) for key, value in asdict(one).items()}
                relative = round(one.mean / below, 4) if below else None
                found.append({**_named(row), "measure": name, **figures, "p_holm": round(p, 4), "relative": relative})
    return found


def _named(row: Row) -> dict[str, Any]:
    return {"retriever": row.retriever, "selector": row.selector, "counter": row.counter, "budget": row.budget}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _counted(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def _by_document(row: Row, questions: Sequence[Question]) -> Mapping[str, float]:
    """Mean recall over the questions whose first evidence is in a document, and the mean of these means."""
    found: dict[str, list[float]] = {}
    for question, score in zip(questions, row.scores("recall"), strict=True):
        found.setdefault(question.evidence[0][0], []).append(score)
    by_name = {name: _mean(values) for name, values in sorted(found.items())}
    return {name: round(value, 4) for name, value in {**by_name, "macro": _mean(list(by_name.values()))}.items()}


def _shrunk(rows: Sequence[Row]) -> dict[tuple[str, str, str, int], int]:
    """How many questions lost evidence against the next smaller budget."""
    found: dict[tuple[str, str, str, int], int] = {}
    ordered = sorted(rows, key=lambda row: (row.retriever, row.counter, row.selector, row.budget))
    for small, large in pairwise(ordered):
        name = (large.retriever, large.counter, large.selector)
        if (small.retriever, small.counter, small.selector) == name:
            pairs = zip(small.scores("recall"), large.scores("recall"), strict=True)
            found[*name, large.budget] = sum(after < before for before, after in pairs)
    return found
