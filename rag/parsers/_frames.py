"""The talk between ParserPool and its worker: a length, a JSON header, a length, a body. No pickle, on purpose:
a worker that a hostile file has taken over must not be able to make its parent run anything.
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

from rag.parsers._guard import check_spans
from rag.types import Block, Document, Page, Span

__all__ = ["document_frame", "read_frame", "to_document", "write_frame"]

_LENGTHS = struct.Struct(">QQ")


def write_frame(stream: BinaryIO, header: dict[str, Any], body: bytes) -> None:
    """Send one message and flush it."""
    head = json.dumps(header).encode()
    stream.write(_LENGTHS.pack(len(head), len(body)))
    stream.write(head)
    stream.write(body)
    stream.flush()


def read_frame(stream: BinaryIO, *, max_bytes: int) -> tuple[dict[str, Any], bytes] | None:
    """The next message; None at the end of the stream, also in the middle of a message. ValueError over max_bytes."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    head_bytes, body_bytes = _LENGTHS.unpack(lengths)
    if head_bytes + body_bytes > max_bytes:
        raise ValueError(f"a message of {head_bytes + body_bytes:,} bytes; at most {max_bytes:,} are read")
    head, body = stream.read(head_bytes), stream.read(body_bytes)
    if len(head) < head_bytes or len(body) < body_bytes:
        return None
    header = json.loads(head)
    if not isinstance(header, dict):
        raise ValueError("a message without a header")
    return header, body


def document_frame(document: Document) -> tuple[dict[str, Any], bytes]:
    """Everything but the text as JSON, the text as UTF-8."""
    header = {
        "source": document.source,
        "title": document.title,
        "blocks": [(b.span.start, b.span.end, b.kind, b.level) for b in document.blocks],
        "pages": [(p.number, p.span.start, p.span.end) for p in document.pages],
        "meta": dict(document.meta),
    }
    return header, document.text.encode()


def to_document(header: dict[str, Any], body: bytes) -> Document:
    """The document that was sent; ValueError, KeyError or TypeError when it was not one."""
    text = body.decode()
    blocks = tuple(Block(span=Span(a, b), kind=kind, level=level) for a, b, kind, level in header["blocks"])
    pages = tuple(Page(number=number, span=Span(a, b)) for number, a, b in header["pages"])
    document = Document(
        text=text,
        source=header["source"],
        title=header["title"],
        blocks=blocks,
        pages=pages,
        meta=header["meta"],
    )
    check_spans(document)
    return document
