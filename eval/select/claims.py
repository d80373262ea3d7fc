"""Goals for selectors on the public sets, and whether the rows of a report reach them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from eval.bench._report import claim

__all__ = ["GOALS", "claims_of"]

GOALS: Mapping[str, Mapping[int, float]] = {
    "chroma_chunking": {200: 0.74, 400: 0.86, 800: 0.92},
    "chroma_redundant": {800: 0.95},
}
"""Set -> budget in word pieces of the encoder -> recall of evidence characters."""

_AHEAD = ("squad_long", "covidqa", "cuad_contracts", "financebench")
"""Where the 95 % interval of recall minus the baseline's should lie above 0 at every budget."""
_MULTI_HOP = ("hotpotqa_200", "2wiki_164")
_WITHIN, _MORE_WHOLE = 800, 0.15
"""How many more questions, relative to the baseline, should have all of their evidence within so many tokens."""


def claims_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One claim per selector, set and budget that a goal is about; the baseline and references make none."""
    return [one for name, data in report["sets"].items() for one in _claims(name, data, report["baseline"])]


def _claims(name: str, data: Mapping[str, Any], baseline: str) -> Iterator[dict[str, Any]]:
    for row in data["rows"]:
        ours = row["selector"] != baseline and not row["selector"].startswith("(")
        goal = GOALS.get(name, {}).get(row["budget"])
        if ours and goal is not None and row["counter"] == "embedder":
            yield claim(_text(name, row, "recall"), row["scores"]["recall"], goal, "higher")
    for one in data["comparisons"]:
        if name in _AHEAD and one["measure"] == "recall":
            text = _text(name, one, f"recall minus {baseline}, lower end of the interval")
            yield claim(text, one["low"], 0.0001, "higher")
        if name in _MULTI_HOP and one["measure"] == "all" and one["budget"] == _WITHIN:
            text = _text(name, one, f"questions with all evidence, relative to {baseline}")
            yield claim(text, one["relative"], _MORE_WHOLE, "higher")


def _text(name: str, row: Mapping[str, Any], what: str) -> str:
    return f"{name}, {row['budget']} tokens of the {row['counter']}, {row['selector']} over {row['retriever']}: {what}"
