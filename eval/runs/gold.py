"""What a data set says about a question, in the coordinates of the documents as they were parsed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from eval.chunks.measures import covered, merged
from eval.datasets import Dataset, DatasetQuestion
from eval.datasets.model import located
from eval.measures.ranking import relevant_chunks
from eval.runs.ingesting import Prepared
from eval.select.measures import size
from eval.sets import Place

__all__ = ["Gold", "gold_of"]


@dataclass(frozen=True, kw_only=True)
class Gold:
    """`places`: evidence in parsed texts; `lost`: characters of evidence that parsing lost.

    `grades`: chunk, or for judged documents document, -> grade; `by_document` says which.
    """

    question: DatasetQuestion
    places: tuple[Place, ...]
    lost: int
    grades: Mapping[str, int]

    @property
    def by_document(self) -> bool:
        return not self.has_evidence and bool(self.question.relevant)

    @property
    def has_evidence(self) -> bool:
        return bool(self.places) or self.lost > 0

    def share(self, places: list[Place]) -> float:
        """Of the evidence characters, or of the relevant documents, what is in `places`."""
        if self.by_document:
            wanted = self.question.relevant
            return len({name for name, _, _ in places} & set(wanted)) / len(wanted)
        total = size(merged(self.places)) + self.lost
        return covered(self.places, places) / total if total else 0.0


def gold_of(question: DatasetQuestion, dataset: Dataset, prepared: Prepared) -> Gold:
    """Places are as the data has them where parsing gave the text back, else looked for by their words."""
    found: list[Place] = []
    lost = 0
    for name, start, end in question.evidence:
        place = _parsed(name, start, end, dataset.texts.get(name), prepared.texts)
        found += [place] if place else []
        lost += 0 if place else end - start
    for name, words in question.quotes:
        place = located(prepared.texts, name, words)
        found += [place] if place else []
        lost += 0 if place else len(words)
    places = tuple(dict.fromkeys(found))
    evidence = bool(places) or lost > 0
    grades = relevant_chunks(places, prepared.chunks) if evidence else dict(question.relevant)
    return Gold(question=question, places=places, lost=lost, grades=grades)


def _parsed(name: str, start: int, end: int, original: str | None, texts: Mapping[str, str]) -> Place | None:
    text = texts.get(name)
    if text is None:
        return None
    if original is None or original == text:
        return (name, start, end) if end <= len(text) else None
    return located(texts, name, original[start:end])
