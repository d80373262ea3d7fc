"""Chunkwise for LangChain: a retriever and a text splitter.

>>> retriever = ChunkwiseRetriever.open("rag-index", k=5)  # doctest: +SKIP
>>> retriever.invoke("Who approves travel?", where={"source": "handbook.md"})  # doctest: +SKIP
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rag.errors import missing_extra
from rag.interop._common import Cutter, Found, OpenIndex, PipelineLike, chunk_metadata, name_of, positive

try:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
    from langchain_text_splitters import TextSplitter
except ImportError as error:
    raise missing_extra(error.name or "langchain-core", "langchain", "rag.interop.langchain") from error

if TYPE_CHECKING:
    from rag.index import Index

__all__ = ["ChunkwiseRetriever", "ChunkwiseTextSplitter"]


class ChunkwiseRetriever(BaseRetriever):
    """Searches an index of Chunkwise. `Document.id` is the chunk id.

    `k` and `where` (a filter such as {"source": "a.md"}) hold for every call unless the call names its own:
    `invoke(question, k=3, where={...})`. The metadata has `chunk_id`, `doc_id`, `source`, `start`, `end`, `section`,
    `score`, `rank`, `retriever` and `parts`.
    """

    index: OpenIndex
    k: int | None = Field(default=None, ge=1)
    """None: as many as the pipeline's retriever gives."""
    where: dict[str, Any] | None = None

    @classmethod
    def open(
        cls,
        index: Index | str | Path,
        *,
        k: int | None = None,
        where: Mapping[str, Any] | None = None,
        pipeline: PipelineLike = None,
    ) -> ChunkwiseRetriever:
        """On an index folder, or an open index; `pipeline` is one, a mapping over the index's config, or None."""
        return cls(index=OpenIndex(index, pipeline), k=k, where=None if where is None else dict(where))

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[Document]:
        return self._found(query, k, where)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[Document]:
        return await asyncio.to_thread(self._found, query, k, where)

    def _found(self, query: str, k: int | None, where: Mapping[str, Any] | None) -> list[Document]:
        wanted = self.k if positive("k", k) is None else k
        return [_document(one) for one in self.index.search(query, wanted, self.where if where is None else where)]


class ChunkwiseTextSplitter(TextSplitter):
    """Cuts by a chunker of Chunkwise. `start_index` is exact and always there, as are the ids of ingestion.

    `chunker` is a spec such as "recursive" or {"use": "sentence", "max_tokens": 200}; None takes the one of
    `pipeline` (a Pipeline, a mapping, or None for the defaults). The name of a document is its metadata `source`.
    """

    def __init__(self, chunker: str | Mapping[str, Any] | None = None, *, pipeline: PipelineLike = None) -> None:
        super().__init__(add_start_index=True, strip_whitespace=False)
        self._cutter = Cutter(chunker, pipeline)

    def split_text(self, text: str) -> list[str]:
        """The texts of the chunks; joined they are the text, as long as the chunker overlaps nothing."""
        return [chunk.text for chunk in self._cutter.cut(text, "")]

    def create_documents(self, texts: list[str], metadatas: list[dict[Any, Any]] | None = None) -> list[Document]:
        """One document for each chunk, with the metadata of its text and its own place."""
        made: list[Document] = []
        for text, metadata in zip(texts, metadatas or [{}] * len(texts), strict=True):
            source = name_of(metadata, ["source"])
            for chunk in self._cutter.cut(text, source):
                own = {**chunk_metadata(chunk, source), "start_index": chunk.span.start}
                made.append(Document(id=chunk.id, page_content=chunk.text, metadata={**metadata, **own}))
        return made

    def split_documents(self, documents: Iterable[Document]) -> list[Document]:
        """As `create_documents`, for documents."""
        given = list(documents)
        return self.create_documents([one.page_content for one in given], [one.metadata for one in given])


def _document(found: Found) -> Document:
    return Document(id=found.hit.chunk.id, page_content=found.hit.chunk.text, metadata=found.metadata)
