"""What goes to workers and comes back as frames of rag.parsers._frames: JSON and bytes, no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rag.errors import ConfigError, InputError, MissingError, RagError
from rag.jobs import Batch, Job, Outcome
from rag.parsers._frames import document_frame, to_document
from rag.types import Chunk, Document, Span

if TYPE_CHECKING:
    from rag.protocols import Vectors

__all__ = [
    "Frame",
    "batch_header",
    "job_header",
    "outcome_frame",
    "refusal",
    "refuse",
    "to_batch",
    "to_job",
    "to_outcome",
    "to_vectors",
    "vectors_frame",
]

Frame = tuple[dict[str, Any], bytes]
_ERRORS: dict[int, type[RagError]] = {error.exit_code: error for error in (ConfigError, InputError, MissingError)}


def refusal(error: RagError) -> Frame:
    """What a worker answers when the whole run cannot go on."""
    return {"fatal": str(error), "exit_code": error.exit_code}, b""


def refuse(header: Mapping[str, Any]) -> None:
    """Raise the error of a `refusal`; every other header passes."""
    if "fatal" in header:
        raise _ERRORS.get(header["exit_code"], RagError)(str(header["fatal"]))


def batch_header(batch: Batch) -> dict[str, Any]:
    """The batch as a header: of each chunk only what its vector depends on."""
    rows = [
        [chunk.doc_id, chunk.span.start, chunk.span.end, chunk.text, chunk.header, chunk.surround]
        for chunk in batch.chunks
    ]
    return {"chunks": rows, "texts": dict(batch.texts)}


def to_batch(header: Mapping[str, Any]) -> Batch:
    """The inverse of `batch_header`; token counts stay behind."""
    chunks = tuple(
        Chunk(doc_id=doc_id, span=Span(start, end), text=text, token_count=0, header=head, surround=surround)
        for doc_id, start, end, text, head, surround in header["chunks"]
    )
    return Batch(chunks=chunks, texts=header["texts"])


def vectors_frame(vectors: Mapping[str, Vectors]) -> Frame:
    """The keys as JSON, the rows as they are stored."""
    from rag.vectors import to_blob

    return {"keys": list(vectors)}, b"".join(to_blob(row) for row in vectors.values())


def to_vectors(header: Mapping[str, Any], body: bytes) -> dict[str, Vectors]:
    """The inverse of `vectors_frame`; ValueError when the rows are not as many as the keys."""
    from rag.vectors import from_blob

    keys: list[str] = header["keys"]
    return dict(zip(keys, from_blob(body).reshape(len(keys), -1), strict=True)) if keys else {}


def job_header(job: Job) -> dict[str, Any]:
    """The job as a header; the worker reads the file itself."""
    return asdict(job)


def to_job(header: Mapping[str, Any]) -> Job:
    """The inverse of `job_header`."""
    return Job(**header)


def outcome_frame(outcome: Outcome) -> Frame:
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
