"""Ranked chunks of another framework -> outcomes, by our reader: whole chunks into the budget, then quotes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from eval.bench._corpus import Place, locate
from eval.datasets import Dataset
from eval.peers.measuring import Measured
from eval.runs.gold import gold_of
from eval.runs.ingesting import Prepared, line_of
from eval.runs.outcomes import Outcome, failed, outcome_of
from eval.runs.run import SetRun, judged
from eval.runs.scoring import ranking_of
from rag.answer import Answer
from rag.config import PipelineConfig
from rag.types import Chunk, Document, Hit

if TYPE_CHECKING:
    from rag.protocols import Corpus, Embedder, Vectors

__all__ = ["places_of", "read_all"]


def places_of(entries: Sequence[Sequence[Any]], texts: Mapping[str, str]) -> list[Place | None]:
    """Where every entry stands: as the framework says, else by exact search; None when its text was altered."""
    if entries and len(entries[0]) == 3:
        return [(str(name), int(start), int(end)) for name, start, end in entries]
    return locate([(name, text) for name, text in entries], texts)


def read_all(measured: Measured, dataset: Dataset, config: PipelineConfig, folder: Path) -> SetRun:
    """The scores of a framework on a set. `config` has the selector, compressor and generator that read.

    A chunk whose place is not known is passed over. A set that failed scores zero everywhere.
    """
    texts = dataset.texts
    places = places_of(measured.entries, texts)
    chunks: dict[str, list[tuple[int, int]]] = {}
    for place in places:
        if place:
            chunks.setdefault(place[0], []).append(place[1:])
    prepared = Prepared(
        directory=folder, home=folder, key=measured.name, texts=texts,
        chunks={name: sorted(found) for name, found in chunks.items()}, failed={},
    )  # fmt: skip
    if measured.failed is None:
        reader = _Reader(measured.name, config, texts, places)
        outcomes = [reader.read(one.text, hits) for one, hits in zip(dataset.questions, measured.hits, strict=True)]
    else:
        outcomes = [failed(RuntimeError(measured.failed)) for _ in dataset.questions]
    golds = [gold_of(question, dataset, prepared) for question in dataset.questions]
    pairs = list(zip(golds, outcomes, strict=True))
    return SetRun(
        dataset=dataset, label=measured.name, documents=len(texts), chunks=len(places),
        questions=tuple(judged(golds, outcomes, dataset, prepared)),
        qrels={gold.question.id: gold.grades for gold in golds if gold.grades},
        rankings={gold.question.id: ranking_of(gold, outcome) for gold, outcome in pairs},
        failed_documents={},
    )  # fmt: skip


@dataclass(frozen=True)
class _Documents:
    """What a reader asks of a corpus, and no more."""

    found: Mapping[str, Document]

    def document(self, doc_id: str) -> Document:
        return self.found[doc_id]

    def sentence_vectors(self, texts: Sequence[str], embedder: Embedder) -> Vectors:
        return embedder.embed(texts)


class _Reader:
    """Selector, compressor and generator of a config, over the chunks of somebody else."""

    def __init__(
        self, name: str, config: PipelineConfig, texts: Mapping[str, str], places: Sequence[Place | None]
    ) -> None:
        self._name = name
        self._line = line_of(config, None)
        self._places = places
        self._documents = {file: Document(text=text, source=file) for file, text in texts.items()}
        by_id = {document.id: document for document in self._documents.values()}
        self._corpus = cast("Corpus", _Documents(by_id))
        self._names = {doc_id: document.source for doc_id, document in by_id.items()}
        self._chunks: dict[Place, Chunk] = {}

    def read(self, question: str, found: Sequence[tuple[int, float]]) -> Outcome:
        hits = self._hits(found)
        bubble = self._line.selector.select(question, hits, self._corpus)
        context = self._line.compressor.compress(bubble, self._corpus)
        made = self._line.generator.generate(context, self._corpus)
        answer = Answer(
            question=question, text=made.text, citations=made.citations, sentences=made.sentences,
            supported=made.supported, context=context, bubble=bubble, prompt=made.prompt, stats=made.stats, trace=(),
            candidates=tuple(hits),
        )  # fmt: skip
        return outcome_of(answer, self._names.__getitem__, self._line.generator.counter)

    def _hits(self, found: Sequence[tuple[int, float]]) -> list[Hit]:
        """Each place once, at its best rank: duplicates in a store take no room twice."""
        ranked: dict[Place, float] = {}
        for number, score in found:
            place = self._places[number]
            if place and place not in ranked:
                ranked[place] = score
        return [
            Hit(chunk=self._chunk(place), score=score, rank=rank, retriever=self._name)
            for rank, (place, score) in enumerate(ranked.items(), start=1)
        ]

    def _chunk(self, place: Place) -> Chunk:
        if place not in self._chunks:
            name, start, end = place
            counter = self._line.generator.counter
            self._chunks[place] = Chunk.cut(self._documents[name], start, end, counter=counter, chunker=self._name)
        return self._chunks[place]
