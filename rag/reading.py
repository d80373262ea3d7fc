"""One file -> one document, for callers that want no index."""

from __future__ import annotations

from pathlib import Path

from rag.errors import InputError
from rag.files import find_files, read_file
from rag.limits import Limits
from rag.parsers._sandbox import ParserPool
from rag.types import Document

__all__ = ["read_document"]


def read_document(path: str | Path, limits: Limits | None = None) -> Document:
    """The document of one file, named as `rag ingest` would name it; InputError when it cannot be read."""
    limits = limits or Limits()
    listing = find_files([path], limits=limits)
    if listing.problems:
        raise InputError(": ".join(listing.problems[0]))
    if len(listing.files) != 1:
        raise InputError(f"{path}: expected one file, found {len(listing.files)}; name a single file")
    found = listing.files[0]
    with ParserPool(limits) as pool:
        return pool.parse(found.parser, read_file(found, limits), found.source)
