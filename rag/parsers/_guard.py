"""One file read right here, by anybody's parser: a sound document or an error of ours, whatever the parser does."""

from __future__ import annotations

from rag.errors import InputError, RagError
from rag.limits import Limits
from rag.parsers._base import check_size
from rag.parsers._choose import make_parser
from rag.types import Document

__all__ = ["check_spans", "parse_in_process"]


def parse_in_process(parser_name: str, data: bytes, source: str, limits: Limits | None = None) -> Document:
    """The document, read without a child process: no time limit, no shelter from a crash of a native reader."""
    limits = limits or Limits()
    if len(data) > limits.max_file_bytes:
        raise InputError(f"{source}: {limits.over('max_file_bytes', len(data))}")
    parser = make_parser(parser_name, limits)
    try:
        document = parser.parse(data, source=source)
        check_spans(document)
    except RagError:
        raise
    except MemoryError as error:
        raise InputError(f"{source}: {limits.over('max_address_bytes')}") from error
    except Exception as error:
        raise InputError(f"{source}: the {parser_name} parser failed: {type(error).__name__}: {error}") from error
    check_size(document, source, limits)
    return document


def check_spans(document: Document) -> None:
    """ValueError when a block or a page lies outside of the text."""
    size = len(document.text)
    if any(b.span.end > size for b in document.blocks) or any(p.span.end > size for p in document.pages):
        raise ValueError("a block or page outside of the text")
