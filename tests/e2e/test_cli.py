"""The command as people and scripts use it: JSON contracts, exit codes, one clear line for every mistake."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import FILES, Run

Rag = Callable[..., Run]


def ingest(rag: Rag, *more: str) -> Run:
    return rag("ingest", "docs", "--index", "idx", "--json", *more)


def test_ingest_then_again_changes_nothing(rag: Rag, home: Path) -> None:
    first = ingest(rag)
    assert first.code == 0, first.err
    report = first.json
    assert {"documents", "chunks", "skipped", "failed", "seconds"} <= report.keys()
    assert report["documents"] == len(FILES)
    assert report["skipped"] == 0
    before = dump(home / "idx")
    second = ingest(rag).json
    assert (second["documents"], second["embedded"], second["skipped"]) == (0, 0, len(FILES))
    assert dump(home / "idx") == before


def test_a_changed_file_replaces_its_document_and_a_deleted_one_goes(rag: Rag, home: Path) -> None:
    ingest(rag)
    (home / "docs" / "handbook.md").write_text("# Handbook\n\nTravel is approved by the board.\n")
    (home / "docs" / "prices.csv").unlink()
    assert ingest(rag).json["documents"] == 1
    assert rag("search", "Alpha balance", "--index", "idx", "--json").json["hits"][0]["source"] == "docs/prices.csv"
    assert ingest(rag, "--delete-missing").json["removed"] == 1
    hits = rag("search", "Alpha balance travel approved", "--index", "idx", "--json").json["hits"]
    assert "docs/prices.csv" not in [hit["source"] for hit in hits]
    assert not [hit for hit in hits if "chief financial officer" in hit["text"]]
    assert rag("verify", "--index", "idx", "--json").json["ok"]


def test_citations_open_the_exact_span(rag: Rag) -> None:
    ingest(rag)
    answer = rag("ask", "Who approves travel above 5,000 EUR?", "--index", "idx", "--json").json
    assert {"answer", "supported", "citations", "bubble", "context", "stats", "trace"} <= answer.keys()
    assert answer["citations"]
    assert "chief financial officer" in answer["answer"]
    for citation in answer["citations"]:
        shown = rag("show", citation["doc_id"], "--index", "idx", "--json").json
        assert shown["text"][citation["start"] : citation["end"]] == citation["text"]
        assert shown["source"] == citation["source"]
        place = f"{citation['doc_id']}:{citation['start']}-{citation['end']}"
        assert rag("show", place, "--index", "idx", "--json").json["span"]["text"] == citation["text"]


def test_no_answer_is_said_plainly(rag: Rag) -> None:
    ingest(rag)
    answer = rag("ask", "Quantum chromodynamics lattice spacing?", "--index", "idx", "--json").json
    assert answer["citations"] == []
    assert not any(answer["supported"])
    assert "ot found" in answer["answer"]


def test_every_hit_is_a_slice_and_filters_bind(rag: Rag) -> None:
    ingest(rag)
    result = rag("search", "holiday display invoice", "-k", "3", "--index", "idx", "--json").json
    assert len(result["hits"]) == 3
    for hit in result["hits"]:
        assert {"chunk_id", "doc_id", "source", "start", "end", "text", "score", "rank", "parts"} <= hit.keys()
        text = rag("show", hit["doc_id"], "--index", "idx", "--json").json["text"]
        assert text[hit["start"] : hit["end"]] == hit["text"]
    only = rag("search", "holiday", "--index", "idx", "--json", "--where", '{"source": "docs/prices.csv"}').json
    assert {hit["source"] for hit in only["hits"]} == {"docs/prices.csv"}


def test_queries_give_one_line_each_in_order(rag: Rag, home: Path) -> None:
    ingest(rag)
    rows = [{"query_id": f"q{n}", "text": text} for n, text in enumerate(["travel", "holiday", "invoice"])]
    (home / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    for verb, key in (("search", "hits"), ("ask", "answer")):
        lines = rag(verb, "--queries", "q.jsonl", "--index", "idx").out.splitlines()
        assert [json.loads(line)["query_id"] for line in lines] == ["q0", "q1", "q2"]
        assert all(key in json.loads(line) for line in lines)
    (home / "bad.jsonl").write_text('{"query_id": "q0"}\n')
    bad = rag("search", "--queries", "bad.jsonl", "--index", "idx")
    assert (bad.code, "line 1" in bad.err) == (2, True)


def test_chunk_agrees_with_show(rag: Rag) -> None:
    ingest(rag)
    report = rag("chunk", "docs/handbook.md", "--chunker", "sentence", "--set", "max_tokens=20", "--json").json
    assert {"document", "chunks", "metrics", "decision"} <= report.keys()
    shown = rag("show", report["document"]["id"], "--index", "idx", "--json").json
    assert "".join(chunk["text"] for chunk in report["chunks"]) == shown["text"]
    assert all(shown["text"][chunk["start"] : chunk["end"]] == chunk["text"] for chunk in report["chunks"])
    assert all(chunk["token_count"] <= 20 for chunk in report["chunks"])


def test_a_source_that_looks_like_a_span_is_shown_whole(rag: Rag, home: Path) -> None:
    (home / "docs" / "a-b:c.txt").write_text("An odd name.\n")
    ingest(rag)
    shown = rag("show", "docs/a-b:c.txt", "--index", "idx", "--json").json
    assert shown["text"] == "An odd name.\n"
    assert "span" not in shown


def test_explain_replays_the_run(rag: Rag) -> None:
    ingest(rag)
    asked = rag("ask", "Who approves travel?", "--index", "idx", "--json").json
    run = rag("explain", asked["run_id"], "--index", "idx", "--json").json
    assert run["answer"] == asked["answer"]
    assert run["bubble"]["decisions"] == asked["bubble"]["decisions"]
    assert rag("explain", "last", "--index", "idx", "--json").json["run_id"] == asked["run_id"]
    assert rag("explain", "no-such-run", "--index", "idx").code in (1, 2)


def test_json_of_the_other_verbs(rag: Rag) -> None:
    ingest(rag)
    assert {"documents", "chunks", "embedded", "bytes"} <= rag("stats", "--index", "idx", "--json").json.keys()
    assert {"ok", "checked", "problems"} <= rag("verify", "--index", "idx", "--json").json.keys()
    names = {plugin["name"] for plugin in rag("plugins", "chunker", "--json").json["plugins"]}
    assert {"fixed", "recursive", "sentence", "markdown", "langchain", "parent-child"} <= names
    assert rag("config", "show", "--json").json["config"]["embedder"] == "hashing"
    assert json.loads(rag("config", "schema").out)["properties"]
    assert rag("doctor", "--index", "idx", "--json").json["ok"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["search", "x", "--index", "nowhere"], 2, "rag ingest"),
        (["search", "--index", "idx"], 2, "one question"),
        (["search", " ", "--index", "idx"], 2, "empty"),
        (["ask", "x", "--index", "idx", "--where", "{bad"], 2, "JSON"),
        (["ask", "x", "--index", "idx", "--where", '{"colour": "red"}'], 3, "colour"),
        (["show", "no-such-document", "--index", "idx"], 2, "no-such-document"),
        (["chunk", "docs/handbook.md", "--chunker", "recursiv"], 3, "did you mean 'recursive'"),
        (["chunk", "docs/handbook.md", "--set", "max_tokns=3"], 3, "did you mean 'max_tokens'"),
        (["ingest", "docs", "--index", "idx", "--config", "absent.yaml"], 3, "absent.yaml"),
        (["ingest", "nothing-here", "--index", "idx"], 4, "nothing-here"),
        (["plugins", "chunkr"], 3, "did you mean 'chunker'"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_mistakes_get_one_clear_line_and_their_code(rag: Rag, arguments: list[str], code: int, words: str) -> None:
    ingest(rag)
    done = rag(*arguments)
    assert done.code == code, done.err
    assert words in done.err
    assert "Traceback" not in done.err


def test_wrong_config_key_and_missing_model_lose_nothing(rag: Rag, home: Path) -> None:
    ingest(rag)
    before = dump(home / "idx")
    (home / "wrong.yaml").write_text("chunkr: fixed\n")
    wrong = rag("ingest", "docs", "--index", "idx", "--config", "wrong.yaml")
    assert (wrong.code, "did you mean 'chunker'" in wrong.err) == (3, True)
    (home / "model.yaml").write_text("embedder: {use: minilm, model: ./no-such-model}\n")
    missing = rag("ingest", "docs", "--index", "other", "--config", "model.yaml")
    assert (missing.code, "no-such-model" in missing.err) == (6, True)
    assert dump(home / "idx") == before


def test_unreadable_and_empty_files_are_listed_and_the_rest_goes_in(rag: Rag, home: Path) -> None:
    (home / "docs" / "empty.txt").write_bytes(b"")
    (home / "docs" / "broken.pdf").write_bytes(b"%PDF-1.7 this is no pdf")
    done = ingest(rag)
    assert done.code == 4
    assert {failure["source"] for failure in done.json["failed"]} == {"docs/empty.txt", "docs/broken.pdf"}
    assert all(failure["error"] for failure in done.json["failed"])
    assert done.json["documents"] == len(FILES)
    assert "Traceback" not in done.err


def test_a_file_that_turns_bad_keeps_its_last_good_version(rag: Rag, home: Path) -> None:
    ingest(rag)
    (home / "docs" / "handbook.md").write_bytes(b"")
    done = ingest(rag)
    assert done.code == 4
    assert [failure["source"] for failure in done.json["failed"]] == ["docs/handbook.md"]
    hits = rag("search", "chief financial officer", "--index", "idx", "--json").json["hits"]
    assert hits[0]["source"] == "docs/handbook.md"
    assert rag("verify", "--index", "idx").code == 0


def test_a_locked_index_names_the_owner(rag: Rag, home: Path) -> None:
    from rag.store.store import Store

    ingest(rag)
    with Store.create_or_open(home / "idx"):
        locked = ingest(rag)
        assert locked.code == 7
        assert str(os.getpid()) in locked.err
        assert rag("search", "travel", "--index", "idx", "--json").json["hits"]


def test_damage_and_foreign_versions_give_code_5(rag: Rag, home: Path) -> None:
    ingest(rag)
    database = home / "idx" / "index.sqlite"
    connection = sqlite3.connect(database)
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.execute(f"PRAGMA user_version = {version + 1}")
    connection.close()
    newer = rag("search", "travel", "--index", "idx")
    assert newer.code == 5
    assert "version" in newer.err
    database.write_bytes(b"not a database at all" * 100)
    for leftover in (home / "idx").glob("index.sqlite-*"):
        leftover.unlink()
    assert rag("search", "travel", "--index", "idx").code == 5
    assert rag("verify", "--index", "idx").code == 5


def test_another_embedder_is_refused_with_the_fix(rag: Rag, home: Path) -> None:
    ingest(rag)
    (home / "other.yaml").write_text("embedder: {use: hashing, buckets: 64}\nretriever: faiss-dense\n")
    for arguments in (["ingest", "docs"], ["search", "travel"]):
        done = rag(*arguments, "--index", "idx", "--config", "other.yaml")
        assert done.code == 3
        assert "hashing-512" in done.err


def test_the_real_process_speaks_on_the_right_streams(rag_process: Rag) -> None:
    done = rag_process("ingest", "docs", "--index", "idx")
    assert (done.code, done.out) == (0, "")
    assert "4 documents" in done.err
    found = rag_process("search", "holiday", "--index", "idx", "--json")
    assert (found.code, found.err) == (0, "")
    assert found.json["hits"]
    wrong = rag_process("chunk", "docs/handbook.md", "--chunker", "recursiv")
    assert (wrong.code, wrong.err.count("\n")) == (3, 1)
    shown = rag_process("--help")
    for verb in ("demo", "ingest", "chunk", "search", "ask", "show", "explain", "verify", "doctor", "stats", "plugins"):
        assert verb in shown.out
    assert "Exit codes" in shown.out


def dump(index: Path) -> list[str]:
    """Every row of every real table, run traces excepted."""
    connection = sqlite3.connect(index / "index.sqlite")
    try:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'runs%'")
        tables = sorted(name for (name,) in names.fetchall())
        return [
            f"{table} {row!r}" for table in tables for row in connection.execute(f"SELECT * FROM '{table}'").fetchall()
        ]
    finally:
        connection.close()
