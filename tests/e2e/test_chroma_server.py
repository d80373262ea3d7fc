"""chroma-dense on a real `chroma run` server: whole pipelines, and a server that loses everything or is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rag import Pipeline, PipelineConfig
from rag.errors import RagError
from tests.corpora import topic_documents
from tests.servers import chroma_server, free_port

QUESTION = "How long may a hotel night be refunded?"
pytestmark = pytest.mark.slow


def pipeline(retriever: Any) -> Pipeline:
    slots = {"embedder": "hashing", "chunker": {"use": "fixed", "max_tokens": 24}, "generator": "extractive"}
    return Pipeline(PipelineConfig.from_dict({**slots, "retriever": retriever}))


def found(retriever: Any, folder: Path, index: Path, where: dict[str, Any] | None = None) -> list[Any]:
    line = pipeline(retriever)
    with line.index(folder, into=index) as opened:
        return [(hit.chunk.id, hit.score, hit.rank) for hit in line.search(QUESTION, opened, where=where)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "docs"
    place.mkdir()
    for document in topic_documents():
        (place / document.source).write_text(document.text)
    return place


def test_a_pipeline_gives_what_faiss_gives(folder: Path, tmp_path: Path) -> None:
    index = tmp_path / "idx"
    expected = found("faiss-dense", folder, index)
    some = {"source": {"in": ["docs/bread.md", "docs/bees.md", "bread.md", "bees.md"]}}
    narrow = found("faiss-dense", folder, index, some)
    assert 0 < len(narrow) < len(expected)
    for _ in range(2):  # the second server has never seen the index
        with chroma_server() as port:
            remote = {"use": "chroma-dense", "host": "127.0.0.1", "port": port}
            assert found(remote, folder, index) == expected
            assert found(remote, folder, index, some) == narrow
    assert not (index / "chroma").exists()


def test_a_server_that_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(RagError, match=f"127.0.0.1:{port}"):
        found({"use": "chroma-dense", "host": "127.0.0.1", "port": port}, folder, tmp_path / "idx")
