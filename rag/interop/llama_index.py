"""Chunkwise for LlamaIndex: a retriever and a node parser.

>>> retriever = ChunkwiseRetriever("rag-index", similarity_top_k=5)  # doctest: +SKIP
>>> retriever.retrieve("Who approves travel?")  # doctest: +SKIP
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, PrivateAttr

from rag.errors import ConfigError, missing_extra
from rag.interop._common import Cutter, Found, OpenIndex, PipelineLike, chunk_metadata, field_name, name_of, positive

try:
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.node_parser import NodeParser
    from llama_index.core.schema import (
        BaseNode,
        Document,
        MetadataMode,
        NodeRelationship,
        NodeWithScore,
        QueryBundle,
        RelatedNodeInfo,
        TextNode,
    )
    from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
except ImportError as error:
    raise missing_extra("llama-index-core", "llama-index", "rag.interop.llama_index") from error

if TYPE_CHECKING:
    from rag.index import Index
    from rag.protocols import Filter

__all__ = ["ChunkwiseNodeParser", "ChunkwiseRetriever", "filter_of"]

_UNREAD = ("chunk_id", "doc_id", "start", "end", "score", "rank", "retriever", "parts")
"""Metadata that neither a language model nor an encoder is to read."""
_OPERATORS = {
    "==": "eq", "!=": "ne", ">": "gt", "<": "lt", ">=": "ge", "<=": "le", "in": "in", "contains": "contains",
    "text_match": "contains",
}  # fmt: skip


class ChunkwiseRetriever(BaseRetriever):
    """Searches an index of Chunkwise. The node id is the chunk id, the source node is the document.

    `filters` are LlamaIndex's MetadataFilters or a filter of Chunkwise such as {"source": "a.md"}. The metadata has
    `chunk_id`, `doc_id`, `source`, `start`, `end`, `section`, `score`, `rank`, `retriever` and `parts`; models read
    `source` and `section` only.
    """

    def __init__(
        self,
        index: Index | str | Path,
        *,
        similarity_top_k: int | None = None,
        filters: MetadataFilters | Mapping[str, Any] | None = None,
        pipeline: PipelineLike = None,
    ) -> None:
        super().__init__()
        self.similarity_top_k = positive("similarity_top_k", similarity_top_k)
        self.where = filter_of(filters)
        self.index = OpenIndex(index, pipeline)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self.index.search(query_bundle.query_str, self.similarity_top_k, self.where)
        return [NodeWithScore(node=_node(one), score=float(one.hit.score)) for one in found]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


class ChunkwiseNodeParser(NodeParser):
    """Cuts by a chunker of Chunkwise: exact `start_char_idx` and `end_char_idx`, node ids as of ingestion.

    `chunker` is a spec such as "recursive" or {"use": "sentence", "max_tokens": 200}; None takes the one of
    `pipeline`, a config as a mapping, or None for the defaults. A document's name is its metadata `source`,
    `file_path` or `file_name`, else its id.
    """

    chunker: str | dict[str, Any] | None = Field(default=None, description="Spec of a chunker of Chunkwise.")
    pipeline: dict[str, Any] | None = Field(default=None, description="Config of a pipeline of Chunkwise.")
    _cutter: Cutter = PrivateAttr()

    @classmethod
    def class_name(cls) -> str:
        return "ChunkwiseNodeParser"

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self._cutter = Cutter(self.chunker, self.pipeline)

    def _parse_nodes(self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any) -> list[BaseNode]:
        return [made for node in nodes for made in self._nodes_of(node)]

    def _nodes_of(self, node: BaseNode) -> list[BaseNode]:
        source = name_of(node.metadata, ["source", "file_path", "file_name"], node.node_id)
        chunks = self._cutter.cut(node.get_content(metadata_mode=MetadataMode.NONE), source)
        return [
            TextNode(
                id_=chunk.id,
                text=chunk.text,
                start_char_idx=chunk.span.start,
                end_char_idx=chunk.span.end,
                metadata=chunk_metadata(chunk, source),
                excluded_embed_metadata_keys=[*node.excluded_embed_metadata_keys, *_UNREAD],
                excluded_llm_metadata_keys=[*node.excluded_llm_metadata_keys, *_UNREAD],
                relationships={NodeRelationship.SOURCE: node.as_related_node_info()},
            )
            for chunk in chunks
        ]

    def _postprocess_parsed_nodes(self, nodes: list[BaseNode], parent_doc_map: dict[str, Document]) -> list[BaseNode]:
        """LlamaIndex looks for each node's text again, which finds the wrong place of a repeated text: put right."""
        made = super()._postprocess_parsed_nodes(nodes, parent_doc_map)
        for node in made:
            if isinstance(node, TextNode):
                node.start_char_idx, node.end_char_idx = node.metadata["start"], node.metadata["end"]
        return made


def filter_of(filters: MetadataFilters | Mapping[str, Any] | None) -> Filter | None:
    """LlamaIndex's filters as one of ours; a mapping is one of ours already. ConfigError names what has no match."""
    if filters is None or isinstance(filters, Mapping):
        return filters
    parts = [_condition(one) if isinstance(one, MetadataFilter) else filter_of(one) for one in filters.filters]
    if not parts:
        return None
    condition = getattr(filters.condition, "value", filters.condition) or "and"
    return {"not": {"or": parts}} if condition == "not" else {condition: parts}


def _condition(one: MetadataFilter) -> dict[str, Any]:
    name, operator = field_name(one.key), one.operator.value
    if operator == "nin":
        return {"not": {name: {"in": one.value}}}
    if operator == "is_empty":
        return {name: {"exists": False}}
    if operator not in _OPERATORS:
        raise ConfigError(
            f"filters: the operator {operator!r} on {one.key!r} has no match in Chunkwise; "
            f"use one of {', '.join([*_OPERATORS, 'nin', 'is_empty'])}"
        )
    return {name: {_OPERATORS[operator]: one.value}}


def _node(found: Found) -> TextNode:
    chunk = found.hit.chunk
    return TextNode(
        id_=chunk.id,
        text=chunk.text,
        start_char_idx=chunk.span.start,
        end_char_idx=chunk.span.end,
        metadata=found.metadata,
        excluded_embed_metadata_keys=list(_UNREAD),
        excluded_llm_metadata_keys=list(_UNREAD),
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=chunk.doc_id)},
    )
