"""The Chroma mirror: what is written, when it is trusted, and the server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError, RagError
from rag.types import Document
from tests.corpora import MemoryCorpus, topic_corpus, topic_documents

chromadb = pytest.importorskip("chromadb")

from retrievers import _chroma_probe  # noqa: E402
from retrievers.chroma_dense import ChromaDenseRetriever  # noqa: E402

EMBEDDER = HashingEmbedder(buckets=64)
RETRIEVER = ChromaDenseRetriever(embedder=EMBEDDER)
QUESTION = "How long may a hotel night be refunded?"


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every add and delete that Chroma is asked for, with its number of records."""
    from chromadb.api.models.Collection import Collection

    log: list[tuple[str, int]] = []
    for name in ("add", "delete"):
        real = getattr(Collection, name)

        def spy(self: Any, ids: list[str], *rest: Any, _real: Any = real, _name: str = name, **more: Any) -> Any:
            log.append((_name, len(ids)))
            return _real(self, ids, *rest, **more)

        monkeypatch.setattr(Collection, name, spy)
    return log


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe starts a process; tests of other things go without it."""
    monkeypatch.setattr(_chroma_probe, "probe", lambda path: True)


def search(retriever: ChromaDenseRetriever, corpus: MemoryCorpus, k: int = 5) -> list[tuple[str, float]]:
    searcher = retriever.open(corpus)
    hits = searcher.search(QUESTION, k)
    searcher.close()
    return [(hit.chunk.id, hit.score) for hit in hits]


def test_scores_are_exact_cosines(tmp_path: Path) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    _, matrix = corpus.vectors()
    scores = matrix @ EMBEDDER.embed_question(QUESTION)
    found = search(RETRIEVER, corpus, 25)
    rows = corpus.rows_of([chunk_id for chunk_id, _ in found])
    assert [score for _, score in found] == pytest.approx(scores[rows], abs=1e-6)
    assert scores[rows[0]] == pytest.approx(scores.max())


@pytest.mark.usefixtures("no_probe")
def test_only_the_difference_is_written(tmp_path: Path, writes: list[tuple[str, int]]) -> None:
    documents = topic_documents()
    search(RETRIEVER, topic_corpus(tmp_path, EMBEDDER, documents[:4]))
    assert writes == [("add", 20)]
    search(RETRIEVER, topic_corpus(tmp_path, EMBEDDER, documents[:4]))
    assert writes == [("add", 20)], "the same generation writes nothing"
    search(RETRIEVER, topic_corpus(tmp_path, EMBEDDER, documents, generation=2))
    assert writes[1:] == [("add", 5)]
    search(RETRIEVER, topic_corpus(tmp_path, EMBEDDER, documents[:3], generation=3))
    assert writes[2:] == [("delete", 10)]


@pytest.mark.usefixtures("no_probe")
def test_another_embedder_makes_the_mirror_anew(tmp_path: Path, writes: list[tuple[str, int]]) -> None:
    search(RETRIEVER, topic_corpus(tmp_path, EMBEDDER))
    other = HashingEmbedder(buckets=128)
    corpus = topic_corpus(tmp_path, other)
    fresh = topic_corpus(tmp_path / "fresh", other)
    retriever = ChromaDenseRetriever(embedder=other)
    assert search(retriever, corpus) == search(retriever, fresh)
    assert writes == [("add", 25)] * 3


@pytest.mark.usefixtures("no_probe")
def test_batches_keep_to_the_limit_of_the_client(
    tmp_path: Path, writes: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from chromadb.api.client import Client

    monkeypatch.setattr(Client, "get_max_batch_size", lambda self: 8)
    search(RETRIEVER, topic_corpus(tmp_path, EMBEDDER))
    assert writes == [("add", 8), ("add", 8), ("add", 8), ("add", 1)]


@pytest.mark.usefixtures("no_probe")
def test_an_older_view_leaves_a_newer_mirror_alone(tmp_path: Path, writes: list[tuple[str, int]]) -> None:
    documents = topic_documents()
    old = topic_corpus(tmp_path, EMBEDDER, documents[:2], generation=1)
    expected = search(RETRIEVER, old)
    search(RETRIEVER, topic_corpus(tmp_path, EMBEDDER, documents[2:], generation=2))
    writes.clear()
    assert search(RETRIEVER, old) == expected
    assert writes == [("add", 10)], "into memory"
    search(RETRIEVER, topic_corpus(tmp_path, EMBEDDER, documents[2:], generation=2))
    assert writes == [("add", 10)]


@pytest.mark.usefixtures("no_probe")
def test_an_open_searcher_survives_a_mirror_that_moves_on(tmp_path: Path) -> None:
    documents = topic_documents()
    old = topic_corpus(tmp_path, EMBEDDER, documents[:3], generation=1)
    searcher = RETRIEVER.open(old)
    before = searcher.search(QUESTION, 5)
    RETRIEVER.open(topic_corpus(tmp_path, EMBEDDER, documents[2:], generation=2)).close()
    assert searcher.search(QUESTION, 5) == before


def test_read_only_views_do_not_mix(tmp_path: Path) -> None:
    documents = topic_documents()
    left = RETRIEVER.open(topic_corpus(tmp_path / "l", EMBEDDER, documents[:2], writable=False))
    right = RETRIEVER.open(topic_corpus(tmp_path / "r", EMBEDDER, documents[2:], writable=False))
    names = {hit.chunk.doc_id for hit in left.search(QUESTION, 50)}
    assert names == {document.id for document in documents[:2]}
    left.close()
    assert {hit.chunk.doc_id for hit in right.search(QUESTION, 50)} == {d.id for d in documents[2:]}
    right.close()


@pytest.mark.slow
def test_a_mirror_that_lost_part_of_its_vectors_is_probed_out(tmp_path: Path) -> None:
    """Over 1,000 records Chroma keeps a graph in files of its own beside the database."""
    rng = np.random.default_rng(0)
    words = [f"word{number}" for number in range(400)]
    documents = [Document(text=" ".join(rng.choice(words, 12)) + ".", source=f"{at}.md") for at in range(1300)]
    corpus = topic_corpus(tmp_path, EMBEDDER, documents)
    first = search(RETRIEVER, corpus)
    [graph] = tmp_path.rglob("data_level0.bin")
    graph.write_bytes(bytes(graph.stat().st_size))
    assert not _chroma_probe.probe(tmp_path / "chroma")
    assert search(RETRIEVER, corpus) == first
    assert _chroma_probe.probe(tmp_path / "chroma")


def test_a_mirror_that_was_closed_in_order_is_not_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening after an ingestion is cheap; whoever touches a file, or dies before closing, brings the probe back."""
    probed: list[Path] = []
    monkeypatch.setattr(_chroma_probe, "probe", lambda path: probed.append(path) or True)
    first = search(RETRIEVER, topic_corpus(tmp_path, EMBEDDER))
    assert search(RETRIEVER, topic_corpus(tmp_path, EMBEDDER)) == first
    assert probed == []
    file = next(path for path in (tmp_path / "chroma").rglob("*") if path.is_file())
    os.utime(file, ns=(1, 1))
    assert search(RETRIEVER, topic_corpus(tmp_path, EMBEDDER)) == first
    assert len(probed) == 1
    RETRIEVER.open(topic_corpus(tmp_path, EMBEDDER, topic_documents()[:2], generation=2))  # never closed
    search(RETRIEVER, topic_corpus(tmp_path, EMBEDDER, topic_documents()[:3], generation=3))
    assert len(probed) == 2


@pytest.mark.slow
def test_check_reads_the_mirror_in_another_process(tmp_path: Path) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    assert RETRIEVER.check(corpus) == [], "there is no mirror yet"
    assert not (tmp_path / "chroma").exists()
    search(RETRIEVER, corpus)
    assert RETRIEVER.check(corpus) == []
    assert RETRIEVER.check(topic_corpus(tmp_path, EMBEDDER, topic_documents()[:2], generation=2)) == []
    client = chromadb.PersistentClient(str(tmp_path / "chroma"))
    collection = client.get_collection("chunkwise", embedding_function=None)
    ids = collection.get(include=[])["ids"]
    collection.delete(ids=ids[:2])
    collection.update(ids=ids[2:3], embeddings=np.eye(64, dtype=np.float32)[:1])
    client.close()
    missing, moved = RETRIEVER.check(corpus)
    assert "lacks 2 chunks" in missing
    assert "other vectors" in moved
    for path in (tmp_path / "chroma").rglob("*.sqlite3"):
        path.write_bytes(bytes(path.stat().st_size))
    (unreadable,) = RETRIEVER.check(corpus)
    assert "cannot be read" in unreadable
    assert search(RETRIEVER, corpus), "and the next opening fills it again"
    assert RETRIEVER.check(corpus) == []


@pytest.mark.parametrize("wrong", [{"k": 0}, {"port": 0}, {"collection": "a"}, {"collection": "a/b/c"}])
def test_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ChromaDenseRetriever(embedder=EMBEDDER, **wrong)


def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    retriever = ChromaDenseRetriever(embedder=EMBEDDER, host="127.0.0.1", port=free_port())
    with pytest.raises(RagError, match="chroma run"):
        retriever.open(topic_corpus(tmp_path, EMBEDDER))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[int]:
    """The port of a Chroma server that lives as long as the test."""
    program = shutil.which("chroma", path=str(Path(sys.executable).parent)) or shutil.which("chroma")
    if program is None:
        pytest.skip("the program `chroma` is not on the path")
    port = free_port()
    command = [program, "run", "--path", str(tmp_path / "server"), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.slow
def test_on_a_server(tmp_path: Path, server: int, writes: list[tuple[str, int]]) -> None:
    remote = ChromaDenseRetriever(embedder=EMBEDDER, host="127.0.0.1", port=server)
    documents = topic_documents()
    one = topic_corpus(tmp_path / "one", EMBEDDER, documents[:3])
    two = topic_corpus(tmp_path / "two", EMBEDDER, documents[3:])
    expected = search(RETRIEVER, topic_corpus(tmp_path / "local", EMBEDDER, documents[:3]))
    writes.clear()
    assert search(remote, one) == expected
    search(remote, two)
    assert search(remote, one) == expected, "two indexes on one server are kept apart"
    assert writes == [("add", 15), ("add", 10)]
    searcher = remote.open(one)
    assert {h.chunk.doc_id for h in searcher.search(QUESTION, 9, {"source": "bread.md"})} == {documents[2].id}
    searcher.close()
    assert not (tmp_path / "one" / "chroma").exists()
