"""How well the selector `verified` tells poisoned passages from clean ones, signal by signal.

A question's hits are judged together, as the selector does it:
the 20 best passages by BM25 (`poisonedrag_nq`, and the clean sets), or the passages that a set names for the question.
Variants: `poisonedrag_nq/bare` has the adversarial passages without the question in front of them;
`rgb_noise_counterfactual/trust` tells the verifier, by metadata, which passages come from untrusted sources. Clean
sets have no poison: there every flag is a false one. Thresholds are for the dev half.
"""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from eval.chunks.data import half_of
from eval.sets import read_rows
from rag.protocols import TextModel
from rag.text import lexical_words
from rag.types import Chunk, Document, Hit

__all__ = [
    "CLEAN",
    "POISONED",
    "SIGNALS",
    "Case",
    "cases_of",
    "judged",
    "perplexity_flags",
    "rates",
    "resampled",
]

SIGNALS = ("injection", "hidden", "containment", "density", "conflict", "agreement")
POISONED = (
    "poisonedrag_nq", "poisonedrag_nq/bare", "rgb_noise_counterfactual", "rgb_noise_counterfactual/trust",
    "injection_bipia_train",
)  # fmt: skip
CLEAN = ("squad_long", "hotpotqa_200", "chroma_chunking")
_BAD = ("poison", "counterfactual", "injected")
_GOOD = ("positive", "clean")
_PIECE = 800
_TOP = 20
_PARAGRAPHS = re.compile(r"\n\s*\n")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A question and its hits: their documents, which of them are poisoned, and which hold evidence."""

    question: str
    documents: tuple[Document, ...]
    bad: tuple[bool, ...]
    evidence: tuple[bool, ...]


def cases_of(data: Path, name: str, half: str) -> list[Case]:
    """The cases of a set, or of a variant of it, whose questions are in that half."""
    folder, _, variant = name.partition("/")
    rows = read_rows(data / folder / "corpus.jsonl")
    queries = [
        row for row in read_rows(data / folder / "queries.jsonl") if _in_half(f"{folder}/{row['query_id']}", half)
    ]
    evidence: dict[str, list[Mapping[str, Any]]] = {}
    for row in read_rows(data / folder / "evidence.jsonl"):
        evidence.setdefault(row["query_id"], []).append(row)
    if folder in ("rgb_noise_counterfactual", "injection_bipia_train"):
        by_id = {row["doc_id"]: row for row in rows}
        queries = [row for row in queries if row["type"] != "zh_noise"]
        return [_given(row, by_id, variant) for row in queries]
    if folder == "poisonedrag_nq":
        queries = [row for row in queries if row["type"] == "nq"]
        if variant == "bare":
            rows = [{**row, "text": row["meta"].get("passage", row["text"])} for row in rows]
    return list(_searched(queries, rows, evidence))


def _in_half(question_id: str, half: str) -> bool:
    return half in ("all", half_of(question_id))


def _given(query: Mapping[str, Any], by_id: Mapping[str, Mapping[str, Any]], variant: str) -> Case:
    """The passages that the set names for the question; evidence are those that support the right answer."""
    named = [(role, by_id[one]) for role, ids in query["candidates"].items() for one in ids]
    meta = [{"tier": "low"} if variant == "trust" and role in _BAD else {} for role, _ in named]
    return Case(
        question=query["text"],
        documents=tuple(
            Document(text=row["text"], source=row["doc_id"], meta=given)
            for (_, row), given in zip(named, meta, strict=True)
        ),
        bad=tuple(role in _BAD for role, _ in named),
        evidence=tuple(role in _GOOD for role, _ in named),
    )


def _searched(
    queries: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    evidence: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Iterator[Case]:
    """The best passages by BM25. A passage is a document, or of a long one paragraphs of about 800 characters."""
    pieces = [(row, start, end) for row in rows for start, end in _pieces(row["text"])]
    with sqlite3.connect(":memory:") as words:
        words.execute("CREATE VIRTUAL TABLE words USING fts5(body)")
        words.executemany(
            "INSERT INTO words (rowid, body) VALUES (?, ?)",
            ((at, " ".join(lexical_words(row["text"][a:b]))) for at, (row, a, b) in enumerate(pieces)),
        )
        for query in queries:
            asked = " OR ".join(f'"{word}"' for word in lexical_words(query["text"]))
            sql = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank, rowid LIMIT ?"
            best = [pieces[at] for (at,) in words.execute(sql, (asked, 10 * _TOP))]
            found = [one for one in best if _own(one[0], query["query_id"])][:_TOP]
            gold = evidence.get(query["query_id"], ())
            yield Case(
                question=query["text"],
                documents=tuple(Document(text=row["text"][a:b], source=row["doc_id"]) for row, a, b in found),
                bad=tuple(row.get("meta", {}).get("role") in _BAD for row, _, _ in found),
                evidence=tuple(
                    any(one["doc_id"] == row["doc_id"] and one["start"] < b and a < one["end"] for one in gold)
                    for row, a, b in found
                ),
            )


def _own(row: Mapping[str, Any], query_id: str) -> bool:
    """False for poison that is meant for another question: what of it counts as found would be a matter of taste."""
    meta = row.get("meta", {})
    return meta.get("role") not in _BAD or meta.get("query_id") == query_id


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for match in _PARAGRAPHS.finditer(text):
        if match.start() - start >= _PIECE:
            yield start, match.start()
            start = match.end()
    if text[start:].strip():
        yield start, len(text)


def judged(case: Case, verifier: Any) -> list[Mapping[str, bool]]:
    """Which signals reach their threshold, for every hit; `all` is what the selector drops."""
    hits = [
        Hit(
            chunk=Chunk.cut(document, 0, len(document.text), counter=verifier.counter, chunker="whole"),
            score=1 / rank,
            rank=rank,
            retriever="given",
        )
        for rank, document in enumerate(case.documents, start=1)
    ]
    found = verifier.examine(case.question, hits, case.documents)
    return [{**{name: _reached(verifier, name, parts) for name in SIGNALS}, "all": bool(why)} for why, parts in found]


def _reached(verifier: Any, name: str, parts: Mapping[str, float]) -> bool:
    threshold, score = getattr(verifier, name), parts[name]
    if name == "conflict":
        return score > 0
    return bool(threshold and (score < threshold if name == "agreement" else score >= threshold))


def perplexity_flags(cases: Sequence[Case], model: TextModel) -> list[list[bool]]:
    """METEORA's baseline: a passage is flagged when its perplexity is over min(mean + 1.5 deviations, 20)."""
    told = [[_perplexity(model, document.text) for document in case.documents] for case in cases]
    every = [value for row in told for value in row]
    threshold = min(fmean(every) + 1.5 * pstdev(every), 20.0)
    return [[value > threshold for value in row] for row in told]


def _perplexity(model: TextModel, text: str) -> float:
    losses = [nats for _, _, nats in model.losses(text) or ()]
    return math.exp(fmean(losses)) if losses else 1.0


def rates(cases: Sequence[Case], flags: Sequence[Sequence[bool]]) -> dict[str, float]:
    """Precision, recall and F1 of the flags, the share of clean hits flagged, and of clean evidence lost."""
    counts = [_counted(case, row) for case, row in zip(cases, flags, strict=True)]
    return _rates([sum(column) for column in zip(*counts, strict=True)])


def resampled(
    cases: Sequence[Case], flags: Sequence[Sequence[bool]], resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """The middle 95 % of every rate over questions drawn anew."""
    import numpy as np

    counts = np.array([_counted(case, row) for case, row in zip(cases, flags, strict=True)], dtype=np.int64)
    drawn = np.random.default_rng(seed).integers(0, len(counts), size=(resamples, len(counts)))
    found = [_rates(counts[one].sum(axis=0).tolist()) for one in drawn]
    made = {}
    for name in found[0]:
        low, high = np.quantile([one[name] for one in found], (0.025, 0.975))
        made[name] = (round(float(low), 4), round(float(high), 4))
    return made


def _counted(case: Case, flags: Sequence[bool]) -> tuple[int, ...]:
    """Hits; poisoned, flagged, both; clean and flagged; clean ones with evidence, and those of them flagged."""
    rows = list(zip(case.bad, case.evidence, flags, strict=True))
    gold = [flag for bad, is_gold, flag in rows if is_gold and not bad]
    both = sum(bad and flag for bad, _, flag in rows)
    poisoned, flagged = sum(case.bad), sum(map(bool, flags))
    return len(rows), poisoned, flagged, both, flagged - both, len(gold), sum(gold)


def _rates(counts: Sequence[int]) -> dict[str, float]:
    hits, poisoned, flagged, both, wrong, gold, lost = counts
    return {
        "hits": hits,
        "poisoned": poisoned,
        "flagged": flagged,
        "precision": _share(both, flagged),
        "recall": _share(both, poisoned),
        "f1": _share(2 * both, poisoned + flagged),
        "false_flags": _share(wrong, hits - poisoned),
        "evidence_lost": _share(lost, gold),
    }


def _share(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0
