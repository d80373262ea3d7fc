"""The retriever pgvector on a real PostgreSQL: the store's answers, whoever writes, dies or looks at the same time."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag import Pipeline, PipelineConfig
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError, RagError
from rag.protocols import Corpus
from rag.types import Document
from retrievers import _pg_link, _pg_mirror
from retrievers._pg_mirror import Mirror
from retrievers.pgvector import PgvectorRetriever
from tests.corpora import MemoryCorpus, topic_corpus, topic_documents
from tests.servers import sql

pytestmark = pytest.mark.usefixtures("address")

EMBEDDER = HashingEmbedder(buckets=64)
RETRIEVER = PgvectorRetriever(embedder=EMBEDDER)
QUESTION = "How long may a hotel night be refunded?"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of every batch that is written."""
    log: list[int] = []
    real = Mirror._write

    def spy(self: Mirror, connection: Any, records: Any) -> None:
        real(self, connection, records)
        log.append(len(records))

    monkeypatch.setattr(Mirror, "_write", spy)
    return log


def search(retriever: PgvectorRetriever, corpus: Corpus, k: int = 5) -> list[tuple[str, float]]:
    with closing(retriever.open(corpus)) as searcher:
        return [(hit.chunk.id, hit.score) for hit in searcher.search(QUESTION, k)]


def truth(corpus: Corpus, k: int = 5) -> list[tuple[str, float]]:
    """Exact search over the vectors of the corpus."""
    _, matrix = corpus.vectors()
    scores = (matrix.astype(np.float64) @ EMBEDDER.embed_question(QUESTION)).round(6)
    best = np.lexsort((np.arange(len(scores)), -scores))[:k]
    return [(chunk.id, float(scores[row])) for row, chunk in zip(best, corpus.chunks(best.tolist()), strict=True)]


def random_documents(count: int, seed: int = 0) -> list[Document]:
    rng = np.random.default_rng(seed)
    words = [f"word{number}" for number in range(400)]
    return [Document(text=" ".join(rng.choice(words, 12)) + ".", source=f"{at}.md") for at in range(count)]


def test_a_pipeline_gives_what_faiss_gives(tmp_path: Path, asked: list[int | None]) -> None:
    folder = tmp_path / "docs"
    for document in topic_documents():
        (folder / document.source).parent.mkdir(exist_ok=True)
        (folder / document.source).write_text(document.text)
    found = {}
    for name in ("faiss-dense", "pgvector"):
        slots = {"embedder": "hashing", "chunker": {"use": "fixed", "max_tokens": 24}, "generator": "extractive"}
        pipeline = Pipeline(PipelineConfig.from_dict({**slots, "retriever": name}))
        with pipeline.index(folder, into=tmp_path / "idx") as index:
            hits = pipeline.search(QUESTION, index)
        found[name] = [(hit.chunk.id, hit.score, hit.rank) for hit in hits]
    assert found["pgvector"] == found["faiss-dense"]
    assert len(asked) == 1
    assert asked[0], "PostgreSQL found them"


def test_only_the_difference_is_written(tmp_path: Path, written: list[int], asked: list[int | None]) -> None:
    documents = topic_documents()
    for generation, count in ((1, 4), (1, 4), (2, 5), (3, 3)):
        corpus = topic_corpus(tmp_path, EMBEDDER, documents[:count], generation=generation)
        assert search(RETRIEVER, corpus) == truth(corpus)
    assert written == [20, 5]
    assert asked == [20, 20, 21, 15]


def test_an_older_view_is_searched_in_the_store(tmp_path: Path, written: list[int], asked: list[int | None]) -> None:
    documents = topic_documents()
    old = topic_corpus(tmp_path, EMBEDDER, documents[:2], generation=1)
    with closing(RETRIEVER.open(old)) as searcher:
        before = searcher.search(QUESTION, 5)
        new = topic_corpus(tmp_path, EMBEDDER, documents[2:], generation=2)
        assert search(RETRIEVER, new) == truth(new)
        assert searcher.search(QUESTION, 5) == before, "an open searcher survives"
    assert search(RETRIEVER, old) == truth(old)
    assert asked == [10, 15, None]
    assert written == [10, 15], "the old view wrote nothing back"
    (problem,) = RETRIEVER.check(old)
    assert "generation 2" in problem
    assert RETRIEVER.check(new) == []


@pytest.mark.parametrize("death", ["interrupt", "connection"])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_writer_that_dies_leaves_nothing_that_is_trusted(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch, asked: list[int | None], is_new: bool, death: str
) -> None:
    """A new table is filled further by the next writer; of a table that is searched, the old generation stays."""
    monkeypatch.setattr(_pg_mirror, "_BATCH", 8)
    documents = topic_documents()
    first = topic_corpus(tmp_path, EMBEDDER, [] if is_new else documents[:1])
    searcher = RETRIEVER.open(first)
    second = topic_corpus(tmp_path, EMBEDDER, documents, generation=2)
    real = Mirror._write
    batches: list[int] = []

    def dies(self: Mirror, connection: Any, records: Any) -> None:
        if len(batches) == 2 and death == "interrupt":
            raise KeyboardInterrupt
        if len(batches) == 2:
            sql(address, "SELECT pg_terminate_backend(%s)", connection.info.backend_pid)
        batches.append(len(records))
        real(self, connection, records)

    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "_write", dies)
        with pytest.raises(KeyboardInterrupt if death == "interrupt" else RagError):
            RETRIEVER.open(second)
    name = RETRIEVER._mirror(second).name
    if is_new:
        assert sql(address, "SELECT digest FROM chunkwise.mirrors WHERE name = %s", name) == [("",)]
        assert sql(address, f"SELECT count(*) FROM chunkwise.{name}") == [(16,)]
    else:
        assert [(hit.chunk.id, hit.score) for hit in searcher.search(QUESTION, 5)] == truth(first)
        assert asked == [5], "PostgreSQL still has the generation before, whole"
    searcher.close()
    assert search(RETRIEVER, second) == truth(second), "and the lock of the dead is free"
    assert sql(address, f"SELECT count(*), count(DISTINCT row) FROM chunkwise.{name}") == [(25, 25)]


def test_writers_at_once(tmp_path: Path, address: str) -> None:
    """Eight writers, two on each of four indexes, none of which exists before."""
    corpora = [topic_corpus(tmp_path / f"{at % 4}", EMBEDDER, topic_documents()[: 2 + at % 4]) for at in range(8)]
    found: dict[int, Any] = {}
    barrier = threading.Barrier(8)
    sql(address, "DROP SCHEMA IF EXISTS chunkwise CASCADE")

    def work(at: int) -> None:
        barrier.wait()
        try:
            found[at] = search(RETRIEVER, corpora[at])
        except Exception as error:  # told below
            found[at] = error

    threads = [threading.Thread(target=work, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {at: truth(corpus) for at, corpus in enumerate(corpora)}
    assert found == expected
    tables = sql(address, "SELECT name FROM chunkwise.mirrors")
    counts = [sql(address, f"SELECT count(*) FROM chunkwise.{name}")[0][0] for (name,) in tables]
    assert sorted(counts) == [10, 15, 20, 25]


def test_a_dropped_connection_is_made_anew(tmp_path: Path, address: str, asked: list[int | None]) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    with closing(RETRIEVER.open(corpus)) as searcher:
        first = searcher.search(QUESTION, 5)
        sql(address, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'chunkwise'")
        assert searcher.search(QUESTION, 5) == first
    assert asked == [21, 21]


def test_another_embedder_makes_the_table_anew(tmp_path: Path, written: list[int]) -> None:
    for embedder in (EMBEDDER, HashingEmbedder(buckets=128)):
        retriever = PgvectorRetriever(embedder=embedder)
        with closing(retriever.open(topic_corpus(tmp_path, embedder))) as searcher:
            assert len(searcher.search(QUESTION, 5)) == 5
    assert written == [25, 25]


def test_nul_characters(tmp_path: Path, asked: list[int | None]) -> None:
    """PostgreSQL cannot hold them; the chunks come from the store, and so do the filters of such an index."""
    documents = [Document(text="One\0two.", source="a\0.md"), Document(text="Three.", source="b.md")]
    corpus = topic_corpus(tmp_path, EMBEDDER, documents)
    with closing(RETRIEVER.open(corpus)) as searcher:
        (hit,) = searcher.search("one", 5, {"source": {"contains": "\0"}})
        assert hit.chunk.text == "One\0two."
        assert searcher.search("one", 5, {"source": {"contains": "\ufffd"}}) == []
    assert asked == [1, 0]


def test_graphs_follow_the_config(tmp_path: Path, address: str) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    name = RETRIEVER._mirror(corpus).name
    for options, graphs in (
        ({"index": "hnsw"}, [f"{name}_hnsw_16_64"]),
        ({"index": "hnsw", "hnsw_m": 8}, [f"{name}_hnsw_8_64"]),
        ({"index": "auto"}, []),
    ):
        retriever = PgvectorRetriever(embedder=EMBEDDER, **options)  # type: ignore[arg-type]
        assert search(retriever, corpus) == truth(corpus)
        query = "SELECT indexname FROM pg_indexes WHERE tablename = %s AND indexname LIKE %s ORDER BY 1"
        assert [found for (found,) in sql(address, query, name, "%hnsw%")] == graphs


@pytest.mark.slow
def test_recall_of_the_graph(tmp_path: Path, asked: list[int | None]) -> None:
    documents = random_documents(3000)
    corpus = topic_corpus(tmp_path, EMBEDDER, documents)
    questions = [document.text for document in random_documents(60, seed=1)]
    top: dict[str, list[set[str]]] = {}
    for kind in ("exact", "hnsw"):
        retriever = PgvectorRetriever(embedder=EMBEDDER, index=kind)  # type: ignore[arg-type]
        with closing(retriever.open(corpus)) as searcher:
            top[kind] = [{hit.chunk.id for hit in searcher.search(question, 10)} for question in questions]
            narrow = searcher.search(questions[0], 10, {"source": {"in": [f"{at}.md" for at in range(0, 3000, 300)]}})
            assert len(narrow) == 10, "a filter does not starve the graph"
    shared = [len(left & right) / 10 for left, right in zip(top["exact"], top["hnsw"], strict=True)]
    assert np.mean(shared) >= 0.95
    assert None not in asked


def test_check_counts_the_rows(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    assert RETRIEVER.check(corpus) == [], "there is no table yet"
    search(RETRIEVER, corpus)
    assert RETRIEVER.check(corpus) == []
    sql(address, f"DELETE FROM {RETRIEVER._mirror(corpus).table} WHERE row < 3")
    (problem,) = RETRIEVER.check(corpus)
    assert "holds 22 chunks, the index 25" in problem
    monkeypatch.setenv("CHUNKWISE_PG_DSN", "postgresql://tester@127.0.0.1:1/postgres")
    (problem,) = RETRIEVER.check(corpus)
    assert "cannot be opened" in problem


def test_a_read_only_view_is_mirrored_too(tmp_path: Path, written: list[int], asked: list[int | None]) -> None:
    """What is read-only is the folder of the index; `rag search` opens it so."""
    corpus = topic_corpus(tmp_path, EMBEDDER, writable=False)
    for _ in range(2):
        assert search(RETRIEVER, corpus) == truth(corpus)
    assert (written, asked) == ([25], [21, 21])
    assert not list(tmp_path.iterdir())


class TestSecrets:
    def test_a_password_is_never_printed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("CHUNKWISE_PG_DSN", "postgresql://tester:hunter2@127.0.0.1:1/postgres")
        with pytest.raises(RagError, match="cannot be opened") as caught:
            RETRIEVER.open(topic_corpus(tmp_path, EMBEDDER))
        told: BaseException | None = caught.value
        while told is not None:
            assert "hunter2" not in repr(told) + str(told)
            told = told.__cause__
        assert "hunter2" not in "".join(capfd.readouterr())

    @pytest.mark.parametrize(
        "dsn", ["postgresql://me:hunter2@host/db", "host=h password=hunter2", "host=h PASSWORD = x"]
    )
    def test_a_password_in_a_config_is_refused(self, dsn: str) -> None:
        with pytest.raises(ConfigError, match="dsn_env") as caught:
            PgvectorRetriever(embedder=EMBEDDER, dsn=dsn)
        assert "hunter2" not in str(caught.value)

    def test_a_config_may_hold_the_rest(
        self, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch, asked: list[int | None]
    ) -> None:
        monkeypatch.delenv("CHUNKWISE_PG_DSN")
        corpus: MemoryCorpus = topic_corpus(tmp_path, EMBEDDER)
        with pytest.raises(ConfigError, match="CHUNKWISE_PG_DSN"):
            RETRIEVER.open(corpus)
        assert search(PgvectorRetriever(embedder=EMBEDDER, dsn=address), corpus) == truth(corpus)
        assert asked == [21]


def test_an_old_extension_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pg_link, "_version", lambda connection: "0.7.4")
    with pytest.raises(ConfigError, match=r"0\.7\.4"):
        RETRIEVER.open(topic_corpus(tmp_path, EMBEDDER))


@pytest.mark.parametrize(
    "wrong",
    [
        {"k": 0},
        {"index": "ivf"},
        {"hnsw_m": 1},
        {"ef_construction": 20},
        {"ef_search": 0},
        {"schema": 'a"; DROP'},
        {"collection": "Capital"},
    ],
    ids=repr,
)
def test_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PgvectorRetriever(embedder=EMBEDDER, **wrong)
