"""Goals for compressors on the public sets, and whether the rows of a report reach them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from eval.bench._report import claim

__all__ = ["claims_of"]

_RECALL = {"chroma_chunking": {0.25: 0.75}}
"""Set -> rate -> recall of evidence characters from a context of 1600 tokens."""
_KEPT_AT_HALF = 0.90
_ANSWERS = {"squad_long": 0.95}


def claims_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One claim per compressor, set and rate that a goal is about; references and `none` make none."""
    return [one for name, data in report["sets"].items() for one in _claims(name, data, report["baseline"])]


def _claims(name: str, data: Mapping[str, Any], baseline: str) -> Iterator[dict[str, Any]]:
    for row in data["rows"]:
        if row["compressor"] == "none" or row["compressor"].startswith("("):
            continue
        what = f"{name}, rate {row['rate']:g}, {row['compressor']}"
        goal = _RECALL.get(name, {}).get(row["rate"])
        if goal is not None:
            yield claim(f"{what}: recall", row["scores"]["recall"], goal, "higher")
        if row["rate"] == 0.5:
            yield claim(f"{what}: evidence kept", row["scores"]["kept"], _KEPT_AT_HALF, "higher")
        if name in _ANSWERS and row["scores"]["answer"] is not None:
            yield claim(f"{what}: answers kept", row["scores"]["answer"], _ANSWERS[name], "higher")
        if row["scores"]["numbers"] is not None:
            yield claim(f"{what}: numbers of kept sentences", row["scores"]["numbers"], 1.0, "higher")
        yield claim(f"{what}: contexts over 3 % off the target", row["off_target"], 0.0, "lower")
    for one in data["comparisons"]:
        yield from _beaten(name, one, baseline) if not baseline.startswith("(") else (_over(name, one, baseline),)


def _over(name: str, one: Mapping[str, Any], baseline: str) -> dict[str, Any]:
    what = f"{name}, rate {one['rate']:g}, {one['compressor']}: recall minus {baseline}, lower end of the interval"
    return claim(what, one["low"], 0.0001, "higher")


def _beaten(name: str, one: Mapping[str, Any], baseline: str) -> Iterator[dict[str, Any]]:
    """A baseline that is a compressor is the one that should be better: its lead over each other at the same rate."""
    words = {"answer": "keeps more answer strings than", "likelihood": "makes the gold answer likelier than"}
    for key, verb in words.items():
        if (found := one[key]) is not None:
            lead, low, high = -found["mean"], -found["high"], -found["low"]
            ends = f"{lead:+.3f} [{low:+.3f}, {high:+.3f}], {found['questions']} questions"
            text = f"{name}, rate {one['rate']:g}: {baseline} {verb} {one['compressor']} ({ends}), lower end"
            yield claim(text, low, 0.0001, "higher")
