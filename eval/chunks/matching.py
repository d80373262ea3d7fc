"""Sets the size knob of a chunker, on documents alone, so that its chunks have a wanted mean length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from eval.chunks.contenders import Contender, Cut
from rag.errors import ConfigError
from rag.types import Document

__all__ = ["TOLERANCE", "Match", "match_size"]

TOLERANCE = 0.05
_CLOSE = 0.005  # near enough to stop early


@dataclass(frozen=True, kw_only=True)
class Match:
    """The knob whose mean length came nearest to the target, its chunks, and whether it is within the tolerance."""

    value: int
    cut: Cut
    tried: Mapping[int, float]
    within: bool


def match_size(contender: Contender, documents: Mapping[str, Document], target: float) -> Match:
    """Bisection over whole numbers; values that the chunker refuses count as too small.

    Mean length need not grow with the knob everywhere, so the best value that was tried is taken, not the last.
    """
    low, high = contender.range(target)
    cuts: dict[int, Cut] = {}
    while low <= high:
        middle = (low + high) // 2
        try:
            cuts[middle] = contender.cut(documents, middle)
        except ConfigError:
            low = middle + 1
            continue
        mean = cuts[middle].mean_chars
        if abs(mean - target) <= _CLOSE * target:
            break
        low, high = (middle + 1, high) if mean < target else (low, middle - 1)
    if not cuts:
        raise ConfigError(f"{contender.name}: no value of {contender.knob} from {contender.range(target)} is allowed")
    best = min(cuts, key=lambda value: (abs(cuts[value].mean_chars - target), value))
    tried = {value: cut.mean_chars for value, cut in sorted(cuts.items())}
    within = abs(cuts[best].mean_chars - target) <= TOLERANCE * target
    return Match(value=best, cut=cuts[best], tried=tried, within=within)
