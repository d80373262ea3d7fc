"""Scores of ranked chunks against exact evidence: Chroma's four, budgeted recall, containment.

A chunk or an evidence is a Place (document, start, end). Every function here scores one question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

from eval.sets import Place

__all__ = ["Scores", "area", "budgeted_recall", "chroma", "contained", "corrected", "covered", "merged", "trimmed"]

Scores = Mapping[str, float]
Trim = Callable[[Place, int], tuple[Place | None, int]]
"""(chunk, room) -> (what of it fits, its cost)."""


def chroma(evidence: Sequence[Place], found: Sequence[Place], touching: Sequence[Place]) -> dict[str, float]:
    """Recall, precision, IoU and precision-omega as Chroma's chunking_evaluation computes them.

    `found`: the retrieved chunks. `touching`: every chunk there is that touches the evidence, if only with its end,
    as upstream counts it. Upstream also counts evidence that is listed twice twice, and retrieved characters as often
    as they are retrieved.
    """
    wanted = _size(evidence)
    hit = covered(evidence, found)
    retrieved = _size(found)
    missed = _missed(evidence, found)
    hit_by_all = covered(evidence, touching)
    omega = _size(merged([*touching, *_holes(evidence, touching)]))
    return {
        "recall": hit / wanted,
        "precision": hit / retrieved if retrieved else 0.0,
        "iou": hit / (retrieved + missed) if retrieved + missed else 0.0,
        "precision_omega": hit_by_all / omega if hit_by_all else 0.0,
    }


def corrected(evidence: Sequence[Place], found: Sequence[Place], touching: Sequence[Place]) -> dict[str, float]:
    """The same four on sets of characters: none counts twice, and a chunk that only touches the evidence is no hit."""
    wanted = merged(evidence)
    retrieved = merged(found)
    needed = merged([place for place in touching if covered(wanted, [place])])
    total, got = _size(wanted), _size(retrieved)
    hit, hit_by_all = covered(wanted, retrieved), covered(wanted, needed)
    return {
        "recall_corrected": hit / total,
        "precision_corrected": hit / got if got else 0.0,
        "iou_corrected": hit / (got + total - hit),
        "precision_omega_corrected": hit_by_all / (_size(needed) + total - hit_by_all),
    }


def budgeted_recall(
    evidence: Sequence[Place], ranked: Iterable[Place], budgets: Sequence[int], trim: Trim
) -> list[float]:
    """Share of the evidence characters within the first chunks that fit into each budget; the last chunk is cut.

    `budgets` ascend. `trim` says what of a chunk fits into the room that is left, and what that costs.
    """
    wanted = merged(evidence)
    total = _size(wanted)
    scores: list[float] = []
    whole: list[Place] = []
    spent = 0
    places = iter(ranked)
    current = next(places, None)
    for budget in budgets:
        rest: Place | None = None
        while current is not None:
            part, cost = trim(current, budget - spent)
            if part != current:
                rest = part
                break
            whole.append(current)
            spent += cost
            current = next(places, None)
        scores.append(covered(wanted, [*whole, rest] if rest else whole) / total)
    return scores


def trimmed(place: Place, room: int) -> tuple[Place | None, int]:
    """A chunk, or as much of its beginning as `room` characters hold."""
    document, start, end = place
    stop = min(end, start + max(room, 0))
    return ((document, start, stop) if stop > start else None), stop - start


def area(budgets: Sequence[int], scores: Sequence[float]) -> float:
    """Mean height of the curve over the logarithm of the budget (trapezoids): 0 to 1."""
    from math import log

    steps = [
        (log(b) - log(a), (x + y) / 2) for a, b, x, y in zip(budgets, budgets[1:], scores, scores[1:], strict=False)
    ]
    return sum(width * height for width, height in steps) / sum(width for width, _ in steps)


def contained(evidence: Sequence[Place], found: Iterable[Place]) -> float:
    """Share of the evidence places that lie wholly inside of one chunk. Larger chunks win this one."""
    chunks = list(found)
    inside = [any(d == name and s <= start and end <= e for d, s, e in chunks) for name, start, end in evidence]
    return sum(inside) / len(inside)


def merged(places: Iterable[Place]) -> list[Place]:
    """Their union as sorted places that do not touch each other."""
    union: list[Place] = []
    for name, group in groupby(sorted(places), key=lambda place: place[0]):
        for _, start, end in group:
            if union and union[-1][0] == name and start <= union[-1][2]:
                union[-1] = (name, union[-1][1], max(union[-1][2], end))
            else:
                union.append((name, start, end))
    return union


def covered(evidence: Sequence[Place], found: Sequence[Place]) -> int:
    """How many characters the union of `evidence` shares with the union of `found`."""
    wanted = merged(evidence)
    return sum(
        max(0, min(end, e) - max(start, s)) for d, s, e in merged(found) for name, start, end in wanted if d == name
    )


def _size(places: Iterable[Place]) -> int:
    return sum(end - start for _, start, end in places)


def _missed(evidence: Sequence[Place], found: Sequence[Place]) -> int:
    """Evidence characters that no chunk covers; evidence listed twice counts twice."""
    return sum(end - start - covered([(name, start, end)], found) for name, start, end in evidence)


def _holes(evidence: Sequence[Place], found: Sequence[Place]) -> list[Place]:
    """The evidence characters that no chunk covers, as places."""
    holes: list[Place] = []
    for name, start, end in merged(evidence):
        at = start
        for document, s, e in merged(found):
            if document == name and s < end and e > at:
                if s > at:
                    holes.append((name, at, s))
                at = max(at, e)
        if at < end:
            holes.append((name, at, end))
    return holes
