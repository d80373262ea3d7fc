"""The adapters for LlamaIndex, run by LlamaIndex itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="chunkwise[llama-index] is not installed")

from llama_index.core.base.response.schema import Response
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms.mock import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import Document, MetadataMode, NodeRelationship, TextNode
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from rag.errors import ConfigError, UsageError
from rag.interop.llama_index import ChunkwiseNodeParser, ChunkwiseRetriever, filter_of
from rag.store.filters import compile_filter
from tests.interop_index import CONFIG, FILES, QUESTION, REPEATED, check_metadata, chunk_ids, expected, make_index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("llama"))


def test_a_retriever_gives_what_chunkwise_finds(index: Path) -> None:
    retriever = ChunkwiseRetriever(index)
    made, hits = retriever.retrieve(QUESTION), expected(index)
    assert [one.node_id for one in made] == [hit.chunk.id for hit in hits]
    assert [one.score for one in made] == [hit.score for hit in hits]
    for one, hit in zip(made, hits, strict=True):
        node = one.node
        assert isinstance(node, TextNode)
        check_metadata(node.metadata, hit, node.metadata["source"])
        assert (node.start_char_idx, node.end_char_idx) == (hit.chunk.span.start, hit.chunk.span.end)
        assert node.ref_doc_id == hit.chunk.doc_id
        assert "chunk_id" not in node.get_content(metadata_mode=MetadataMode.LLM)
        assert node.metadata["source"] in node.get_content(metadata_mode=MetadataMode.LLM)
    found = asyncio.run(retriever.aretrieve(QUESTION))
    assert [one.node_id for one in found] == [one.node_id for one in made]


def test_k_and_filters_pass_through(index: Path) -> None:
    where: dict[str, Any] = {"source": "docs/minutes.txt"}
    ids = [hit.chunk.id for hit in expected(index, 2, where)]
    theirs = MetadataFilters(filters=[MetadataFilter(key="source", value="docs/minutes.txt")])
    for filters in (where, theirs):
        retriever = ChunkwiseRetriever(index, similarity_top_k=2, filters=filters)
        assert [one.node_id for one in retriever.retrieve(QUESTION)] == ids
    with pytest.raises(UsageError, match="similarity_top_k must be at least 1, not 0"):
        ChunkwiseRetriever(index, similarity_top_k=0)


def test_a_query_engine_answers_from_the_retriever(index: Path) -> None:
    engine = RetrieverQueryEngine.from_args(ChunkwiseRetriever(index, similarity_top_k=2), llm=MockLLM())
    answer = engine.query("When does the Leipzig office close?")
    assert isinstance(answer, Response)
    assert "The Leipzig office closes in June." in str(answer)
    assert len(answer.source_nodes) == 2


def of(key: str, operator: FilterOperator, value: Any) -> MetadataFilter:
    return MetadataFilter(key=key, operator=operator, value=value)


@pytest.mark.parametrize(
    ("filters", "ours"),
    [
        ([of("year", FilterOperator.GTE, 2020)], {"and": [{"meta.year": {"ge": 2020}}]}),
        ([of("doc_id", FilterOperator.IN, ["a"])], {"and": [{"doc_id": {"in": ["a"]}}]}),
        ([of("title", FilterOperator.NIN, ["a"])], {"and": [{"not": {"title": {"in": ["a"]}}}]}),
        ([of("source", FilterOperator.TEXT_MATCH, "md")], {"and": [{"source": {"contains": "md"}}]}),
        ([of("year", FilterOperator.IS_EMPTY, None)], {"and": [{"meta.year": {"exists": False}}]}),
        ([], None),
    ],
)
def test_filters_are_translated(filters: list[Any], ours: Any) -> None:
    assert filter_of(MetadataFilters(filters=filters)) == ours
    compile_filter(ours)


def test_filters_nest_and_what_has_no_match_is_named() -> None:
    inner = MetadataFilters(filters=[of("a", FilterOperator.LT, 1), of("b", FilterOperator.NE, 2)])
    outer = MetadataFilters(filters=[inner, of("source", FilterOperator.EQ, "x")], condition=FilterCondition.OR)
    both = {"and": [{"meta.a": {"lt": 1}}, {"meta.b": {"ne": 2}}]}
    assert filter_of(outer) == {"or": [both, {"source": {"eq": "x"}}]}
    none = MetadataFilters(filters=[of("a", FilterOperator.EQ, 1)], condition=FilterCondition.NOT)
    assert filter_of(none) == {"not": {"or": [{"meta.a": {"eq": 1}}]}}
    with pytest.raises(ConfigError, match="'any' on 'tags' has no match"):
        filter_of(MetadataFilters(filters=[of("tags", FilterOperator.ANY, ["x"])]))


def test_a_node_parser_makes_the_chunks_of_ingestion(index: Path) -> None:
    given = [Document(text=text, metadata={"source": name, "year": 2026}) for name, text in FILES.items()]
    parser = ChunkwiseNodeParser(pipeline=CONFIG)
    nodes = parser.get_nodes_from_documents(given)
    assert [one.node_id for one in nodes] == [one for name in FILES for one in chunk_ids(index, name)]
    assert {one.metadata["year"] for one in nodes} == {2026}
    assert nodes[0].ref_doc_id == given[0].doc_id
    following = nodes[0].relationships[NodeRelationship.NEXT]
    assert following.node_id == nodes[1].node_id  # type: ignore[union-attr]
    assert [one.node_id for one in asyncio.run(parser.acall(given))] == [one.node_id for one in nodes]
    made = IngestionPipeline(transformations=[parser], disable_cache=False).run(documents=given)
    assert [one.node_id for one in made] == [one.node_id for one in nodes]


@pytest.mark.parametrize("text", [REPEATED, "word " * 200])
def test_a_node_parser_is_exact_in_repeated_text(text: str) -> None:
    spec = {"use": "fixed", "max_tokens": 9}
    nodes = ChunkwiseNodeParser(chunker=spec, pipeline={"embedder": "hashing"})([Document(text=text)])
    at = 0
    for node in nodes:
        assert isinstance(node, TextNode)
        assert node.start_char_idx == at
        at += len(node.text)
        assert node.end_char_idx == at
    assert at == len(text)


def test_a_node_parser_is_written_down_and_read_again() -> None:
    parser = ChunkwiseNodeParser(chunker={"use": "sentence", "max_tokens": 20}, pipeline={"embedder": "hashing"})
    written = parser.to_dict()
    del written["id_func"]  # LlamaIndex does not read back what it writes there, its own parsers included
    again = ChunkwiseNodeParser.from_dict(written)
    given = [Document(text=FILES["docs/minutes.txt"], id_="minutes")]
    assert [one.node_id for one in again(given)] == [one.node_id for one in parser(given)]
    with pytest.raises(ConfigError, match="unknown chunker"):
        ChunkwiseNodeParser(chunker="recursif")
