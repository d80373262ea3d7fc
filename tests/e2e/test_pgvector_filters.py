"""Filters inside the queries of pgvector: they mean what the store means by them, or the store answers them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from rag import Pipeline, PipelineConfig
from rag.embedders.hashing import HashingEmbedder
from rag.protocols import Corpus
from rag.store.store import Store
from retrievers import _pg_search
from retrievers._dense import exact_best
from retrievers._pg_filter import compile_filter
from retrievers.pgvector import PgvectorRetriever

WHERE: list[dict[str, Any]] = [
    {},
    {"source": "a.md"},
    {"source": {"ne": "a.md"}},
    {"source": {"in": ["a.md", "ä.md"]}},
    {"source": {"in": []}},
    {"source": {"contains": ".m"}, "title": {"exists": True}},
    {"source": {"contains": ""}},
    {"source": {"gt": "a.md"}},
    {"source": {"le": "b.md"}},
    {"source": {"contains": "%"}},
    {"title": {"ge": "Z"}},
    {"not": {"or": [{"source": "a.md"}, {"section": "Two"}]}},
    {"section": "Two"},
    {"section": {"ne": "Two"}},
    {"section": {"contains": "o"}},
    {"section": {"exists": False}},
    {"section": {"in": ["One", "Two"]}},
    {"section": {"lt": "P"}},
    {"and": []},
    {"or": []},
    {"or": [{"and": [{"source": "a.md"}, {"section": "One"}]}, {"source": "b%.md"}]},
    {"source": "x' OR '1'='1"},
]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    """A real store: headings, umlauts, a percent sign."""
    folder = tmp_path_factory.mktemp("stored") / "docs"
    folder.mkdir()
    text = "# {0}\n\n## One\n\nBees of {0} keep warm.\n\n## Two\n\nBread of {0} is sour.\n\nEnd of {0}.\n"
    for name in ("a.md", "b%.md", "ä.md", "Z.md"):
        (folder / name).write_text(text.format(name))
    (folder / "plain.txt").write_text("No heading at all.\n")
    config = {
        "embedder": "hashing",
        "chunker": {"use": "markdown"},
        "retriever": "faiss-dense",
        "generator": "extractive",
    }
    Pipeline(PipelineConfig.from_dict(config)).index(folder, into=folder.parent / "idx").close()
    with Store.open(folder.parent / "idx") as store, store.corpus() as corpus:
        yield corpus


def _only_given(stored: Corpus) -> Any:
    """Scores what PostgreSQL gave (a list) and refuses what the store would have found (an array)."""

    def score(corpus: Corpus, rows: Any, vector: Any, k: int) -> Any:
        assert isinstance(rows, list), "PostgreSQL was not asked"
        return exact_best(stored, rows, vector, k)

    return score


@pytest.mark.parametrize("where", WHERE, ids=repr)
def test_filters_mean_what_the_store_means(
    stored: Corpus, where: dict[str, Any], postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pg_search, "exact_best", _only_given(stored))
    assert compile_filter(where) is not None
    retriever = PgvectorRetriever(embedder=HashingEmbedder(), dsn=postgres)
    with closing(retriever.open(stored)) as searcher:
        found = {hit.chunk.id for hit in searcher.search("warm bread", 100, where or None)}
    assert found == {chunk.id for chunk in stored.chunks(stored.rows(where).tolist())}


@pytest.mark.parametrize(
    "where",
    [
        {"meta.year": 2020},
        {"source": 5},
        {"source": "a\0"},
        {"colour": "red"},
        {"source": {"like": "a"}},
        {"source": {}},
        {"source": {"in": "a"}},
        {"source": {"exists": 1}},
        {"not": [{}]},
        {"or": "x"},
    ],
    ids=repr,
)
def test_other_filters_are_the_stores(where: dict[str, Any]) -> None:
    """Metadata may change while the chunks stay; the words of an error are the store's."""
    assert compile_filter(where) is None
