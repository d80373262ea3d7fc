"""pgvector by words, and by words and vectors at once: what bm25 and hybrid find, from one SQL statement."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rag import Pipeline, PipelineConfig
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError
from rag.protocols import Corpus, Filter, Retriever
from rag.store.store import Store
from rag.types import Document
from retrievers import _pg_mirror
from retrievers._pg_words import full_text
from retrievers.bm25 import Bm25Retriever
from retrievers.faiss_dense import FaissDenseRetriever
from retrievers.hybrid import HybridRetriever
from retrievers.pgvector import PgvectorRetriever
from tests.corpora import TOPICS, topic_corpus, topic_documents
from tests.servers import sql

pytestmark = pytest.mark.usefixtures("address")

EMBEDDER = HashingEmbedder()
TEXT = PgvectorRetriever(embedder=EMBEDDER, mode="text")
HYBRID = PgvectorRetriever(embedder=EMBEDDER, mode="hybrid")
SIMPLE = replace(HYBRID, language="simple")
"""Words as the full-text index of a corpus in memory has them."""
QUESTIONS = [
    "How warm does the brood nest of the bees stay in winter?",
    "Which mudflows follow the valleys of rivers?",
    "hotel rooms, breakfast included",
    "Who approves it?",
    "gluten gluten GLUTEN and Rye",
    "cafe in the section of the naive",
    "a case of snake words",
    "nothing of this sort xyzzy",
]
EXTRA = "# Café 蜂蜜\n\n## Naïve\n\nA snake_case word, 蜂蜜 and the Café. " + "Filler words follow. " * 9


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    """A real store with headings, accents and CJK; its full-text index stems as `english` does on these words."""
    folder = tmp_path_factory.mktemp("stored") / "docs"
    folder.mkdir()
    for name, text in {**TOPICS, "extra.md": EXTRA}.items():
        (folder / name).write_text(text, encoding="utf-8")
    slots = {"embedder": "hashing", "chunker": {"use": "fixed", "max_tokens": 24}, "retriever": "faiss-dense"}
    config = PipelineConfig.from_dict({**slots, "generator": "extractive"})
    Pipeline(config).index(folder, into=folder.parent / "idx").close()
    with Store.open(folder.parent / "idx") as store, store.corpus() as corpus:
        yield corpus


def found(
    retriever: Retriever, corpus: Corpus, question: str, k: int = 10, where: Filter | None = None
) -> list[tuple[str, float]]:
    with closing(retriever.open(corpus)) as searcher:
        return [(hit.chunk.id, hit.score) for hit in searcher.search(question, k, where)]


def same(left: Sequence[tuple[str, float]], right: Sequence[tuple[str, float]], rel: float = 1e-6) -> None:
    assert [name for name, _ in left] == [name for name, _ in right]
    assert [score for _, score in left] == pytest.approx([score for _, score in right], rel=rel)


@pytest.mark.parametrize("where", [None, {"source": {"ne": "docs/bees.md"}}], ids=repr)
@pytest.mark.parametrize("question", QUESTIONS)
def test_text_finds_what_bm25_finds(
    stored: Corpus, question: str, where: Filter | None, asked: list[int | None]
) -> None:
    expected = found(Bm25Retriever(), stored, question, where=where)
    same(found(TEXT, stored, question, where=where), expected)
    assert asked == [len(expected)]


@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("question", QUESTIONS)
def test_hybrid_finds_what_hybrid_finds(stored: Corpus, question: str, k: int, asked: list[int | None]) -> None:
    both = HybridRetriever(parts=(FaissDenseRetriever(embedder=EMBEDDER), Bm25Retriever()), fusion="rrf")
    expected = found(both, stored, question, k)
    same(found(HYBRID, stored, question, k), expected, rel=1e-9)
    assert asked == [len(expected)], "one statement"


def test_a_hit_says_what_it_is_made_of(stored: Corpus) -> None:
    with closing(HYBRID.open(stored)) as searcher:
        first, *_, last = searcher.search(QUESTIONS[0], 40)
    assert {"dense", "dense.rank", "text", "text.rank", "rrf"} == set(first.parts)
    assert first.score == first.parts["rrf"]
    assert first.score == pytest.approx(1 / (60 + first.parts["dense.rank"]) + 1 / (60 + first.parts["text.rank"]))
    assert "text" not in last.parts


@pytest.mark.parametrize("retriever", [TEXT, HYBRID], ids=["text", "hybrid"])
def test_a_table_that_moved_on_leaves_it_to_the_store(
    tmp_path: Path, retriever: PgvectorRetriever, asked: list[int | None]
) -> None:
    """Unstemmed, as the full-text index of this corpus."""
    retriever = replace(retriever, language="simple")
    documents = [Document(text=one.text, source=one.source) for one in topic_documents()]
    old = topic_corpus(tmp_path, EMBEDDER, documents[:3])
    with closing(retriever.open(old)) as searcher:
        before = [hit.chunk.id for hit in searcher.search(QUESTIONS[0], 5)]
        found(retriever, topic_corpus(tmp_path, EMBEDDER, documents[2:], generation=2), QUESTIONS[0])
        after = searcher.search(QUESTIONS[0], 5)
    assert asked[-1] is None
    assert [hit.chunk.id for hit in after] == before
    assert {"text", "rrf"} & set(after[0].parts)


def test_a_pool_of_a_graph_that_runs_dry(tmp_path: Path, asked: list[int | None]) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    graph = PgvectorRetriever(embedder=EMBEDDER, mode="hybrid", index="hnsw")
    same(found(graph, corpus, QUESTIONS[0]), found(HYBRID, corpus, QUESTIONS[0]))
    assert len(asked) == 3, "asked again without the graph"


def test_languages(tmp_path: Path, address: str) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER, [Document(text="Zwei Häuser stehen hier.", source="a.md")])
    for language, hits in (("english", 0), ("german", 1), ("simple", 0)):
        retriever = PgvectorRetriever(embedder=EMBEDDER, mode="text", language=language)
        assert len(found(retriever, corpus, "Haus")) == hits
    with pytest.raises(ConfigError, match="klingon"):
        PgvectorRetriever(embedder=EMBEDDER, language="klingon").open(corpus)
    with pytest.raises(ConfigError, match="language"):
        PgvectorRetriever(embedder=EMBEDDER, language="english'::text")


def test_a_word_and_a_text_of_any_length(tmp_path: Path) -> None:
    """PostgreSQL leaves out words over 2 kB and holds 1 MB of words; nothing fails, the rest is found."""
    texts = [
        "x" * 5_000 + " needle one.",
        " ".join(f"w{at}" for at in range(60_000)) + " end.",
        "needle two.",
        "\0 \\ '",
    ]
    documents = [Document(text=text, source=f"{at}.md") for at, text in enumerate(texts)]
    corpus = topic_corpus(tmp_path, EMBEDDER, documents)
    assert {name.split(":")[0] for name, _ in found(TEXT, corpus, "needle")} == {documents[0].id, documents[2].id}
    assert found(TEXT, corpus, "w17")[0][0].startswith(documents[1].id)
    assert found(TEXT, corpus, "x" * 5_000) == []
    assert found(TEXT, corpus, "\\ ' \0 & | ! ( <-> :*") == []


def test_accents_are_folded_as_in_the_store() -> None:
    assert full_text(["Über"], "ÉTÉ Ångström 蜂") == ("ete angstrom 蜂 uber", 4)


def test_two_writers_of_two_generations(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is first, the newer one stays, whole, and nothing is lost or doubled."""
    monkeypatch.setattr(_pg_mirror, "_BATCH", 3)
    documents = [Document(text=one.text, source=one.source) for one in topic_documents()]
    name = SIMPLE._mirror(topic_corpus(tmp_path, EMBEDDER)).name
    for first in range(2, 12, 2):
        newest = first + 1
        barrier, ends = threading.Barrier(2), {}
        parts = {first: documents[:3], newest: documents[first % 3 :]}

        def work(generation: int, barrier: Any = barrier, ends: dict[int, Any] = ends, parts: Any = parts) -> None:
            corpus = topic_corpus(tmp_path, EMBEDDER, parts[generation], generation=generation)
            barrier.wait()
            try:
                ends[generation] = [name for name, _ in found(SIMPLE, corpus, QUESTIONS[0])]
            except Exception as error:  # told below
                ends[generation] = error

        threads = [threading.Thread(target=work, args=(generation,)) for generation in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        corpora = [topic_corpus(tmp_path / str(at), EMBEDDER, parts[at]) for at in parts]
        assert list(ends[first]) == [name for name, _ in found(SIMPLE, corpora[0], QUESTIONS[0])]
        assert list(ends[newest]) == [name for name, _ in found(SIMPLE, corpora[1], QUESTIONS[0])]
        kept = sql(address, f"SELECT row, chunk_id, start, stop, text FROM chunkwise.{name} ORDER BY row")
        chunks = corpora[1].chunks(range(len(corpora[1])))
        expected = [(row, one.id, one.span.start, one.span.end, one.text) for row, one in enumerate(chunks)]
        assert kept == expected
        counts = "SELECT generation, chunks, words > 0, digest <> '' FROM chunkwise.mirrors WHERE name = %s"
        assert sql(address, counts, name) == [(newest, len(chunks), True, True)]


def test_a_table_of_the_older_layout_is_made_anew(tmp_path: Path, address: str) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    mirror = TEXT._mirror(corpus)
    sql(address, "DROP SCHEMA IF EXISTS chunkwise CASCADE")
    sql(address, "CREATE SCHEMA chunkwise")
    sql(
        address,
        "CREATE TABLE chunkwise.mirrors(name text PRIMARY KEY, directory text NOT NULL, fingerprint text NOT NULL, "
        "dimension int NOT NULL, generation bigint NOT NULL, digest text NOT NULL, plain bool NOT NULL)",
    )
    sql(address, f"CREATE TABLE {mirror.table}(row bigint PRIMARY KEY, text text)")
    values = (mirror.name, "/", EMBEDDER.fingerprint, EMBEDDER.dimension, 1, _pg_mirror.digest_of(corpus), True)
    sql(address, "INSERT INTO chunkwise.mirrors VALUES (%s, %s, %s, %s, %s, %s, %s)", *values)
    assert found(TEXT, corpus, "varroa mite")
