"""Jobs and outcomes as frames of rag.parsers._frames: JSON and bytes, no pickle."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rag.jobs import Job, Outcome
from rag.parsers._frames import document_frame, to_document
from rag.types import Chunk, Document, Span

__all__ = ["job_header", "outcome_frame", "to_job", "to_outcome"]


def job_header(job: Job) -> dict[str, Any]:
    """The job as a header; the worker reads the file itself."""
    return asdict(job)


def to_job(header: dict[str, Any]) -> Job:
    """The inverse of `job_header`."""
    return Job(**header)


def outcome_frame(outcome: Outcome) -> tuple[dict[str, Any], bytes]:
    """The text travels once: chunks are spans of it."""
    header: dict[str, Any] = {
        "content_hash": outcome.content_hash,
        "error": outcome.error,
        "lasting": outcome.lasting,
        "signature": None if outcome.signature is None else outcome.signature.hex(),
    }
    if outcome.document is None:
        return header, b""
    header["document"], body = document_frame(outcome.document)
    header["decision"] = outcome.decision
    header["chunks"] = [_chunk_row(chunk) for chunk in outcome.chunks]
    return header, body


def to_outcome(header: dict[str, Any], body: bytes) -> Outcome:
    """The outcome; ValueError, KeyError or TypeError when the frame holds none."""
    document = to_document(header["document"], body) if "document" in header else None
    signature = header["signature"]
    return Outcome(
        content_hash=header["content_hash"],
        document=document,
        chunks=tuple(_chunk(document, row) for row in header["chunks"]) if document else (),
        decision=header["decision"] if document else None,
        signature=None if signature is None else bytes.fromhex(signature),
        error=header["error"],
        lasting=header["lasting"],
    )


def _chunk_row(chunk: Chunk) -> list[Any]:
    parent = None if chunk.parent is None else [chunk.parent.start, chunk.parent.end]
    span = [chunk.span.start, chunk.span.end]
    return [*span, chunk.token_count, chunk.section, chunk.header, chunk.chunker, parent, chunk.surround]


def _chunk(document: Document, row: list[Any]) -> Chunk:
    """The text is cut here, from the document that arrived, so it is a slice of it whatever was sent."""
    start, end, token_count, section, header, chunker, parent, surround = row
    return Chunk(
        doc_id=document.id,
        span=Span(start, end),
        text=document.text[start:end],
        token_count=token_count,
        section=tuple(section),
        header=header,
        chunker=chunker,
        parent=None if parent is None else Span(*parent),
        surround=surround,
    )
