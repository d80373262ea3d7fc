"""Chunkwise for Haystack: a retriever component and a document splitter.

>>> retriever = ChunkwiseRetriever("rag-index", top_k=5)  # doctest: +SKIP
>>> retriever.run("Who approves travel?")["documents"]  # doctest: +SKIP

Haystack reads a pipeline from YAML only if it may load the module:
`Pipeline.loads(text, allowed_modules=["rag.interop.haystack"])`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.errors import ConfigError, InputError, missing_extra
from rag.interop._common import (
    Cutter,
    Found,
    OpenIndex,
    PipelineLike,
    chunk_metadata,
    config_of,
    field_name,
    name_of,
    positive,
)

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError as error:
    raise missing_extra("haystack-ai", "haystack", "rag.interop.haystack") from error

if TYPE_CHECKING:
    from rag.index import Index
    from rag.protocols import Filter

__all__ = ["ChunkwiseDocumentSplitter", "ChunkwiseRetriever", "filter_of"]

_OPERATORS = {"==": "eq", "!=": "ne", ">": "gt", ">=": "ge", "<": "lt", "<=": "le", "in": "in"}


@component
class ChunkwiseRetriever:
    """Searches an index of Chunkwise. `Document.id` is the chunk id, `Document.score` the score.

    `filters` are Haystack's ({"field": "meta.source", "operator": "==", "value": "a.md"}, AND, OR, NOT) or one of
    Chunkwise ({"source": "a.md"}); those of a call stand in for those of the component. The meta has `chunk_id`,
    `doc_id`, `source`, `start`, `end`, `section`, `score`, `rank`, `retriever` and `parts`.
    """

    def __init__(
        self,
        index: Index | str | Path,
        top_k: int | None = None,
        filters: dict[str, Any] | None = None,
        pipeline: PipelineLike = None,
    ) -> None:
        self.top_k = positive("top_k", top_k)
        self.filters = filters
        filter_of(filters)
        self._given, self._pipeline = index, pipeline
        self._index: OpenIndex | None = None

    @property
    def index(self) -> OpenIndex:
        """The open index; it is opened by `warm_up` or the first run."""
        if self._index is None:
            self._index = OpenIndex(self._given, self._pipeline)
        return self._index

    def warm_up(self) -> None:
        """Open the index."""
        _ = self.index

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """The best chunks for a question."""
        k = self.top_k if positive("top_k", top_k) is None else top_k
        found = self.index.search(query, k, filter_of(self.filters if filters is None else filters))
        return {"documents": [_document(one) for one in found]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """As `run`, in a thread."""
        made: dict[str, list[Document]] = await asyncio.to_thread(self.run, query, filters, top_k)
        return made

    def to_dict(self) -> dict[str, Any]:
        """For YAML: the index stands there as its folder."""
        folder = self._given if isinstance(self._given, str | Path) else self._given.directory
        made: dict[str, Any] = default_to_dict(
            self, index=str(folder), top_k=self.top_k, filters=self.filters, pipeline=config_of(self._pipeline)
        )
        return made

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ChunkwiseRetriever:
        """What `to_dict` gave."""
        made: ChunkwiseRetriever = default_from_dict(cls, data)
        return made


@component
class ChunkwiseDocumentSplitter:
    """Cuts by a chunker of Chunkwise. Ids are those of ingestion; `split_idx_start` is exact.

    `chunker` is a spec such as "recursive" or {"use": "sentence", "max_tokens": 200}; None takes the one of
    `pipeline` (a Pipeline, a mapping, or None for the defaults). A document's name is its meta `source`, `file_path`
    or `file_name`, else its id. The meta has `source_id`, `split_id` and `split_idx_start` as Haystack's own splitter
    writes them.
    """

    def __init__(self, chunker: str | dict[str, Any] | None = None, pipeline: PipelineLike = None) -> None:
        self.chunker, self._pipeline = chunker, pipeline
        self._cutter = Cutter(chunker, pipeline)

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """The chunks of all documents; InputError for one without text."""
        return {"documents": [made for one in documents for made in self._chunks_of(one)]}

    def _chunks_of(self, document: Document) -> list[Document]:
        if document.content is None:
            raise InputError(f"document {document.id!r} has no text content; only texts can be split")
        source = name_of(document.meta, ["source", "file_path", "file_name"], document.id)
        return [
            Document(
                id=chunk.id,
                content=chunk.text,
                meta={
                    **document.meta,
                    **chunk_metadata(chunk, source),
                    "source_id": document.id,
                    "split_id": number,
                    "split_idx_start": chunk.span.start,
                },
            )
            for number, chunk in enumerate(self._cutter.cut(document.content, source))
        ]

    def to_dict(self) -> dict[str, Any]:
        """For YAML."""
        made: dict[str, Any] = default_to_dict(self, chunker=self.chunker, pipeline=config_of(self._pipeline))
        return made

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ChunkwiseDocumentSplitter:
        """What `to_dict` gave."""
        made: ChunkwiseDocumentSplitter = default_from_dict(cls, data)
        return made


def filter_of(filters: Mapping[str, Any] | None) -> Filter | None:
    """Haystack's filters as one of ours; one of ours passes as it is. ConfigError names what has no match."""
    if not filters or "operator" not in filters:
        return filters or None
    operator = str(filters["operator"])
    if "conditions" in filters:
        parts = [filter_of(one) for one in filters["conditions"]]
        if operator not in ("AND", "OR", "NOT"):
            raise ConfigError(f"filters: {operator!r} joins no conditions; use AND, OR or NOT")
        return {"not": {"and": parts}} if operator == "NOT" else {operator.lower(): parts}
    if "field" not in filters or "value" not in filters:
        raise ConfigError(f"filters: expected field, operator and value, or operator and conditions, not {filters!r}")
    name, value = field_name(str(filters["field"])), filters["value"]
    if operator == "not in":
        return {"not": {name: {"in": value}}}
    if operator not in _OPERATORS:
        raise ConfigError(
            f"filters: the operator {operator!r} on {filters['field']!r} has no match in Chunkwise; "
            f"use one of {', '.join([*_OPERATORS, 'not in'])}"
        )
    return {name: {_OPERATORS[operator]: value}}


def _document(found: Found) -> Document:
    chunk = found.hit.chunk
    return Document(id=chunk.id, content=chunk.text, meta=found.metadata, score=float(found.hit.score))
