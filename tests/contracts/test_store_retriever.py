"""The conformance suite of retrievers that keep chunks in a store of their own beside the index.

What every retriever promises is in test_retriever.py; this is what such a store must do besides: the hits of exact
search over the index, whatever the filter, the change or the death, and an `audit` that tells the truth. A new store is
one line in STORES.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag import Pipeline, PipelineConfig
from rag.embedders.hashing import HashingEmbedder
from rag.protocols import Corpus, Filter, Retriever
from rag.server.auth import Caller
from rag.store.store import Store
from rag.transfer import StoreRetriever
from rag.types import Document
from tests.corpora import TOPICS, MemoryCorpus, plugins_of, topic_corpus, topic_documents

EMBEDDER = HashingEmbedder()
PLUGINS = plugins_of("retrievers")
STORES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "faiss-dense": ("faiss-dense", {}),
    "chroma-dense": ("chroma-dense", {}),
    "chroma-dense on a server": ("chroma-dense", {"host": "127.0.0.1"}),
    "pgvector": ("pgvector", {}),
    "pgvector with a graph": ("pgvector", {"index": "hnsw", "collection": "graph"}),
}
QUESTIONS = ("How warm does the brood nest of the bees stay?", "hotel rooms", "steel deck and oven steam")
WHERE: list[Filter] = [
    {"source": {"contains": "bees"}},
    {"source": {"ne": "docs/bread.md"}},
    {"not": {"source": {"in": ["docs/bees.md", "docs/travel.md"]}}},
    {"or": [{"source": "docs/bees.md"}, {"source": {"gt": "docs/travel.md"}}]},
    {"source": "absent"},
    {"meta.year": 2020},
    {"or": []},
]
DIES = """
import json, os, signal, sys
from pathlib import Path
from dataclasses import replace
from rag.embedders.hashing import HashingEmbedder
from rag.store.corpus import StoreCorpus
from rag.store.store import Store
from tests.corpora import plugins_of
name, options, directory, last = json.loads(sys.argv[1])
left = [last]
def deadly(real):
    def read(self, *given):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *given)
    return read
StoreCorpus.vectors, StoreCorpus.chunks = deadly(StoreCorpus.vectors), deadly(StoreCorpus.chunks)
retriever = replace(plugins_of("retrievers")[name](embedder=HashingEmbedder()), **options)
with Store.create_or_open(Path(directory)) as store, store.corpus() as corpus:
    retriever.open(corpus)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow) if name.endswith("server") else name for name in STORES]
)
def named(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    """Name and options of the retriever, its server running."""
    name, options = STORES[request.param]
    if name == "pgvector":
        monkeypatch.setenv("CHUNKWISE_PG_DSN", request.getfixturevalue("postgres"))
    return name, {**options, "port": request.getfixturevalue("chroma")} if "host" in options else options


@pytest.fixture
def retriever(named: tuple[str, dict[str, Any]]) -> Any:
    from dataclasses import replace

    return replace(PLUGINS[named[0]](embedder=EMBEDDER), **named[1])


@pytest.fixture
def library(tmp_path: Path) -> Library:
    made = Library(tmp_path)
    made.write(TOPICS)
    return made


class Library:
    """A folder of texts and a real index of it."""

    def __init__(self, folder: Path) -> None:
        self.docs, self.index = folder / "docs", folder / "idx"
        self.docs.mkdir()

    def write(self, texts: Mapping[str, str | None]) -> None:
        """Write or (None) delete files, and bring the index up to date."""
        for name, text in texts.items():
            path = self.docs / name
            path.unlink() if text is None else path.write_text(text, encoding="utf-8")
        slots = {"embedder": "hashing", "chunker": {"use": "fixed", "max_tokens": 20}, "retriever": "faiss-dense"}
        line = Pipeline(PipelineConfig.from_dict({**slots, "generator": "extractive"}))
        line.index(self.docs, into=self.index, delete_missing=True).close()

    def corpus(self) -> Iterator[Corpus]:
        with Store.create_or_open(self.index) as store, store.corpus() as corpus:
            yield corpus


def truth(corpus: Corpus, question: str, k: int, where: Filter | None = None) -> list[tuple[str, float]]:
    """Exact search over the vectors of the index."""
    rows = corpus.rows(where)
    if not len(rows):
        return []
    matrix = corpus.vectors(rows.tolist())[1].astype(np.float64)
    scores = (matrix @ EMBEDDER.embed_question(question).astype(np.float64)).round(6)
    best = np.lexsort((rows, -scores))[:k]
    chunks = corpus.chunks(rows[best].tolist())
    return [(chunk.id, float(scores[at])) for at, chunk in zip(best, chunks, strict=True)]


def agree(retriever: Retriever, corpus: Corpus, where: Filter | None = None) -> None:
    """The hits of exact search, for few hits and for more than there are."""
    with closing(retriever.open(corpus)) as searcher:
        for question in QUESTIONS:
            for k in (1, 4, len(corpus) + 10):
                found = [(hit.chunk.id, hit.score) for hit in searcher.search(question, k, where)]
                assert found == truth(corpus, question, k, where)


def test_the_hits_of_exact_search(retriever: Retriever, library: Library) -> None:
    for corpus in library.corpus():
        agree(retriever, corpus)


def test_filters_bind_as_in_the_index(retriever: Retriever, library: Library) -> None:
    for corpus in library.corpus():
        for where in WHERE:
            agree(retriever, corpus, where)


def test_a_tenant_sees_its_own_and_nobody_sees_nothing(retriever: Retriever, library: Library) -> None:
    everything: list[Filter | None] = [None, {"source": {"exists": True}}, {"or": [{"source": {"ne": "x"}}]}]
    for corpus in library.corpus():
        with closing(retriever.open(corpus)) as searcher:
            for asked in everything:
                assert searcher.search(QUESTIONS[0], 100, Caller(tenant="nobody").within(asked)) == []
                own = Caller(tenant="bees", where={"source": {"contains": "bees"}}).within(asked)
                hits = searcher.search("hotel rooms in the oven", 100, own)
                assert {corpus.document(hit.chunk.doc_id).source for hit in hits} == {"docs/bees.md"}


def test_what_is_changed_added_or_deleted_shows_at_the_next_opening(retriever: Retriever, library: Library) -> None:
    changes: list[dict[str, str | None]] = [
        {"bees.md": None},
        {"bread.md": TOPICS["bread.md"].replace("oven", "kiln"), "new.md": "A kiln of clay bakes the bread of steel."},
        {"bees.md": TOPICS["bees.md"], "travel.md": None},
        dict.fromkeys(("bees.md", "bread.md", "bridges.md", "new.md", "volcano.md")),
        {"last.md": "Only hotel rooms are left."},
    ]
    for corpus in library.corpus():
        agree(retriever, corpus)
    for change in changes:
        library.write(change)
        for corpus in library.corpus():
            agree(retriever, corpus)


def test_opening_twice_keeps_every_chunk_once(retriever: Any, library: Library) -> None:
    assert isinstance(retriever, StoreRetriever)
    for corpus in library.corpus():
        for _ in range(3):
            retriever.open(corpus).close()
            assert retriever.audit(corpus) == (len(corpus), [])
            assert retriever.audit(corpus, vectors=False)[0] in (len(corpus), 0), "0: too few for a file"
            assert retriever.check(corpus) == []


@pytest.mark.parametrize("reads", [2, 3, 100])
def test_a_death_while_it_is_filled_leaves_nothing_wrong(
    retriever: Any, named: tuple[str, dict[str, Any]], library: Library, reads: int
) -> None:
    """Killed at a read of the index on the way to a new generation, or (100) when all is written and nothing closed."""
    for corpus in library.corpus():
        retriever.open(corpus).close()
    library.write({"bees.md": None, "bread.md": "Other bread, of rye and water.", "new.md": "Steel decks and hotels."})
    given = json.dumps([*named, str(library.index), reads])
    died = subprocess.run([sys.executable, "-c", DIES, given], capture_output=True, text=True, env=dict(os.environ))
    assert died.returncode == -signal.SIGKILL, died.stderr
    for corpus in library.corpus():
        agree(retriever, corpus)
        assert retriever.audit(corpus) == (len(corpus), [])


def test_odd_names_and_texts(retriever: Any, tmp_path: Path) -> None:
    long = "word " * 40_000
    texts = [
        "One\0two.",
        "🐝 ہیلو עולם e\u0301",
        "' \" \\ % _ ; DROP TABLE chunks; --",
        "\t\x7f\u2028.",
        f"{long}.",
        "x" * 9_000,
    ]
    names = ["a'b\"c.md", "日本/ß %_.md", "..\\..\\x.md", "e\u0301.md", "é.md", "n" * 300]
    documents = [Document(text=text, source=name) for text, name in zip(texts, names, strict=True)]
    corpus = topic_corpus(tmp_path, EMBEDDER, [*documents, *topic_documents()])
    agree(retriever, corpus)
    for name in names:
        agree(retriever, corpus, {"source": name})
    with closing(retriever.open(corpus)) as searcher:
        texts_found = {hit.chunk.text for hit in searcher.search("word", 1000)}
    assert texts_found == {chunk.text for chunk in corpus.chunks(range(len(corpus)))}
    assert retriever.audit(corpus) == (len(corpus), [])


def test_an_empty_index_and_its_first_document(retriever: Any, tmp_path: Path) -> None:
    empty = MemoryCorpus(tmp_path, embedder=EMBEDDER)
    agree(retriever, empty)
    agree(retriever, empty, {"source": "a.md"})
    assert retriever.audit(empty) == (0, [])
    agree(retriever, topic_corpus(tmp_path, EMBEDDER, [Document(text="One.", source="a.md")], generation=2))
    agree(retriever, MemoryCorpus(tmp_path, embedder=EMBEDDER, generation=3))
