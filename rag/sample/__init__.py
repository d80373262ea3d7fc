"""The sample corpus: 23 documents of one invented company, and questions with their evidence.

Aldermoor Instruments makes laboratory balances and flow sensors. Its handbook, contracts, manuals, price list,
minutes and tickets refer to each other: some questions need two documents, some facts are superseded by a later
amendment, and many values differ per product, so that a citation tells right from nearly right. The company, its
people and its partners are invented; all texts were written for this project.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from rag.errors import RagError

__all__ = ["Evidence", "Question", "documents_dir", "questions"]

QuestionType = Literal["single", "multi", "table", "superseded", "unanswerable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A fragment of the parsed text of `source` that proves the answer. `page` is set for PDF files."""

    source: str
    text: str
    page: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question about the corpus.

    `answers` are accepted short answers, the first one is the preferred wording. `source` and `evidence` are the
    main proof; `further` holds the rest of the proof when one place is not enough, or the place that a superseded
    value is taken from. An unanswerable question has no answers and no evidence.
    """

    query_id: str
    text: str
    answers: tuple[str, ...]
    source: str
    evidence: str
    type: QuestionType
    page: int | None = None
    further: tuple[Evidence, ...] = ()

    @property
    def all_evidence(self) -> tuple[Evidence, ...]:
        """Main proof first; () for an unanswerable question."""
        if not self.evidence:
            return ()
        return (Evidence(source=self.source, text=self.evidence, page=self.page), *self.further)


def documents_dir() -> Path:
    """The folder with the documents, for `rag ingest` or `pipeline.index`."""
    return _folder() / "documents"


def questions() -> list[Question]:
    """All questions, in file order."""
    with (_folder() / "questions.jsonl").open(encoding="utf-8") as lines:
        return [_question(json.loads(line)) for line in lines if line.strip()]


def _folder() -> Path:
    folder = files("rag.sample")
    if not isinstance(folder, Path):
        raise RagError(f"the sample corpus lies in {folder}, which is no folder on disk. Install chunkwise unzipped.")
    return folder


def _question(row: dict[str, Any]) -> Question:
    further = tuple(Evidence(**item) for item in row.get("further", ()))
    return Question(**{**row, "answers": tuple(row["answers"]), "further": further})
