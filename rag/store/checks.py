"""What an entry must be before a transaction starts. A refused entry leaves the index untouched."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping

from rag.errors import InputError
from rag.store.records import Entry, FileRecord
from rag.types import Chunk, Document

__all__ = ["check_entry", "check_failed", "check_file"]


def check_entry(entry: Entry) -> None:
    """InputError that names the source and what is wrong with it."""
    document, source = entry.document, entry.document.source
    check_file(entry.file)
    for what, text in _texts(document):
        _check_text(what, text, source)
    if entry.file.error is not None or entry.file.doc_id != document.id:
        raise InputError(
            f"{source}: the file record of an entry needs doc_id {document.id} and no error, "
            f"not doc_id {entry.file.doc_id} and error {entry.file.error!r}"
        )
    for name, value in document.meta.items():
        if not _is_meta(value):
            raise InputError(f"{source}: meta {name!r} is {value!r}; allowed are text, bool and finite numbers")
    try:
        json.dumps(entry.decision)
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: the chunker decision is not JSON ({error})") from None
    _check_chunks(document, entry.chunks)
    _check_vectors(source, entry)


def check_failed(record: FileRecord) -> None:
    """A quarantined file has an error and no document."""
    check_file(record)
    if record.doc_id is not None or not record.error:
        raise InputError(f"{record.origin}: a failed file needs an error text and no doc_id, not {record!r}")


def check_file(record: FileRecord) -> None:
    """Every text of the record can be stored."""
    for what in ("origin", "source", "content_hash", "recipe", "error"):
        _check_text(what, getattr(record, what) or "", record.origin)


def _is_meta(value: object) -> bool:
    if isinstance(value, int | float):
        return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**1000
    return isinstance(value, str)


def _texts(document: Document) -> Iterator[tuple[str, str]]:
    yield "source", document.source
    yield "title", document.title
    yield "text", document.text
    for name, value in document.meta.items():
        yield "meta name", name
        if isinstance(value, str):
            yield f"meta {name!r}", value


def _check_text(what: str, text: str, source: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{source!a}: {what} holds a lone surrogate (U+{ord(text[error.start]):04X}) at character "
            f"{error.start}, which is no text. Decode the bytes with errors='replace', or rename the file."
        ) from None


def _check_chunks(document: Document, chunks: tuple[Chunk, ...]) -> None:
    seen: set[tuple[int, int]] = set()
    for chunk in chunks:
        start, end = chunk.span.start, chunk.span.end
        if chunk.doc_id != document.id or not chunk.text or document.text[start:end] != chunk.text:
            raise InputError(
                f"{document.source}: the chunker {chunk.chunker!r} made chunk {chunk.id}, which is no exact slice "
                f"of document {document.id}. Chunks must come from Chunk.cut."
            )
        if (start, end) in seen:
            raise InputError(f"{document.source}: the chunker {chunk.chunker!r} made chunk {chunk.id} twice")
        seen.add((start, end))
        _check_surround(document, chunk)
        for what, text in (("header", chunk.header), ("chunker", chunk.chunker)):
            _check_text(what, text, document.source)


def _check_surround(document: Document, chunk: Chunk) -> None:
    try:
        chunk.within(document.text)
    except ValueError as error:
        raise InputError(f"{document.source}: {error}. Chunks must come from Chunk.cut.") from None


def _check_vectors(source: str, entry: Entry) -> None:
    import numpy as np

    if entry.vectors and entry.fingerprint is None:
        raise InputError(f"{source}: vectors without the fingerprint of their embedder")
    sizes: Mapping[tuple[int, ...], str] = {np.shape(vector): key for key, vector in entry.vectors.items()}
    if any(len(shape) != 1 or shape[0] == 0 for shape in sizes) or len(sizes) > 1:
        raise InputError(f"{source}: vectors must all have one shape (dimension,), not {sorted(sizes)}")
    for key, vector in entry.vectors.items():
        if not np.isfinite(vector).all():
            raise InputError(f"{source}: the vector for chunk key {key} holds NaN or infinity")
