"""What an ingestion tells: while it runs, and when it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Failure", "IngestReport", "NearDuplicate", "Progress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One input that did not become a document, and why."""

    source: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NearDuplicate:
    """`source` is nearly the same text as `of`, which was there before; 1.0 is exactly the same text.

    `similarity` is the estimated share of common word 5-shingles. `left_out`: it was not put into the index.
    """

    source: str
    of: str
    similarity: float
    left_out: bool


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Told after every batch. `done` and `total` count files, `bytes_done` what lies behind them on disk.

    `eta_seconds` goes by the bytes of files that were read, since unchanged ones cost next to nothing; None at first.
    """

    done: int
    total: int
    bytes_done: int
    bytes_total: int
    source: str
    failed: int = 0
    seconds: float = 0.0
    eta_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """What one ingestion did. `documents` and `chunks` were written now, `skipped` files had not changed.

    `embedded` are texts of chunks, `sentences` those embedded ahead of questions.
    `near_duplicates` are among the documents written or left out now; `left_out` counts all that are.
    """

    documents: int = 0
    chunks: int = 0
    embedded: int = 0
    sentences: int = 0
    skipped: int = 0
    removed: int = 0
    left_out: int = 0
    ignored: int = 0
    ignored_types: tuple[str, ...] = ()
    failed: tuple[Failure, ...] = ()
    near_duplicates: tuple[NearDuplicate, ...] = ()
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The JSON-safe form that `rag ingest --json` prints."""
        return {
            "documents": self.documents,
            "chunks": self.chunks,
            "skipped": self.skipped,
            "failed": [{"source": failure.source, "error": failure.error} for failure in self.failed],
            "seconds": self.seconds,
            "embedded": self.embedded,
            "sentences": self.sentences,
            "removed": self.removed,
            "left_out": self.left_out,
            "near_duplicates": [
                {"source": one.source, "of": one.of, "similarity": one.similarity, "left_out": one.left_out}
                for one in self.near_duplicates
            ],
            "ignored": self.ignored,
            "ignored_types": list(self.ignored_types),
        }
