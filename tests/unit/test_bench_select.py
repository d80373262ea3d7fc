"""`rag bench select` on a tiny set with hashed vectors: parts, counted work, claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.bench import select as bench
from eval.bench._report import Settings
from eval.bench._select_parts import CharCounter, timed, worked
from rag.tokens import WordCounter


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    folder = tmp_path / "data" / bench.DATA_SET
    folder.mkdir(parents=True)
    texts = [" ".join(f"Mill {n} ground {at} sacks of wheat{at}." for at in range(60)) for n in range(6)]
    rows: dict[str, list[dict[str, Any]]] = {
        "corpus": [{"doc_id": str(n), "text": text} for n, text in enumerate(texts)],
        "queries": [{"query_id": str(n), "text": f"Which mill ground {n} sacks of wheat{n}?"} for n in range(3)],
        "evidence": [{"query_id": str(n), "doc_id": "0", "start": 0, "end": 9} for n in range(3)],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    config = tmp_path / "rag.yaml"
    config.write_text("embedder: hashing\n", encoding="utf-8")
    return Settings(data=tmp_path / "data", config=config, rounds=2, quiet=True)


def test_the_report(settings: Settings) -> None:
    report = bench.run(settings, questions=2)
    assert json.loads(json.dumps(report)) == report
    assert (report["corpus"]["set"], report["corpus"]["questions"]) == (bench.DATA_SET, 2)
    rows = {row["name"]: row for row in report["results"]}
    assert set(rows) == set(bench.SELECTORS)
    for row in rows.values():
        assert len(row["rounds"]) == 2
        for one in row["rounds"]:
            assert 0 < one["choice_ms"] <= one["total_ms"]
            assert set(one) == {"total_ms", "units_ms", "scoring_ms", "choice_ms"}
    assert rows["bubble"]["median"]["scoring_ms"] > 0 < rows["bubble"]["median"]["units_ms"]
    assert rows["verified"]["median"]["scoring_ms"] > 0 < rows["mmr"]["median"]["scoring_ms"]
    assert rows["top-k"]["median"]["scoring_ms"] == rows["top-k"]["median"]["units_ms"] == 0
    assert rows["bubble"]["work"]["gains"] >= rows["bubble"]["work"]["embedded_texts"] - 1 > 0
    assert 0 < rows["mcts"]["work"]["most_sets_scored"] <= bench.MCTS_SETS
    assert rows["top-k"]["work"]["gains"] == rows["bubble"]["work"]["sets_scored"] == 0
    assert all(row["work"]["tokenizer_calls"] > 0 for row in rows.values())
    assert report["embedding"]["texts"] > 0
    assert [one["claim"].partition(":")[0] for one in report["claims"]] == [
        "bubble", "bubble", "mig", "mig", "top-k", "mmr", "mcts",
    ]  # fmt: skip


def test_claims_fail_over_the_goal() -> None:
    def row(name: str, choice: float, units: float, sets: int = 0) -> dict[str, Any]:
        return {
            "name": name,
            "median": {"choice_ms": choice, "units_ms": units},
            "work": {"most_sets_scored": sets},
        }

    rows = [row("bubble", 4.0, 2.0), row("top-k", 5.1, 0.0), row("mcts", 90.0, 1.0, bench.MCTS_SETS + 1)]
    held = [(one["value"], one["holds"]) for one in bench._claims(rows)]
    assert held == [(4.0, True), (6.0, False), (5.1, False), (bench.MCTS_SETS + 1, False)]


def test_without_data_the_sample_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "project" / "eval" / "bench" / "select.py"))
    name, texts, asked = bench._corpus(Settings())
    assert name == "sample documents"
    assert len(texts) > 5 < len(asked)


def test_clocks_and_counts_are_taken_off_again() -> None:
    from rag.spans import choice
    from retrievers.selectors import bubble, mcts, verified

    places = (
        (bubble, "units_of"),
        (bubble, "pool_of"),
        (mcts, "Utility"),
        (choice.SpanChoice, "gain"),
        (verified.VerifiedSelector, "examine"),
    )
    before = [getattr(*place) for place in places]
    with timed(), worked():
        during = [getattr(*place) for place in places]
    assert all(one is not other for one, other in zip(during, before, strict=True))
    assert [getattr(*place) for place in places] == before


def test_characters_are_counted() -> None:
    counter = CharCounter(WordCounter())
    assert counter.count("one two") == 2
    assert len(counter.tokens("one two")) == 2
    assert (counter.calls, counter.characters) == (2, 14)
    assert counter.additive
