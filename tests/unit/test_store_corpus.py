"""The corpus: one snapshot, rows in reading order, filters inside the query."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest

from rag.errors import ConfigError, IndexDamagedError
from rag.protocols import Corpus
from rag.store import Store
from rag.store.schema import FILE_NAME
from tests.crash.entries import FINGERPRINT, fill, make_entry, vector


@pytest.fixture
def index(tmp_path: Path) -> Path:
    texts = ["apples and pears grow " * 9, "pears only here " * 9, "running runners ran " * 9]
    fill(
        tmp_path, *(make_entry(text, f"{at}.md", title=f"Title {at}", meta={"n": at}) for at, text in enumerate(texts))
    )
    return tmp_path


def test_rows_follow_the_reading_order(index: Path) -> None:
    with Store.create_or_open(index) as store:
        store.commit(entries=[make_entry("a new version of the first file " * 5, "0.md")])
        with store.corpus() as corpus:
            assert isinstance(corpus, Corpus)
            chunks = corpus.chunks(corpus.rows())
            places = [(chunk.doc_id, chunk.span) for chunk in chunks]
            order = [info.id for info in store.documents()]
            assert places == sorted(places, key=lambda place: (order.index(place[0]), place[1]))
            assert len(corpus) == len(chunks)
            assert corpus.rows_of([chunk.id for chunk in reversed(chunks)]) == corpus.rows()[::-1].tolist()


def test_a_snapshot_does_not_move_while_a_writer_commits(index: Path) -> None:
    with Store.open(index) as reader, reader.corpus() as corpus, Store.create_or_open(index) as writer:
        before = (
            corpus.generation,
            corpus.rows().tolist(),
            corpus.lexical(["pears"], 99),
            corpus.chunks(corpus.rows()),
        )
        writer.commit(removed=["/docs/0.md"], entries=[make_entry("pears " * 50, "new.md")])
        after = (corpus.generation, corpus.rows().tolist(), corpus.lexical(["pears"], 99), corpus.chunks(corpus.rows()))
        assert after == before
        assert len(corpus.vectors()[0]) == len(corpus)
        with reader.corpus() as fresh:
            assert fresh.generation == corpus.generation + 1
            assert fresh.lexical(["pears"], 99) != corpus.lexical(["pears"], 99)
        fresh_id = make_entry("pears " * 50, "new.md").chunks[0].id
        with pytest.raises(KeyError):
            corpus.rows_of([fresh_id])


def test_a_reader_sees_nothing_of_an_unfinished_commit(index: Path) -> None:
    with Store.create_or_open(index) as writer, Store.open(index) as reader:
        before = reader.stats()["chunks"]
        with writer._db.writing():
            writer._db.run("DELETE FROM chunks WHERE document = 1")
            assert reader.stats()["chunks"] == before
            with reader.corpus() as corpus:
                assert len(corpus) == before
        assert reader.stats()["chunks"] < before


def test_vectors_of_chosen_rows_in_their_order(index: Path) -> None:
    with Store.open(index) as store, store.corpus() as corpus:
        rows = corpus.rows()
        wanted = [int(rows[3]), int(rows[0]), int(rows[3])]
        found, matrix = corpus.vectors(wanted)
        assert found.tolist() == wanted
        assert matrix.dtype == np.float32
        assert np.array_equal(matrix, np.stack([vector(chunk.key) for chunk in corpus.chunks(wanted)]))
        assert corpus.vectors([])[1].shape == (0, 4)
        for unknown in (0, 10_000):
            with pytest.raises(KeyError):
                corpus.vectors([int(rows[0]), unknown])
            with pytest.raises(KeyError):
                corpus.chunks([unknown])


def test_an_index_without_vectors_says_so(tmp_path: Path) -> None:
    with Store.create_or_open(tmp_path) as store:
        store.commit(entries=[make_entry("text", fingerprint=None)])
        with store.corpus() as corpus, pytest.raises(ConfigError, match="without an embedder"):
            corpus.vectors()
        store.set_manifest({"fingerprint": FINGERPRINT})
        with store.corpus() as corpus, pytest.raises(IndexDamagedError, match="no vector"):
            corpus.vectors()


def test_an_empty_index(tmp_path: Path) -> None:
    fill(tmp_path)
    with Store.open(tmp_path) as store, store.corpus() as corpus:
        assert len(corpus) == 0
        assert corpus.rows().tolist() == []
        assert corpus.lexical(["word"], 5) == []
        rows, matrix = corpus.vectors()
        assert rows.shape == (0,)
        assert matrix.shape[0] == 0


def test_lexical_search(index: Path) -> None:
    with Store.open(index) as store, store.corpus() as corpus:
        hits = corpus.lexical(["apples", "pears"], 99)
        scores = [score for _, score in hits]
        assert scores == sorted(scores, reverse=True)
        assert min(scores) > 0
        assert corpus.lexical(["apples", "pears"], 2) == hits[:2]
        assert {chunk.doc_id for chunk in corpus.chunks([row for row, _ in corpus.lexical(["runs"], 99)])} == {
            store.find_document("2.md").id
        }, "porter stemming joins runs and running"
        assert corpus.lexical(["title"], 99), "titles are searched too"
        only = corpus.lexical(["apples", "pears"], 99, {"source": "1.md"})
        assert {row for row, _ in only} == set(corpus.rows({"source": "1.md"}).tolist())
        for nothing in ([], ["\x00"], ["_"], ["zzz"], ['"'], ["\ud800"], ["NEAR(", "*", "^"]):
            assert corpus.lexical(nothing, 5) == [], nothing
        assert corpus.lexical(["pears"], 0) == []
        assert corpus.lexical(["AND", "pears", 'x" OR "y', "apples*"], 99), "operators are words like any other"
        assert corpus.lexical([f"word{at}" for at in range(5000)] + ["pears"], 3)


@pytest.mark.parametrize(
    "text", ["北京市と東京都の丸の内", "Ünïcödé Straße cafe\u0301 ﬁn", "ab_cd x1y2 foo-bar", "مرحبا بالعالم"]
)
def test_own_words_find_a_chunk_first(index: Path, text: str) -> None:
    with Store.create_or_open(index) as store:
        entry = make_entry(text, "own.md")
        store.commit(entries=[entry])
        with store.corpus() as corpus:
            row, _ = corpus.lexical(text.split(), 3)[0]
            assert corpus.chunks([row]) == [entry.chunks[0]]


def test_neighbours_and_documents(index: Path) -> None:
    with Store.open(index) as store, store.corpus() as corpus:
        document = store.find_document("1.md")
        chunks = store.chunks_of(document.id)
        assert corpus.document(document.id) == document
        assert corpus.neighbours(chunks[1].id, 1, 2) == [chunks[0], *chunks[2:4]]
        assert corpus.neighbours(chunks[0].id, 5, 0) == []
        assert corpus.neighbours(chunks[-1].id, 99, 99) == chunks[:-1]
        for call in (
            lambda: corpus.neighbours("x", 1, 1),
            lambda: corpus.document("x"),
            lambda: corpus.rows_of(["x:1"]),
        ):
            with pytest.raises(KeyError):
                call()


def test_a_chunk_of_a_long_document_is_read_without_the_rest(tmp_path: Path) -> None:
    fill(tmp_path, make_entry("words in a long document " * 20_000, window=500))
    with Store.open(tmp_path) as store, store.corpus() as corpus:
        read: list[int] = []
        rows_of_db = corpus._db.rows

        def counting(sql, values=()):
            rows = rows_of_db(sql, values)
            read.extend(len(value) for row in rows for value in row if isinstance(value, str))
            return rows

        corpus._db.rows = counting  # type: ignore[method-assign]
        corpus.chunks([int(corpus.rows()[-1])])
        assert sum(read) < 20_000


def test_threads_share_a_corpus(index: Path) -> None:
    with Store.open(index) as store, store.corpus() as corpus:
        expected = corpus.chunks(corpus.rows())
        wrong: list[object] = []

        def work() -> None:
            for _ in range(30):
                if corpus.chunks(corpus.rows()) != expected or not corpus.lexical(["pears"], 3):
                    wrong.append(1)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_spoiled_text_is_refused_not_served(tmp_path: Path) -> None:
    fill(
        tmp_path,
        make_entry("The limit is 500 euros for each travel of a day. " * 3, "a.md"),
        make_entry("b " * 60, "b.md"),
    )
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    with connection:
        connection.execute("UPDATE document_texts SET text = replace(text, '500', '900') WHERE document = 1")
    connection.close()
    with Store.open(tmp_path) as store, store.corpus() as corpus:
        spoiled, sound = (info.id for info in store.documents())
        for read in (store.document, store.chunks_of, corpus.document):
            with pytest.raises(IndexDamagedError, match="rag repair"):
                read(spoiled)
        with pytest.raises(IndexDamagedError, match=spoiled):
            corpus.chunks(corpus.rows())
        assert store.document(sound).id == sound
        assert store.chunks_of(sound)
