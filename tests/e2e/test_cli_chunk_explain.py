"""`rag chunk --explain`, and the decision record that ingestion stores."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Run
from tests.texts import MARKDOWN, plain

Rag = Callable[..., Run]
LABELS = {"RC", "ICC", "DCC", "BI", "SC"}


@pytest.fixture
def book(home: Path) -> str:
    (home / "docs" / "book.md").write_text(MARKDOWN, encoding="utf-8")
    (home / "docs" / "plain.txt").write_text(plain(60), encoding="utf-8")
    return "docs/book.md"


def test_the_table_names_candidates_metrics_and_winner(rag: Rag, book: str) -> None:
    given = ("chunk", book, "--chunker", "metric-selected", "--set", "max_tokens=64", "--explain")
    shown, report = rag(*given), rag(*given, "--json").json
    assert shown.code == 0
    winner = report["decision"]["winner"]
    rows = {row["chunker"]: row for row in report["decision"]["candidates"]}
    marked = [line.split() for line in shown.err.splitlines() if line.startswith("*")]
    assert [line[1] for line in marked] == [winner]
    assert f"{rows[winner]['score']:.3f}" in marked[0]
    for word in (*LABELS, *rows, "tokens", report["decision"]["reason"]):
        assert word in shown.err
    assert "recursive" not in shown.out.split()  # the table is for people, on stderr
    assert rows[winner]["metrics"].items() <= report["metrics"].items()
    assert {"chunks", "mean_tokens", "min_tokens", "max_tokens"} <= report["metrics"].keys()
    assert report["metrics"]["chunks"] == len(report["chunks"]) == rows[winner]["chunks"]


@pytest.mark.parametrize("chunker", ["recursive", "cluster-semantic"])
def test_any_chunker_is_measured(rag: Rag, book: str, chunker: str) -> None:
    given = ("chunk", book, "--chunker", chunker, "--set", "max_tokens=64", "--json")
    told, bare = rag(*given, "--explain").json, rag(*given).json
    assert told["chunks"] == bare["chunks"]
    assert bare["decision"].items() <= told["decision"].items()
    assert bare["metrics"].items() <= told["metrics"].items()
    assert told["metrics"].keys() >= LABELS
    assert not LABELS & bare["metrics"].keys()
    assert [row["chunker"] for row in told["decision"]["candidates"]] == [chunker]


def test_an_empty_text_is_explained_too(rag: Rag, home: Path) -> None:
    (home / "docs" / "blank.txt").write_text("a", encoding="utf-8")
    assert rag("chunk", "docs/blank.txt", "--chunker", "metric-selected", "--explain").code == 0
    assert rag("chunk", "docs/blank.txt", "--chunker", "fixed", "--explain", "--json").json["metrics"]["chunks"] == 1


def stored(index: Path) -> list[tuple[object, ...]]:
    """What the index holds of every document and chunk, decisions and vectors included."""
    connection = sqlite3.connect(index / "index.sqlite")
    try:
        documents = "SELECT source, doc_id, decision FROM documents ORDER BY source"
        chunks = "SELECT * FROM chunks ORDER BY id"
        return [row for query in (documents, chunks) for row in connection.execute(query).fetchall()]
    finally:
        connection.close()


@pytest.mark.slow
def test_ingest_stores_the_decision_and_workers_change_nothing(rag_process: Rag, home: Path, book: str) -> None:
    config = (home / "rag.yaml").read_text() + "chunker: {use: metric-selected, max_tokens: 64}\n"
    (home / "rag.yaml").write_text(config)
    records = []
    for workers in ("1", "2"):
        done = rag_process("ingest", "docs", "--index", f"idx{workers}", "--workers", workers, "--json")
        assert done.code == 0, done.err
        records.append(stored(home / f"idx{workers}"))
    assert records[0] == records[1]
    decision = json.loads(next(str(row[2]) for row in records[0] if row[0] == "docs/book.md"))
    shown = rag_process("chunk", book, "--json").json
    assert decision == shown["decision"]
    assert decision["winner"] in {row["chunker"] for row in decision["candidates"]}
