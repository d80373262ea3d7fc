"""What the tools give back; the output schemas that clients see are made from these."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

__all__ = [
    "MAX_CONTEXT", "MAX_K", "MAX_LINES", "MAX_QUESTION_CHARS", "MAX_TEXT_CHARS", "Answered", "Cited", "Explained",
    "Found", "LedgerLine", "Searched", "SpanText", "Stats",
]  # fmt: skip

MAX_K = 50
MAX_QUESTION_CHARS = 8_000
MAX_TEXT_CHARS = 20_000
"""Characters of text in one result, so that no single call floods the reader's context."""
MAX_CONTEXT = 5_000
MAX_LINES = 200


class Found(BaseModel):
    """A chunk. `text` is characters [start, end) of the document, cut short when `truncated` says so."""

    chunk_id: str
    doc_id: str
    source: str
    start: int
    end: int
    section: str
    text: str
    truncated: bool = Field(description="True: the text is longer; read the rest with get_span.")
    score: float
    rank: int
    parts: dict[str, float] = Field(description="Scores of the parts of the retriever.")


class Searched(BaseModel):
    """The best chunks, best first. `generation` grows with every change of the index."""

    hits: list[Found]
    generation: int


class SpanText(BaseModel):
    """Characters [start, end) of a document; `end` is lower than asked for when `truncated` says so."""

    doc_id: str
    source: str
    title: str
    section: str
    page: int | None
    start: int
    end: int
    text: str
    truncated: bool = Field(description="True: go on with start = this end.")
    document_chars: int


class Cited(BaseModel):
    """A mark [n] of an answer and the exact place that it opens."""

    mark: int
    chunk_id: str
    doc_id: str
    source: str
    start: int
    end: int
    page: int | None
    text: str


class LedgerLine(BaseModel):
    """What was decided about one chunk or a part of one, and why."""

    action: str
    taken: bool
    chunk_id: str
    source: str | None
    start: int
    end: int
    tokens: int
    relevance: float
    gain: float
    redundancy: float
    reason: str
    rank: int | None = Field(description="Place among the retriever's hits.")


class Explained(BaseModel):
    """How a stored answer came about; `ledger` has the first of `ledger_lines` decisions."""

    run_id: str
    question: str
    answer: str
    citations: list[Cited]
    stages: list[dict[str, Any]]
    totals: dict[str, Any]
    ledger: list[LedgerLine]
    ledger_lines: int


class Stats(BaseModel):
    """Counts of an index, and what it was built with."""

    index: str
    generation: int
    documents: int
    chunks: int
    vectors: int
    failed: int = Field(description="Files that could not be read.")
    chars: int
    tokens: int
    runs: int = Field(description="Stored answers, for explain.")
    bytes: int
    fingerprint: str | None
    config: dict[str, Any]


class Answered(BaseModel):
    """An answer; `supported[i]` says whether the documents bear out its i-th sentence."""

    run_id: str = Field(description="For explain.")
    answer: str
    citations: list[Cited]
    supported: list[bool]
