"""`rag bench compress` with a tiny random model on the sample: rows, the lines through them, claims that can fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from eval.bench import _compress_contexts
from eval.bench import compress as bench
from eval.bench._compress_costs import ALONE, _Unkept, break_even, line, ranges
from eval.bench._kv_prompts import Loaded
from eval.bench._report import Settings
from rag.embedders.hashing import HashingEmbedder
from rag.errors import UsageError
from tests.fakes import FakeGenerator
from tests.unit.test_engine_model import shared

LENGTHS = (150, 400)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """No data beside the project, and an embedder without a model."""
    monkeypatch.setattr(_compress_contexts, "__file__", str(tmp_path / "project" / "eval" / "bench" / "x.py"))
    config = tmp_path / "rag.yaml"
    config.write_text("embedder: hashing\n", encoding="utf-8")
    return Settings(config=config, rounds=2, quiet=True)


def loaded() -> Loaded:
    def encode(text: str) -> list[int]:
        return [3 + sum(map(ord, word)) % 90 for word in text.split()]

    return Loaded(model=shared(), encode=encode, before="begin here", after="end here")


def test_the_report_on_the_sample(settings: Settings) -> None:
    report = bench.run(
        settings, parts=("fast", "lm"), lengths=LENGTHS, questions=2, loaded=loaded(), generator=FakeGenerator()
    )
    assert json.loads(json.dumps(report)) == report
    assert report["corpus"]["set"] == "sample documents"
    names = [ALONE, *(f"{name} {rate}" for name in ("sentence-prune", "token-prune") for rate in (0.5, 0.25))]
    assert {(row["length"], row["name"]) for row in report["results"]} == {(n, name) for n in LENGTHS for name in names}
    assert len(report["rows"]) == len(names) * len(LENGTHS) * 2 * settings.rounds
    for row in report["rows"]:
        share = 1.0 if row["name"] == ALONE else float(row["name"].split()[-1])
        assert 0 < row["left"] <= share * row["tokens"] <= share * row["length"]
        assert (row["compress_ms"] > 0) == (row["unkept_ms"] > 0) == (row["name"] != ALONE)
        assert row["prefill_ms"] > 0
    for number in range(settings.rounds):
        firsts = [row["name"] for row in report["rows"] if row["round"] == number][:: len(names)]
        assert len(set(firsts)) == len(firsts), "contenders take turns in going first"
    alone = [row for row in report["results"] if row["name"] == ALONE]
    assert all(row["range"]["of_alone"] == [1.0, 1.0] for row in alone)
    assert {(one["name"], one["length"]) for one in report["speed"]} == {
        (name, length) for name in bench.FAST for length in (None, *LENGTHS)
    }
    assert set(names[1:]) <= set(report["break_even"])
    assert {"cpu", "threads", "load_before"} <= report["machine"].keys()
    assert len(report["claims"]) == 1, "no context is as long as the goal speaks of"
    with pytest.raises(UsageError, match="no part slow; there are fast, lm"):
        bench.run(settings, parts=("slow",))


def rows_of(fixed: float, each: float, rate: float = 0.5) -> list[dict[str, Any]]:
    """Reading costs 5 + 2 a token of the prompt, which has 10 tokens more than its context."""
    rows = []
    for at, tokens in enumerate((400, 800, 1600)):
        for name, left in ((ALONE, tokens), (f"sentence-prune {rate}", int(tokens * rate))):
            spent = 0.0 if name == ALONE else fixed + each * tokens
            rows.append(
                {
                    "name": name, "round": 0, "context": at, "length": tokens, "tokens": tokens, "left": left,
                    "prompt": left + 10, "compress_ms": spent, "prefill_ms": 5 + 2 * (left + 10), "unkept_ms": 0.0,
                }
            )  # fmt: skip
    return rows


def test_the_lines_meet_where_the_sums_are_equal() -> None:
    found = break_even(rows_of(300.0, 0.5))
    one = found["sentence-prune 0.5"]
    assert found["prefill_ms_per_token"] == pytest.approx(2)
    assert (one["compress_ms_fixed"], one["compress_ms_per_token"]) == (pytest.approx(300), pytest.approx(0.5))
    n = one["context_tokens"]
    assert (n, one["extrapolated"]) == (pytest.approx(600), False)
    assert one["prompt_tokens"] == pytest.approx(610)
    assert 300 + 0.5 * n + 5 + 2 * (0.5 * n + 10) == pytest.approx(5 + 2 * (n + 10))
    assert break_even(rows_of(300.0, 1.5))["sentence-prune 0.5"]["context_tokens"] is None
    below = break_even(rows_of(-9.0, 0.5))["sentence-prune 0.5"]
    assert (below["context_tokens"], below["extrapolated"]) == (0, True)
    assert line([(3, 4), (3, 6)]) == (5, 0)


@pytest.mark.parametrize(("fixed", "speed", "held"), [(300.0, 30_000, [1, 1, 1]), (600.0, 19_999, [0, 0, 1])])
def test_claims_can_fail(fixed: float, speed: float, held: list[int]) -> None:
    told = [{"name": "sentence-prune", "length": length, "rate": speed} for length in (None, 400)]
    claims = bench._claims({"speed": told, "results": ranges(rows_of(fixed, 0.5))})
    assert [one["holds"] for one in claims] == list(map(bool, held))


def test_a_corpus_that_keeps_nothing_embeds_anew() -> None:
    class Keeping:
        here = "of the corpus"

        def sentence_vectors(self, texts: list[str], embedder: Any) -> Any:
            raise AssertionError("asked for what is kept")

    corpus: Any = _Unkept(Keeping())  # type: ignore[arg-type]
    assert corpus.sentence_vectors(["one", "two"], HashingEmbedder()).shape[0] == 2
    assert corpus.here == "of the corpus"
