"""`rag explain` and `rag ask --trace`: every line of the ledger, totals, replay."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rag.cli._ledger import ledger_lines
from tests.e2e.conftest import CONFIG, Run

Rag = Callable[..., Run]
BUBBLE = CONFIG + "selector: {use: verified, selector: {use: bubble, budget: 30}}\n"


@pytest.fixture
def asked(rag: Rag, home: Path) -> dict[str, Any]:
    (home / "rag.yaml").write_text(BUBBLE)
    assert rag("ingest", "docs", "--index", "idx", "-q").code == 0
    run: dict[str, Any] = rag("ask", "Who approves travel above 5,000 EUR?", "--index", "idx", "--json").json
    return run


def test_json_has_every_candidate_with_its_scores(rag: Rag, asked: dict[str, Any]) -> None:
    told = rag("explain", "--json", "--index", "idx").json
    lines = told["ledger"]
    assert len(lines) == len(told["bubble"]["decisions"]) > 3
    assert {one["chunk_id"] for one in told["candidates"]} <= {line["chunk_id"] for line in lines}
    first = next(line for line in lines if line["taken"])
    assert first["source"] == "docs/handbook.md"
    assert (first["rank"], first["retriever"]) == (1, "hybrid")
    assert first["span"] == [first["start"], first["end"]]
    assert {"bm25", "faiss-dense"} <= first["retrieval"].keys()
    assert {"sentence", "bm25"} <= first["parts"].keys()
    shown = rag("show", f"{first['doc_id']}:{first['start']}-{first['end']}", "--index", "idx", "--json").json
    assert (shown["span"]["start"], shown["span"]["end"]) == (first["start"], first["end"])
    assert shown["span"]["text"].strip() in told["context"]["pieces"][0]["text"]
    sums = told["totals"]
    assert sums["tokens"] == asked["bubble"]["token_count"] <= sums["budget"] == 30
    assert sum(sums["taken"].values()) + sum(sums["skipped"].values()) == sums["lines"] == len(lines)


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_lines_are_no_wider_than_the_terminal(rag: Rag, asked: dict[str, Any], width: int) -> None:
    told = rag("explain", "--json", "--index", "idx").json
    for every in (False, True):
        lines = [text for text, _ in ledger_lines(told, width, every=every)]
        assert max(map(len, lines)) <= max(width, 80), "the place that `rag show` opens is never cut"
        if width >= 80:
            assert max(map(len, lines)) <= width


def test_kept_come_first_and_skipped_are_grouped(rag: Rag, asked: dict[str, Any]) -> None:
    few, every = (rag("explain", *more, "--index", "idx") for more in ((), ("--all",)))
    assert few.code == every.code == 0
    assert "ledger: " in few.err
    assert few.err.index("kept: ") < few.err.index("skip-budget: ")
    told = rag("explain", "--json", "--index", "idx").json
    places = {f"{line['doc_id']}:{line['start']}-{line['end']}" for line in told["ledger"]}
    assert {place for place in places if place in every.err} == places
    assert sum(place in few.err for place in places) < len(places)
    assert re.search(r"and \d+ more \(--all shows them\)", few.err)
    for line in told["ledger"]:
        assert line["action"] in few.err


def test_the_trace_of_an_answer_is_that_of_its_run(rag: Rag, asked: dict[str, Any]) -> None:
    traced = rag("ask", asked["question"], "--trace", "--index", "idx")
    explained = rag("explain", "--index", "idx")
    assert traced.err[traced.err.index("ledger: ") :] == explained.err[explained.err.index("ledger: ") :]
    assert "book.md  " in traced.err, "the end of a source name is what is kept of it"


def test_the_lines_of_a_compressor_come_after_those_of_the_selector(rag: Rag, asked: dict[str, Any]) -> None:
    told = rag("explain", "--json", "--index", "idx").json
    assert told["compression"] == []
    line = {**next(one for one in told["ledger"] if one["taken"]), "action": "drop", "reason": "says nothing"}
    told["context"]["decisions"] = [line, {**line, "action": "keep", "reason": "says much"}]
    texts = [text for text, _ in ledger_lines(told, 100)]
    at = next(number for number, text in enumerate(texts) if text.startswith("compressor none: "))
    assert "kept: 1" in texts[at:]
    assert "drop: 1, says nothing" in texts[at:]


def test_the_newest_runs_are_named(rag: Rag, asked: dict[str, Any]) -> None:
    rag("ask", "How many days of holiday?", "--index", "idx")
    told = rag("explain", "--list", "--json", "--index", "idx").json["runs"]
    assert [one["question"] for one in told] == ["How many days of holiday?", asked["question"]]
    lines = rag("explain", "--list", "--index", "idx").out.splitlines()
    assert [line.split()[0] for line in lines] == [one["run_id"] for one in told]
    assert told[1]["run_id"] == asked["run_id"]
    unknown = rag("explain", "no-such-run", "--index", "idx")
    assert (unknown.code, "rag explain --list" in unknown.err) == (2, True)


def test_replay_on_the_command_line(rag: Rag, home: Path, asked: dict[str, Any]) -> None:
    same = rag("explain", asked["run_id"], "--replay", "--index", "idx")
    assert same.code == 0
    assert "the ledger gives the same context" in same.err
    assert "it writes the same ledger" in same.err
    (home / "other.yaml").write_text(CONFIG + "selector: {use: top-k, budget: 30}\n")
    other = rag("explain", asked["run_id"], "--replay", "--config", "other.yaml", "--index", "idx")
    assert (other.code, "selection differs" in other.err) == (1, True)
    (home / "docs" / "handbook.md").write_text("# Handbook\n\nNothing is left of it.\n")
    rag("ingest", "docs", "--index", "idx", "-q")
    gone = rag("explain", asked["run_id"], "--replay", "--json", "--index", "idx")
    assert gone.code == 1
    assert any("docs/handbook.md" in one and "another text now" in one for one in gone.json["replay"]["missing"])
    told = rag("explain", asked["run_id"], "--replay", "--index", "idx").err
    assert "gone: docs/handbook.md" in told
    assert "not checked: replay" in told


def test_a_run_of_an_older_version_is_shown_but_not_replayed(rag: Rag, home: Path, asked: dict[str, Any]) -> None:
    from rag.store import Store

    old = {name: value for name, value in asked.items() if name not in ("candidates", "run_id")}
    old["bubble"] = {name: value for name, value in old["bubble"].items() if name not in ("hits", "digest")}
    with Store.open(home / "idx") as store:
        run_id = store.add_run({**old, "config": {}})
    assert rag("explain", run_id, "--index", "idx").code == 0
    refused = rag("explain", run_id, "--replay", "--index", "idx")
    assert (refused.code, "ask the question again" in refused.err) == (2, True)
