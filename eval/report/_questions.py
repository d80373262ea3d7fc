"""The drill-down: one entry per question and run, failing first, its context cut where kept, gold or cited changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from eval.report._views import CLASSES, letters, measure_name, natural, number, ordered_runs, sets_of

__all__ = ["entries", "failure_of", "segments", "visible"]

Row = Mapping[str, Any]
Range = tuple[int, int]

_MARKS = {"\u200c", "\u200d", "\n", "\t"}
"""Joiners stay, since scripts and emoji need them; so does what lays text out."""


def visible(text: str) -> str:
    """`text` with every character that hides or reorders others shown by its number; line ends as line feeds."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(char if char.isprintable() or char in _MARKS else _named(char) for char in text)


def _named(char: str) -> str:
    """Spaces of any kind are not printable for Python but harmless here."""
    from unicodedata import category

    return char if category(char) == "Zs" else f"\u27e6U+{ord(char):04X}\u27e7"


def failure_of(question: Row) -> str:
    """The class of a question's failure, `none` without one."""
    kind = question.get("failure") or ("error" if question.get("error") else "none")
    return kind if kind in CLASSES else "error"


def entries(results: Row, questions: int) -> tuple[list[dict[str, Any]], int]:
    """(at most `questions` entries of each run, failing first; how many were left out)."""
    made: list[dict[str, Any]] = []
    left_out = 0
    for run in ordered_runs(results):
        rows = sorted(run["questions"], key=_order)
        made += [_entry(results, run, row) for row in rows[:questions]]
        left_out += max(0, len(rows) - questions)
    made.sort(key=lambda one: (one["rank"], one["set"], one["config"], one["id"]))
    return made, left_out


def _order(question: Row) -> tuple[int, str]:
    """In the order of the pipeline, an error first and success last."""
    kind = failure_of(question)
    return len(CLASSES) if kind == "none" else 0 if kind == "error" else CLASSES.index(kind), str(question["query_id"])


def _entry(results: Row, run: Row, question: Row) -> dict[str, Any]:
    context = question.get("context") or ()
    gold, cited = _places(question.get("evidence")), _places(question.get("citations"))
    kept = _kept(context)
    facts = results.get("sets", {}).get(run["set"], {})
    return {
        "id": str(question["query_id"]),
        "rank": _order(question)[0],
        "set": run["set"],
        "set_at": sets_of(results).index(run["set"]),
        "config": run["config"],
        "config_at": list(letters(results)).index(run["config"]),
        "letter": letters(results)[run["config"]],
        "failure": failure_of(question),
        "error": question.get("error"),
        "question": question["question"],
        "answer": question.get("answer") or "",
        "answers": list(question.get("answers") or ()),
        "unanswerable": bool(facts.get("has_answers")) and not question.get("answers") and not question.get("evidence"),
        "scores": [
            (measure_name(name, run["measures"].get(name, {})), number(value))
            for name, value in sorted((question.get("scores") or {}).items(), key=lambda one: natural(one[0]))
        ],
        "evidence": [{**row, "found": _share(row, kept)} for row in question.get("evidence") or ()],
        "context": [{**row, "pieces": segments(row, gold, cited)} for row in context],
        "citations": list(question.get("citations") or ()),
        "hits": list(question.get("hits") or ()),
    }


def _places(rows: Sequence[Row] | None) -> dict[str, list[Range]]:
    """Source -> ranges in it."""
    found: dict[str, list[Range]] = {}
    for row in rows or ():
        found.setdefault(row["source"], []).append((row["start"], row["end"]))
    return found


def _kept(context: Sequence[Row]) -> dict[str, list[Range]]:
    """Source -> ranges of it that reached the generator."""
    found: dict[str, list[Range]] = {}
    for row in context:
        found.setdefault(row["source"], []).extend((start, end) for start, end in row["kept"])
    return found


def _share(place: Row, kept: Mapping[str, Sequence[Range]]) -> int:
    """Per cent of a place that the ranges cover, rounded down so that 100 means all of it."""
    start, end = int(place["start"]), int(place["end"])
    at, covered = start, 0
    for low, high in sorted(kept.get(place["source"], ())):
        low, high = max(low, at), min(high, end)
        if low < high:
            covered += high - low
            at = high
    return 100 * covered // max(1, end - start)


def segments(
    row: Row, gold: Mapping[str, Sequence[Range]], cited: Mapping[str, Sequence[Range]]
) -> list[tuple[str, str]]:
    """(classes, text) pieces of one chunk of the context: `kept` or `cut`, with `gold` and `cited` where they apply.

    Places are code points of the document. Text that is not as long as its range cannot be placed and is shown whole.
    """
    start, text = row["start"], row["text"]
    if len(text) != row["end"] - start:
        return [("kept", text)]
    ranges: dict[str, Sequence[Range]] = {
        "kept": [(low, high) for low, high in row["kept"]],
        "gold": gold.get(row["source"], ()),
        "cited": cited.get(row["source"], ()),
    }
    edges = {min(max(edge - start, 0), len(text)) for part in ranges.values() for one in part for edge in one}
    cuts = sorted(edges | {0, len(text)})
    return [(_classes(start + low, start + high, ranges), text[low:high]) for low, high in pairwise(cuts)]


def _classes(low: int, high: int, ranges: Mapping[str, Sequence[Range]]) -> str:
    """No edge lies inside low..high, so a range covers all of it or nothing."""
    inside = [name for name, part in ranges.items() if any(a <= low and high <= b for a, b in part)]
    return " ".join(inside if "kept" in inside else ["cut", *inside])
