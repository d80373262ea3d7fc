"""Rankings scored by ir-measures, with its own reader and writer of TREC files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.sets import Place
from rag.errors import missing_extra

__all__ = ["RANKING", "Judgements", "Rankings", "name_of", "ranking_scores", "relevant_chunks", "write_trec"]

RANKING = ("nDCG@10", "R@5", "R@10", "RR", "AP")

Judgements = Mapping[str, Mapping[str, int]]
"""Question -> document (or place in one) -> grade."""
Rankings = Mapping[str, Sequence[str]]
"""Question -> documents (or places), best first."""


def ranking_scores(judgements: Judgements, rankings: Rankings) -> dict[str, dict[str, float]]:
    """Question -> measure -> score, for every judged question; one without a ranking scores 0."""
    measures = _measures()
    found = {query: dict.fromkeys(RANKING, 0.0) for query in judgements}
    judged = {query: dict(grades) for query, grades in judgements.items() if grades}
    if judged and rankings:
        for one in measures.iter_calc([measures.parse_measure(name) for name in RANKING], judged, _run(rankings)):
            if one.query_id in found:
                found[one.query_id][str(one.measure)] = float(one.value)
    return found


def write_trec(folder: Path, judgements: Judgements, rankings: Rankings) -> None:
    """`qrels.txt` and `run.trec`, which trec_eval reads. Ids have no white space."""
    qrels = [
        f"{_word(query)} 0 {_word(name)} {grade}"
        for query in sorted(judgements)
        for name, grade in sorted(judgements[query].items())
    ]
    ranked = [
        f"{_word(query)} Q0 {_word(name)} {rank} {len(rankings[query]) - rank + 1} chunkwise"
        for query in sorted(rankings)
        for rank, name in enumerate(rankings[query], start=1)
    ]
    (folder / "qrels.txt").write_text("".join(f"{line}\n" for line in qrels), encoding="utf-8")
    (folder / "run.trec").write_text("".join(f"{line}\n" for line in ranked), encoding="utf-8")


def relevant_chunks(evidence: Sequence[Place], chunks: Mapping[str, Sequence[tuple[int, int]]]) -> dict[str, int]:
    """The chunks that hold half of a piece of evidence or more, or lie by half in one.

    Evidence that no chunk holds by half makes every chunk relevant that it touches.
    """
    found: dict[str, int] = {}
    for name, start, end in evidence:
        touching = [(s, e, min(end, e) - max(start, s)) for s, e in chunks.get(name, ()) if s < end and e > start]
        good = [one for one in touching if 2 * one[2] >= min(end - start, one[1] - one[0])] or touching
        found.update({name_of((name, s, e)): 1 for s, e, _ in good})
    return found


def name_of(place: Place) -> str:
    """The id of a chunk in qrels and runs."""
    return f"{place[0]}:{place[1]}-{place[2]}"


def _run(rankings: Rankings) -> dict[str, dict[str, float]]:
    """Scores fall with the rank, so that no tie is left to be broken by name."""
    return {query: {name: float(len(names) - at) for at, name in enumerate(names)} for query, names in rankings.items()}


def _word(text: str) -> str:
    return "_".join(text.split())


def _measures() -> Any:
    try:
        import ir_measures
    except ImportError:
        raise missing_extra("ir-measures", "eval", "ranking measures") from None
    return ir_measures
