"""Pruned full-text search finds what full search finds, and what a search asks of the database is bounded."""

from __future__ import annotations

import random
from typing import Any

import pytest

from rag.store import Store
from rag.store.corpus import StoreCorpus
from rag.store.lexical import LexicalIndex
from tests.crash.entries import fill, make_entry

WORDS = [f"w{rank}" for rank in range(300)]
WEIGHTS = [1 / rank for rank in range(1, 301)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory):
    """About 1,500 chunks of words with Zipf's frequencies, some chunks twice."""
    folder = tmp_path_factory.mktemp("zipf")
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, weights=WEIGHTS, k=400)) for _ in range(40)]
    fill(
        folder,
        *(make_entry(text, f"{at}.md", meta={"n": at}) for at, text in enumerate([*texts, *texts[:3]])),
    )
    with Store.open(folder) as store, store.corpus() as opened:
        yield opened


def questions(count: int) -> list[list[str]]:
    """Two frequent words, two of any kind, one rare."""
    draw = random.Random(1)
    return [
        list(dict.fromkeys([*draw.sample(WORDS[:8], 2), *draw.sample(WORDS, 2), draw.choice(WORDS[250:])]))
        for _ in range(count)
    ]


def indexes(corpus: StoreCorpus) -> tuple[LexicalIndex, LexicalIndex]:
    """(pruned, not pruned)"""
    return LexicalIndex(corpus._db, len(corpus), prune_from=0), LexicalIndex(corpus._db, len(corpus), prune_from=10**9)


@pytest.mark.parametrize("k", [1, 3, 10, 200])
def test_pruning_changes_no_hit(corpus: StoreCorpus, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag.store.lexical._RARE", 0.03)
    pruned, full = indexes(corpus)
    optional = 0
    for words in questions(60):
        assert pruned.search(words, k, "", ()) == full.search(words, k, "", ())
        where = ("SELECT id FROM chunks WHERE id % ? = 0", (3,))
        assert pruned.search(words, k, *where) == full.search(words, k, *where)
        optional += len(pruned._optional(words, k, "1", ()))
    assert optional > 20 or k > 3, "otherwise nothing was tested"


def test_words_that_are_all_frequent_or_all_rare_or_unknown(corpus: StoreCorpus) -> None:
    pruned, full = indexes(corpus)
    for words in (["w0", "w1"], ["w299"], ["nothing"], ["w0", "nothing"], ["w0", "w299", "nothing"]):
        assert pruned.search(words, 5, "", ()) == full.search(words, 5, "", ())


def test_a_word_is_counted_once_a_view(corpus: StoreCorpus, asked: list[str]) -> None:
    pruned, _ = indexes(corpus)
    pruned.search(["w0", "w1", "w250"], 3, "", ())
    first = len(asked)
    asked.clear()
    pruned.search(["w0", "w1", "w250"], 3, "", ())
    assert len(asked) == first - 3 <= 2


@pytest.fixture
def asked(corpus: StoreCorpus, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement that the corpus runs."""
    log: list[str] = []
    real = corpus._db.rows

    def rows(sql: str, values: Any = ()) -> Any:
        log.append(sql)
        return real(sql, values)

    def one(sql: str, values: Any = ()) -> Any:
        found = rows(sql, values)
        return found[0] if found else None

    monkeypatch.setattr(corpus._db, "rows", rows)
    monkeypatch.setattr(corpus._db, "one", one)
    return log


def test_rows_of_many_ids_is_one_query(corpus: StoreCorpus, asked: list[str]) -> None:
    rows = corpus.rows().tolist()[::7][:120]
    ids = [chunk.id for chunk in corpus.chunks(rows)]
    asked.clear()
    assert corpus.rows_of([*ids, *ids[:3]]) == [*rows, *rows[:3]]
    assert len(asked) == 1
    for unknown in ("nonsense", f"{ids[0].partition(':')[0]}:0-1", "0000000000000000:0-10"):
        with pytest.raises(KeyError, match=unknown):
            corpus.rows_of([ids[0], unknown])
    assert corpus.rows_of([]) == []


def test_a_filter_on_documents_asks_documents(corpus: StoreCorpus, asked: list[str]) -> None:
    plans = {}
    for name, where in {
        "source": {"source": "3.md"},
        "nested": {"or": [{"not": {"title": "x"}}, {"meta.n": {"ge": 30}}]},
        "section": {"and": [{"source": "3.md"}, {"section": "x"}]},
    }.items():
        asked.clear()
        corpus.rows(where)
        [sql] = asked
        values = [None] * sql.count("?")
        plans[name] = [line for *_, line in corpus._db._connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
    assert any("documents_source" in line for line in plans["source"]), plans["source"]
    assert plans["nested"][0].startswith("SCAN d"), plans["nested"]
    assert "sqlite_autoindex_chunks" in "".join(plans["nested"])
    assert len(corpus.rows({"section": "x"})) == 0
    assert len(corpus.rows({"source": "3.md"})) > 10


def test_vectors_in_order_are_not_copied_again(corpus: StoreCorpus) -> None:
    rows = corpus.rows().tolist()
    ordered, shuffled = rows[5:50], [rows[9], rows[7], rows[9]]
    assert corpus.vectors(ordered)[0].tolist() == ordered
    assert corpus.vectors(shuffled)[0].tolist() == shuffled
    assert (corpus.vectors(ordered)[1][4] == corpus.vectors(shuffled)[1][0]).all()
