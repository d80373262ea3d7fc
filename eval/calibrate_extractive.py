"""Finds `min_support` of the generator extractive on public questions with and without an answer in the context.

    python -m eval.calibrate_extractive --data DIR [--questions 120] [--embedder minilm]

Every question meets three contexts of six passages, found by cosine: from its own corpus ("own"), from its own
corpus with every passage that holds the answer taken out ("removed": on the topic, but unanswerable), and from the
next set's corpus ("foreign"). Half of the questions set the threshold, the other half is reported.
"""

from __future__ import annotations

import argparse
import json
import random
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from rag.generators._sentences import context_sentences
from rag.generators.extractive import ExtractiveGenerator
from rag.protocols import Embedder
from rag.registry import build
from rag.text import sentence_spans
from rag.types import CompressedContext, Document, Piece, Span

SETS = ("squad_long", "chroma_chunking", "nq_gold", "clapnq_dev", "hotpotqa_200", "covidqa")
SEED, PASSAGES, PASSAGE_WORDS, CORPUS_CHARS = 7, 6, 150, 900_000

Row = dict[str, Any]
Place = tuple[str, Span]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One evaluation set, cut into passages of whole sentences."""

    questions: list[Row]
    evidence: dict[str, list[Row]]
    documents: dict[str, Document]
    places: list[Place]
    vectors: NDArray[np.float32]

    def context(
        self, question: str, asked: NDArray[np.float32], unwanted: Callable[[Place], bool]
    ) -> CompressedContext:
        """The passages nearest to the question, in reading order, without the unwanted ones."""
        order = np.argsort(-(self.vectors @ asked), kind="stable")
        wanted = [self.places[row] for row in order[:200] if not unwanted(self.places[row])][:PASSAGES]
        pieces = tuple(
            Piece(
                chunk_id=f"{name}:{span.start}-{span.end}",
                doc_id=name,
                span=span,
                text=self.documents[name].text[span.start : span.end],
                kept=(span,),
            )
            for name, span in sorted(wanted)
        )
        return CompressedContext(
            question=question, pieces=pieces, token_count=0, source_token_count=0, compressor="none"
        )


class Remembering:
    """An embedder that embeds each text once: the same sentences stand in many contexts."""

    def __init__(self, embedder: Embedder) -> None:
        self.counter, self.fingerprint, self._embedder = embedder.counter, embedder.fingerprint, embedder
        self.embed_question = lru_cache(maxsize=None)(embedder.embed_question)
        self.matches_meaning, self.light = embedder.matches_meaning, self
        self._known: dict[str, NDArray[np.float32]] = {}

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known.update(zip(new, self._embedder.embed(new), strict=True))
        return np.stack([self._known[text] for text in texts])


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question in one context: the best support, whether an answer is there, whether the best sentence holds it."""

    name: str
    kind: str
    held_out: bool
    support: float
    answerable: bool
    hit: bool


def read_corpus(folder: Path, questions: int, embedder: Embedder) -> Corpus:
    """`questions` sampled questions, the documents that they need, and others up to CORPUS_CHARS."""
    rng = random.Random(SEED)  # noqa: S311
    evidence: dict[str, list[Row]] = defaultdict(list)
    for row in _rows(folder / "evidence.jsonl"):
        if row.get("level") != "paragraph":
            evidence[row["query_id"]].append(row)
    asked = list(_rows(folder / "queries.jsonl"))
    rng.shuffle(asked)
    without = [row for row in asked if row["query_id"] not in evidence][:questions]
    asked = [row for row in asked if row["query_id"] in evidence][:questions] + without
    needed = {row["doc_id"] for one in asked for row in evidence[one["query_id"]]} | {r.get("near_doc") for r in asked}
    found = list(_rows(folder / "corpus.jsonl"))
    rng.shuffle(found)
    documents: dict[str, Document] = {}
    size = 0
    for row in sorted(found, key=lambda row: row["doc_id"] not in needed):
        if row["doc_id"] in needed or size < CORPUS_CHARS:
            documents[row["doc_id"]] = Document(text=row["text"], source=row["doc_id"])
            size += len(row["text"])
    places = [(name, span) for name, document in documents.items() for span in _passages(document)]
    vectors = embedder.embed([documents[name].text[span.start : span.end] for name, span in places])
    return Corpus(questions=asked, evidence=evidence, documents=documents, places=places, vectors=vectors)


def _rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _passages(document: Document) -> Iterator[Span]:
    """Whole sentences joined up to PASSAGE_WORDS words."""
    start, words, end = 0, 0, 0
    for span in sentence_spans(document):
        count = len(document.text[span.start : span.end].split())
        if words and words + count > PASSAGE_WORDS:
            yield Span(start, end)
            start, words = span.start, 0
        words, end = words + count, span.end
    if end > start:
        yield Span(start, end)


def cases(corpora: dict[str, Corpus], embedder: Embedder, lexical_weight: float) -> Iterator[Case]:
    """Every question in its contexts."""
    generator = ExtractiveGenerator(embedder=embedder, lexical_weight=lexical_weight)
    names = list(corpora)
    for at, name in enumerate(names):
        home, foreign = corpora[name], corpora[names[(at + 1) % len(names)]]
        for row in home.questions:
            asked = embedder.embed_question(row["text"])
            gold = home.evidence.get(row["query_id"], [])
            answers = [answer.casefold() for answer in row["answers"] if len(answer) > 2]
            unwanted = partial(_holds_answer, home, gold, answers)
            contexts = [("foreign", foreign, foreign.context(row["text"], asked, lambda place: False))]
            contexts.append(
                ("own" if gold else "unanswerable", home, home.context(row["text"], asked, lambda p: False))
            )
            if gold:
                contexts.append(("removed", home, home.context(row["text"], asked, unwanted)))
            for kind, corpus, context in contexts:
                sentences = context_sentences(context, corpus.documents)
                if not sentences:
                    continue
                scores = generator.scores(row["text"], sentences)
                holds = [kind == "own" and _overlaps(gold, (s.document.source, s.span)) for s in sentences]
                best = int(np.argmax(scores))
                yield Case(
                    name=name,
                    kind=kind,
                    held_out=zlib.crc32(row["query_id"].encode()) % 2 == 1,
                    support=scores[best],
                    answerable=any(holds),
                    hit=holds[best],
                )


def _overlaps(gold: Sequence[Row], place: Place) -> bool:
    name, span = place
    return any(row["doc_id"] == name and row["start"] < span.end and span.start < row["end"] for row in gold)


def _holds_answer(corpus: Corpus, gold: Sequence[Row], answers: Sequence[str], place: Place) -> bool:
    name, span = place
    text = corpus.documents[name].text[span.start : span.end].casefold()
    return _overlaps(gold, place) or any(answer in text for answer in answers)


def auroc(higher: Sequence[float], lower: Sequence[float]) -> float:
    """The chance that one of `higher` is above one of `lower`, ties as half."""
    ordered = np.sort(np.asarray(lower))
    below, upto = np.searchsorted(ordered, higher, "left"), np.searchsorted(ordered, higher, "right")
    return float((below + upto).mean() / 2 / len(ordered))


def f1(found: Sequence[Case], threshold: float) -> float:
    """Answer/abstain F1, macro over the two: own contexts that hold an answer against foreign ones."""
    said = [(case.support >= threshold, case.answerable) for case in found]
    scores = []
    for side in (True, False):
        both = sum(given is side and true is side for given, true in said)
        scores.append(2 * both / (sum(given is side for given, _ in said) + sum(true is side for _, true in said)))
    return sum(scores) / 2


def report(found: Sequence[Case]) -> dict[str, Any]:
    """Threshold from one half, figures from the other."""
    tuning = [case for case in found if not case.held_out and (case.answerable or case.kind == "foreign")]
    grid = [round(0.2 + 0.01 * step, 2) for step in range(41)]
    best = max(grid, key=lambda threshold: f1(tuning, threshold))
    test = [case for case in found if case.held_out]
    good = [case for case in test if case.answerable]
    groups = {kind: [c.support for c in test if c.kind == kind] for kind in ("foreign", "removed", "unanswerable")}
    return {
        "threshold": best,
        "questions": len({id(case) for case in test if case.kind in ("own", "unanswerable")}),
        "best_sentence_hit": round(sum(case.hit for case in good) / len(good), 3),
        "auroc": {kind: round(auroc([c.support for c in good], low), 3) for kind, low in groups.items() if low},
        "f1_answer_abstain": round(f1([c for c in test if c.answerable or c.kind == "foreign"], best), 3),
        "answered": {
            "answerable": round(sum(c.support >= best for c in good) / len(good), 3),
            **{kind: round(sum(s >= best for s in low) / len(low), 3) for kind, low in groups.items() if low},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=120, help="per set, with and without answers each")
    parser.add_argument("--embedder", default="minilm")
    parser.add_argument("--lexical-weight", type=float, nargs="+", default=[0.5])
    options = parser.parse_args()
    spec = {"use": "minilm", "overlong": "window"} if options.embedder == "minilm" else options.embedder
    embedder = cast(Embedder, Remembering(build("embedder", spec, services={})))
    corpora = {name: read_corpus(options.data / name, options.questions, embedder) for name in SETS}
    for weight in options.lexical_weight:
        found = list(cases(corpora, embedder, weight))
        print(json.dumps({"embedder": options.embedder, "lexical_weight": weight, **report(found)}))


if __name__ == "__main__":
    main()
