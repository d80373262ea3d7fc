"""Retrieval quality of the contenders: which share of the evidence characters do the first chunks cover?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from eval.bench._children import Contender, interleave
from eval.bench._corpus import Place, QuestionSet, locate, recall, trim, write_documents

__all__ = ["BUDGET", "K", "quality_rows"]

K = 5
BUDGET_CHARS = 4000
BUDGET = f"recall_within_{BUDGET_CHARS}_characters"
_DEPTH = 20  # chunks asked for, so that the budget can be filled


def quality_rows(
    questions: QuestionSet,
    present: list[Contender],
    model: str,
    folder: Path,
    threads: int,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Once per framework: settings that change the speed alone do not change the ranking."""
    write_documents(questions.texts, folder / "texts")
    asked = folder / "questions.json"
    asked.write_text(json.dumps([question.text for question in questions.questions]), encoding="utf-8")
    job = {"task": "retrieve", "model": model, "documents": str(folder / "texts"), "questions": str(asked), "k": _DEPTH}
    runners = [contender for contender in present if contender.role != "extra"]
    outcomes = interleave(runners, job, rounds=1, threads=threads, tell=lambda text: tell(f"quality, {text}"))
    rows: list[dict[str, Any]] = []
    for contender in runners:
        outcome = outcomes[contender.name][0]
        if outcome["status"] != "ok":
            reason = {"status": outcome["status"], "reason": outcome["reason"]}
            rows.append({"name": contender.name, "measure": f"recall@{K}", "role": contender.role, **reason})
            continue
        places = _places(outcome["found"]["chunks"], questions.texts)
        for ranking, hits in outcome["found"]["hits"].items():
            row = _quality_row(questions, places, hits)
            cpu = {"cpu_seconds": outcome["work"]["cpu_seconds"]}
            rows.append({"name": contender.name, "ranking": ranking, "role": contender.role, **row, **cpu})
    return rows


def _places(chunks: list[list[Any]], texts: Mapping[str, str]) -> list[Place | None]:
    """Exact places: ours come as (document, start, end), those of peers are found by their text."""
    if chunks and len(chunks[0]) == 3:
        return [(name, start, end) for name, start, end in chunks]
    return locate([(name, text) for name, text in chunks], texts)


def _quality_row(questions: QuestionSet, places: list[Place | None], hits: list[list[int]]) -> dict[str, Any]:
    rankings = [[place for place in (places[number] for number in ranked) if place] for ranked in hits]
    evidence = [question.evidence for question in questions.questions]
    at_k = [[place for place in (places[number] for number in ranked[:K]) if place] for ranked in hits]
    scores = [recall(wanted, found) for wanted, found in zip(evidence, at_k, strict=True)]
    within = [recall(wanted, trim(found, BUDGET_CHARS)) for wanted, found in zip(evidence, rankings, strict=True)]
    return {
        "measure": f"recall@{K}",
        "status": "ok",
        "recall": mean(scores),
        "standard_error": stdev(scores) / sqrt(len(scores)) if len(scores) > 1 else 0.0,
        BUDGET: mean(within),
        "context_characters": mean(sum(end - start for _, start, end in found) for found in at_k),
        "questions": len(scores),
        "chunks": len(places),
        "chunks_not_found": places.count(None),
    }
