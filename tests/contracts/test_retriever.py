"""What every retriever promises, checked on every module of the room."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError
from rag.protocols import Retriever, Searcher
from rag.tokens import WordCounter
from rag.types import Document, Hit
from tests.corpora import MemoryCorpus, chunked, plugins_of, topic_corpus, topic_documents
from tests.fakes import FakeGenerator, FakeModel, WithinEmbedder

EMBEDDER = HashingEmbedder()
PLUGINS = plugins_of("retrievers")
QUESTION = "How warm does the brood nest of the bees stay in winter?"


class CopyingModel(FakeModel):
    """Expects words that it has read before, and no others."""

    def losses(self, text: str, *, after: str = "") -> list[tuple[int, int, float]] | None:
        read = set(after.lower().split())
        return [(*word.span(), 1.0 if word[0].lower() in read else 8.0) for word in re.finditer(r"\S+", text)]


class PairModel:
    """In place of a cross-encoder, which no package brings along: the share of words that both texts say."""

    max_length = None

    def predict(self, pairs: list[tuple[str, str]], **_: Any) -> list[float]:
        words = [[set(text.lower().split()) for text in pair] for pair in pairs]
        return [len(asked & said) / (len(asked | said) or 1) for asked, said in words]


NAMES = [
    *PLUGINS,
    pytest.param("pgvector with a graph"),
    pytest.param("pgvector by words"),
    pytest.param("pgvector by words and vectors"),
    pytest.param("chroma-dense on a server", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=NAMES)
def retriever(request: pytest.FixtureRequest) -> Iterator[Any]:
    name = request.param.partition(" ")[0]
    embedder = WithinEmbedder() if name == "late-interaction" else EMBEDDER
    generator = FakeGenerator(model=CopyingModel(nats=None))
    made = PLUGINS[name](embedder=embedder, counter=WordCounter(), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrievers.cross_encoder.load_cross_encoder", lambda model: PairModel())
        if name == "pgvector":
            patch.setenv("CHUNKWISE_PG_DSN", request.getfixturevalue("postgres"))
        options = {
            "cross-encoder": lambda: {"model": "words"},
            "pgvector with a graph": lambda: {"index": "hnsw"},
            "pgvector by words": lambda: {"mode": "text"},
            "pgvector by words and vectors": lambda: {"mode": "hybrid"},
            "chroma-dense on a server": lambda: {"host": "127.0.0.1", "port": request.getfixturevalue("chroma")},
        }.get(request.param, dict)
        yield replace(made, **options())


@pytest.fixture(scope="module")
def opened(retriever: Retriever, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MemoryCorpus, Searcher]]:
    """A searcher on the topics that the tests of this module only read."""
    corpus = topic_corpus(tmp_path_factory.mktemp("topics"), EMBEDDER)
    searcher = retriever.open(corpus)
    yield corpus, searcher
    searcher.close()
    corpus.close()


def seen(hits: list[Hit]) -> list[tuple[str, float, int, dict[str, float]]]:
    return [(hit.chunk.id, hit.score, hit.rank, dict(hit.parts)) for hit in hits]


def find(retriever: Retriever, corpus: MemoryCorpus, question: str = QUESTION, k: int = 10) -> list[Any]:
    searcher = retriever.open(corpus)
    try:
        return seen(searcher.search(question, k))
    finally:
        searcher.close()


def many(directory: Path, count: int, *, generation: int = 1) -> MemoryCorpus:
    """`count` near-copies of one statement, each a document of its own; the even ones are from source even.md."""
    documents = [
        Document(
            text=f"Ledger entry number{at} books the copper price of the mill.",
            source="even.md" if at % 2 == 0 else "odd.md",
            meta={"number": at},
        )
        for at in range(count)
    ]
    return topic_corpus(directory, EMBEDDER, documents, generation=generation)


def test_a_chunk_is_found_by_its_own_text(opened: tuple[MemoryCorpus, Searcher]) -> None:
    corpus, searcher = opened
    for chunk in corpus.chunks(range(len(corpus))):
        assert searcher.search(chunk.text, 3)[0].chunk == chunk


@pytest.mark.parametrize("k", [1, 3, 7, 25, 1000])
def test_k_and_order(opened: tuple[MemoryCorpus, Searcher], k: int) -> None:
    corpus, searcher = opened
    hits = searcher.search("the and of a bridge, a bee and an oven", k)
    assert 1 <= len(hits) <= min(k, len(corpus))
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    assert all(left.score >= right.score for left, right in pairwise(hits))
    assert len({hit.chunk.id for hit in hits}) == len(hits)
    assert len({hit.retriever for hit in hits}) == 1
    assert all(hit.parts for hit in hits)


def test_a_smaller_k_is_a_prefix(opened: tuple[MemoryCorpus, Searcher]) -> None:
    _, searcher = opened
    assert seen(searcher.search(QUESTION, 10))[:4] == seen(searcher.search(QUESTION, 4))


def test_same_question_same_hits(opened: tuple[MemoryCorpus, Searcher]) -> None:
    _, searcher = opened
    assert seen(searcher.search(QUESTION, 10)) == seen(searcher.search(QUESTION, 10))


def test_no_k_no_hits(opened: tuple[MemoryCorpus, Searcher]) -> None:
    assert opened[1].search(QUESTION, 0) == []


def test_questions_that_are_no_text(opened: tuple[MemoryCorpus, Searcher]) -> None:
    for question in ("", "   ", '"" OR * ( NEAR', "\x00", "蜂", "word " * 2000):
        assert len(opened[1].search(question, 5)) <= 5


def test_ties_go_by_row(retriever: Retriever, tmp_path: Path) -> None:
    documents = [Document(text="The same sentence about copper.", source=f"{at}.md") for at in range(60)]
    corpus = topic_corpus(tmp_path, EMBEDDER, documents)
    searcher = retriever.open(corpus)
    for k in (1, 5, 30):
        hits = searcher.search("copper", k)
        assert corpus.rows_of([hit.chunk.id for hit in hits]) == list(range(k))
    searcher.close()


def test_opened_again_identical(retriever: Retriever, tmp_path: Path) -> None:
    first = find(retriever, topic_corpus(tmp_path, EMBEDDER))
    assert first
    assert find(retriever, topic_corpus(tmp_path, EMBEDDER)) == first


def test_close_twice(retriever: Retriever, tmp_path: Path) -> None:
    searcher = retriever.open(topic_corpus(tmp_path, EMBEDDER))
    searcher.close()
    searcher.close()


def test_an_empty_corpus_has_no_hits(retriever: Retriever, tmp_path: Path) -> None:
    for embedder in (EMBEDDER, None):
        corpus = MemoryCorpus(tmp_path, embedder=embedder)
        assert find(retriever, corpus) == []


def test_a_filter_binds_inside_the_query(retriever: Retriever, tmp_path: Path) -> None:
    corpus = many(tmp_path, 120)
    searcher = retriever.open(corpus)
    question = "copper price of the mill"
    best = [corpus.document(hit.chunk.doc_id).meta["number"] for hit in searcher.search(question, 50)]
    assert len(set(best)) == 50
    rest = searcher.search(question, 20, {"not": {"meta.number": {"in": best}}})
    assert len(rest) == 20
    assert not {corpus.document(hit.chunk.doc_id).meta["number"] for hit in rest} & set(best)
    odd = searcher.search(question, 100, {"source": "odd.md"})
    assert len(odd) == 60
    assert {corpus.document(hit.chunk.doc_id).source for hit in odd} == {"odd.md"}
    one = searcher.search(question, 5, {"meta.number": 77})
    assert ["number77" in hit.chunk.text for hit in one] == [True]
    assert searcher.search(question, 5, {"source": "absent.md"}) == []
    assert [hit.rank for hit in odd] == list(range(1, 61))
    searcher.close()


def test_an_unknown_filter_field_is_an_error(opened: tuple[MemoryCorpus, Searcher]) -> None:
    with pytest.raises(ConfigError, match="colour"):
        opened[1].search(QUESTION, 5, {"colour": "red"})


def test_a_new_generation_is_seen(retriever: Retriever, tmp_path: Path) -> None:
    """Rows 0.. of the second generation belong to other chunks than before."""
    old, new = topic_documents(["bees.md", "bread.md"]), topic_documents(["volcano.md", "bread.md"])
    assert find(retriever, topic_corpus(tmp_path, EMBEDDER, old))
    changed = retriever.open(topic_corpus(tmp_path, EMBEDDER, new, generation=2))
    fresh = retriever.open(topic_corpus(tmp_path / "fresh", EMBEDDER, new))
    kept = {chunk.id for document in new for chunk in chunked(document)}
    for question in (QUESTION, "Which mudflow follows river valleys?", "open crumb of a wet dough"):
        hits = seen(changed.search(question, 10))
        assert hits == seen(fresh.search(question, 10))
        assert {chunk_id for chunk_id, *_ in hits} <= kept
    changed.close()
    fresh.close()


@pytest.mark.parametrize("damage", ["garbage", pytest.param("half", marks=pytest.mark.slow), "empty"])
def test_damaged_files_are_made_anew(retriever: Retriever, tmp_path: Path, damage: str) -> None:
    first = find(retriever, many(tmp_path, 40), "copper")
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        data = path.read_bytes()
        path.write_bytes({"garbage": bytes(len(data)), "half": data[: len(data) // 2], "empty": b""}[damage])
    assert find(retriever, many(tmp_path, 40), "copper") == first


def test_a_read_only_view_is_searched_and_left_alone(retriever: Retriever, tmp_path: Path) -> None:
    expected = find(retriever, topic_corpus(tmp_path / "a", EMBEDDER))
    (tmp_path / "b").mkdir()
    assert find(retriever, topic_corpus(tmp_path / "b", EMBEDDER, writable=False)) == expected
    assert list((tmp_path / "b").iterdir()) == []


def test_vectors_are_declared(retriever: Retriever, tmp_path: Path) -> None:
    """A retriever that says it reads no vectors works without them, any other says what is wrong."""
    corpus = topic_corpus(tmp_path, None)
    if retriever.uses_vectors:
        with pytest.raises(ConfigError, match="embedder"):
            retriever.open(corpus)
    else:
        assert find(retriever, corpus)
    assert retriever.k >= 1
