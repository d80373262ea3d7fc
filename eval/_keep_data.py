"""Questions with passages for training and testing the keep head: evidence spans of public sets as labels.

Only development halves are read. They are split again, by a hash of the question, into `train` and `val`; the sets of
`OTHERS` are never trained or tuned on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.select.indexes import Indexed, opened
from eval.select.sets import Asked, asked_of, read_asked
from eval.select.settings import HYBRID
from eval.sets import Question, read_rows
from rag.protocols import Embedder
from rag.types import Hit

__all__ = ["OTHERS", "TRAINED", "Pair", "part_of", "read_pairs"]

TRAINED = ("squad_long", "hotpotqa_200", "clapnq_dev", "2wiki_164", "nq_gold")
"""Sets that are trained on; `eval/select/sets.py` says how they are read, `nq_gold` is read here."""
OTHERS = ("chroma_chunking",)
FIRST, FURTHER = 8, 2
"""Passages of a question: its first hits, and so many later ones that hold evidence, of the first 100."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A question and one passage; `gold` are the spans of the passage that are evidence, [] for a negative."""

    set: str
    part: str
    question: str
    passage: str
    rank: int
    gold: tuple[tuple[int, int], ...]


def read_pairs(data: Path, embedder: Embedder, cache: Path | None, names: Sequence[str]) -> list[Pair]:
    """All pairs of these sets, the passages of a question one after the other, by rank."""
    return [pair for name in names for pair in _of_set(data, name, embedder, cache)]


def part_of(question: str) -> str:
    """`val` for a fifth of the questions of a development half, else `train`."""
    return "val" if hashlib.blake2b(question.encode(), digest_size=2).digest()[0] % 5 == 0 else "train"


def _of_set(data: Path, name: str, embedder: Embedder, cache: Path | None) -> Iterator[Pair]:
    asked = _nq(data) if name == "nq_gold" else read_asked(data, name, "dev")
    with opened(asked, embedder, asked.chunker, cache) as indexed:
        for question in asked.questions:
            part = part_of(question.text) if name in TRAINED else "other"
            gold = indexed.evidence(question.evidence)
            for hit, spans in _passages(indexed, question, gold):
                yield Pair(
                    set=name,
                    part=part,
                    question=question.text,
                    passage=hit.chunk.embed_text,
                    rank=hit.rank,
                    gold=spans,
                )


def _passages(
    indexed: Indexed, question: Question, gold: Sequence[tuple[str, int, int]]
) -> Iterator[tuple[Hit, tuple[tuple[int, int], ...]]]:
    further = 0
    for hit in indexed.hits(HYBRID, question.text):
        chunk = hit.chunk
        shift = len(chunk.embed_text) - len(chunk.text) - chunk.span.start
        spans = tuple(
            (max(start, chunk.span.start) + shift, min(end, chunk.span.end) + shift)
            for doc_id, start, end in gold
            if doc_id == chunk.doc_id and start < chunk.span.end and end > chunk.span.start
        )
        if hit.rank > FIRST:
            further += bool(spans)
            if not spans or further > FURTHER:
                continue
        yield hit, spans


def _nq(data: Path) -> Asked:
    """nq_gold with the sentences of its answers as evidence: a paragraph is no selection."""
    from rag.text import sentence_spans
    from rag.types import Document

    folder = data / "nq_gold"
    texts = {f"{row['doc_id']}.txt": row["text"] for row in read_rows(folder / "corpus.jsonl")}
    places: dict[str, list[tuple[str, int, int]]] = {}
    for row in read_rows(folder / "evidence.jsonl"):
        if row.get("level") == "answer":
            name = f"{row['doc_id']}.txt"
            for span in sentence_spans(Document(text=texts[name], source=name)):
                if span.start < row["end"] and span.end > row["start"]:
                    places.setdefault(row["query_id"], []).append((name, span.start, span.end))
    questions = tuple(
        Question(text=row["text"], evidence=tuple(places[row["query_id"]]), id=f"nq_gold/{row['query_id']}")
        for row in read_rows(folder / "queries.jsonl")
        if row["query_id"] in places
    )
    return asked_of("nq_gold", texts, questions, "dev")
