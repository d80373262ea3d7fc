"""The adapters for LangChain, run by LangChain itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="chunkwise[langchain] is not installed")
pytest.importorskip("langchain_text_splitters", reason="chunkwise[langchain] is not installed")

from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from pydantic import ValidationError

from rag import Index
from rag.errors import ConfigError, UsageError
from rag.interop.langchain import ChunkwiseRetriever, ChunkwiseTextSplitter
from tests.interop_index import CONFIG, FILES, QUESTION, REPEATED, check_metadata, chunk_ids, expected, make_index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("langchain"))


def test_a_retriever_gives_what_chunkwise_finds(index: Path) -> None:
    made = ChunkwiseRetriever.open(index).invoke(QUESTION)
    hits = expected(index)
    assert [one.id for one in made] == [hit.chunk.id for hit in hits]
    assert [one.page_content for one in made] == [hit.chunk.text for hit in hits]
    assert {one.metadata["source"] for one in made} == set(FILES)
    for one, hit in zip(made, hits, strict=True):
        check_metadata(one.metadata, hit, one.metadata["source"])
        text = FILES[one.metadata["source"]]
        assert text[one.metadata["start"] : one.metadata["end"]] == one.page_content


def test_k_and_filter_of_the_retriever_and_of_the_call(index: Path) -> None:
    where: dict[str, Any] = {"source": "docs/minutes.txt"}
    retriever = ChunkwiseRetriever.open(index, k=1, where=where)
    assert [one.id for one in retriever.invoke(QUESTION)] == [hit.chunk.id for hit in expected(index, 1, where)]
    more = retriever.invoke(QUESTION, k=3, where={"source": "docs/handbook.md"})
    assert [one.id for one in more] == [hit.chunk.id for hit in expected(index, 3, {"source": "docs/handbook.md"})]
    assert {one.metadata["source"] for one in retriever.invoke(QUESTION, k=9, where={})} == set(FILES)


def test_asynchronous_batched_and_in_a_chain(index: Path) -> None:
    retriever = ChunkwiseRetriever.open(index, k=2)
    ids = [one.id for one in retriever.invoke(QUESTION)]
    assert [one.id for one in asyncio.run(retriever.ainvoke(QUESTION))] == ids
    assert [one.id for one in asyncio.run(retriever.ainvoke(QUESTION, k=1))] == ids[:1]
    assert [[one.id for one in found] for found in retriever.batch([QUESTION] * 12)] == [ids] * 12
    chain = retriever | RunnableLambda(lambda found: [one.id for one in found])
    assert chain.invoke(QUESTION) == ids


def test_an_open_index_another_pipeline_and_a_later_refresh(tmp_path: Path) -> None:
    from tests.interop_index import pipeline

    folder = make_index(tmp_path)
    with Index.open(folder) as opened:
        retriever = ChunkwiseRetriever.open(opened, pipeline={"retriever": "bm25"})
        assert {tuple(one.metadata["parts"]) for one in retriever.invoke(QUESTION)} == {("bm25",)}
        (tmp_path / "docs" / "news.txt").write_text("Zanzibar approves travel.\n")
        pipeline().index(tmp_path / "docs", folder).close()
        assert not any("Zanzibar" in one.page_content for one in retriever.invoke("Zanzibar"))
        retriever.index.refresh()
        assert "Zanzibar" in retriever.invoke("Zanzibar")[0].page_content
        retriever.index.close()
        assert len(opened.corpus) > 0  # who opens it closes it


def test_errors_name_the_value_and_the_fix(index: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no index"):
        ChunkwiseRetriever.open(tmp_path / "nowhere")
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        ChunkwiseRetriever.open(index, k=0)
    with pytest.raises(UsageError, match="k must be at least 1, not 0"):
        ChunkwiseRetriever.open(index).invoke(QUESTION, k=0)
    with pytest.raises(ConfigError, match="colour"):
        ChunkwiseRetriever.open(index).invoke(QUESTION, where={"colour": "red"})
    with pytest.raises(ConfigError, match="expected a Pipeline"):
        ChunkwiseRetriever.open(index, pipeline=3)
    with pytest.raises(ConfigError, match="unknown key"):
        ChunkwiseTextSplitter(pipeline={"chunk": "recursive"})


def test_a_splitter_makes_the_chunks_of_ingestion(index: Path) -> None:
    given = [Document(page_content=text, metadata={"source": name, "year": 2026}) for name, text in FILES.items()]
    made = ChunkwiseTextSplitter(pipeline=CONFIG).split_documents(given)
    assert [one.id for one in made] == [one for name in FILES for one in chunk_ids(index, name)]
    assert {one.metadata["year"] for one in made} == {2026}
    assert "Handbook > Travel" in {one.metadata["section"] for one in made}
    assert made == list(ChunkwiseTextSplitter(pipeline=CONFIG).transform_documents(given))


def test_a_splitter_is_exact_in_repeated_text() -> None:
    splitter = ChunkwiseTextSplitter({"use": "fixed", "max_tokens": 9}, pipeline={"embedder": "hashing"})
    assert "".join(splitter.split_text(REPEATED)) == REPEATED
    made = splitter.create_documents([REPEATED])
    at = 0
    for one in made:
        assert one.metadata["start_index"] == one.metadata["start"] == at
        at = one.metadata["end"]
    assert at == len(REPEATED)
    assert splitter.split_text("") == []
