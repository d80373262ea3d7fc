"""The adapters for Haystack, run by Haystack's own pipelines."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
pytest.importorskip("haystack", reason="chunkwise[haystack] is not installed")

from haystack import Document, Pipeline
from haystack.components.joiners import DocumentJoiner
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore

from rag.errors import ConfigError, InputError, UsageError
from rag.interop.haystack import ChunkwiseDocumentSplitter, ChunkwiseRetriever, filter_of
from rag.store.filters import compile_filter
from tests.interop_index import CONFIG, FILES, QUESTION, REPEATED, check_metadata, chunk_ids, expected, make_index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("haystack"))


def test_a_retriever_gives_what_chunkwise_finds(index: Path) -> None:
    retriever = ChunkwiseRetriever(index)
    retriever.warm_up()
    made, hits = retriever.run(QUESTION)["documents"], expected(index)
    assert [one.id for one in made] == [hit.chunk.id for hit in hits]
    assert [one.content for one in made] == [hit.chunk.text for hit in hits]
    assert [one.score for one in made] == [hit.score for hit in hits]
    for one, hit in zip(made, hits, strict=True):
        check_metadata(one.meta, hit, one.meta["source"])
    assert asyncio.run(retriever.run_async(QUESTION, top_k=1))["documents"] == made[:1]


def test_top_k_and_filters_of_the_component_and_of_the_call(index: Path) -> None:
    theirs = {"field": "meta.source", "operator": "==", "value": "docs/minutes.txt"}
    retriever = ChunkwiseRetriever(index, top_k=1, filters=theirs)
    ours: dict[str, Any] = {"source": "docs/minutes.txt"}
    assert [one.id for one in retriever.run(QUESTION)["documents"]] == [
        hit.chunk.id for hit in expected(index, 1, ours)
    ]
    made = retriever.run(QUESTION, filters={"source": "docs/handbook.md"}, top_k=3)["documents"]
    assert [one.id for one in made] == [hit.chunk.id for hit in expected(index, 3, {"source": "docs/handbook.md"})]
    with pytest.raises(UsageError, match="top_k must be at least 1, not 0"):
        retriever.run(QUESTION, top_k=0)


def test_in_a_pipeline_that_is_written_to_yaml_and_read_again(index: Path) -> None:
    line = Pipeline()
    line.add_component("retriever", ChunkwiseRetriever(index, top_k=2, pipeline={"retriever": "bm25"}))
    line.add_component("joiner", DocumentJoiner())
    line.connect("retriever.documents", "joiner.documents")
    again = Pipeline.loads(line.dumps(), allowed_modules=[ChunkwiseRetriever.__module__])
    question = {"retriever": {"query": QUESTION}}
    made = again.run(question)["joiner"]["documents"]
    assert made == line.run(question)["joiner"]["documents"]
    assert [tuple(one.meta["parts"]) for one in made] == [("bm25",)] * 2


@pytest.mark.parametrize(
    ("filters", "ours"),
    [
        ({"field": "meta.year", "operator": ">=", "value": 2020}, {"meta.year": {"ge": 2020}}),
        ({"field": "year", "operator": "not in", "value": [1]}, {"not": {"meta.year": {"in": [1]}}}),
        (
            {"operator": "NOT", "conditions": [{"field": "meta.doc_id", "operator": "!=", "value": "a"}]},
            {"not": {"and": [{"doc_id": {"ne": "a"}}]}},
        ),
        (
            {"operator": "OR", "conditions": [{"source": "a"}, {"source": "b"}]},
            {"or": [{"source": "a"}, {"source": "b"}]},
        ),
        ({}, None),
        (None, None),
    ],
)
def test_filters_are_translated(filters: Any, ours: Any) -> None:
    assert filter_of(filters) == ours
    compile_filter(ours)


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"field": "meta.a", "operator": "~", "value": 1}, "'~' on 'meta.a' has no match"),
        ({"operator": "XOR", "conditions": []}, "'XOR' joins no conditions"),
        ({"operator": "=="}, "expected field, operator and value"),
    ],
)
def test_filters_that_have_no_match_are_named(filters: Any, said: str, index: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        ChunkwiseRetriever(index, filters=filters)


def test_a_splitter_makes_the_chunks_of_ingestion(index: Path) -> None:
    given = [Document(content=text, meta={"source": name, "year": 2026}) for name, text in FILES.items()]
    store = InMemoryDocumentStore()
    line = Pipeline()
    line.add_component("splitter", ChunkwiseDocumentSplitter(pipeline=CONFIG))
    line.add_component("writer", DocumentWriter(store))
    line.connect("splitter.documents", "writer.documents")
    Pipeline.loads(line.dumps(), allowed_modules=[ChunkwiseRetriever.__module__])
    line.run({"splitter": {"documents": given}})
    made = store.filter_documents()
    assert {one.id for one in made} == {one for name in FILES for one in chunk_ids(index, name)}
    assert {one.meta["year"] for one in made} == {2026}
    assert {one.meta["source_id"] for one in made} == {one.id for one in given}


def test_a_splitter_is_exact_in_repeated_text() -> None:
    splitter = ChunkwiseDocumentSplitter({"use": "fixed", "max_tokens": 9}, pipeline={"embedder": "hashing"})
    made = splitter.run([Document(content=REPEATED)])["documents"]
    assert "".join(one.content or "" for one in made) == REPEATED
    for one in made:
        assert one.content == REPEATED[one.meta["split_idx_start"] : one.meta["end"]]
    assert [one.meta["split_id"] for one in made] == list(range(len(made)))
    with pytest.raises(InputError, match="no text content"):
        splitter.run([Document(content=None)])
