"""The budgets' part of `rag bench kv` with a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from eval.bench._kv_budget import Asked, asked_cases, budget, budget_part, budget_table, budgets, needles
from eval.bench._kv_prompts import Corpus, KvCase, Loaded
from eval.chunks.data import half_of
from tests.unit.test_bench_kv import encode
from tests.unit.test_engine_model import shared, some_ids

LOADED = Loaded(model=shared(), encode=encode, before="begin here", after="end here")
CASE = KvCase(prefix=some_ids(10), chunks=[some_ids(60, seed=1), some_ids(60, seed=2)], tail=some_ids(40, seed=3))


def corpus() -> Corpus:
    texts = {f"d{at}": (f"title{at}", f"word{at} " * 45) for at in range(20)}
    questions = [(f"what {at}", ("d1", "d2")) for at in range(6)]
    return Corpus(name="set", texts=texts, questions=questions, outside={})


def test_every_budget_gets_a_row_for_every_prompt_and_share() -> None:
    rows = budget(LOADED, [Asked(case=CASE, gold=[5, 6]), Asked(case=CASE)], shares=(0.9, 0.5))
    names = set(budgets(100))
    assert len(rows) == 2 * (1 + 2 * len(names))
    for share in (0.9, 0.5):
        own = [row for row in rows if row["share"] == share and row["prompt"] == 0]
        assert {row["policy"] for row in own} == names
        assert all(0 < row["kept"] <= share and row["kl"] >= -1e-9 and 0 <= row["agreement"] <= 1 for row in own)
        assert all(isinstance(row["gold"], float) for row in own)
    assert all(row["gold"] is None and row["found"] is None for row in rows if row["prompt"] == 1)
    assert max(row["first_kl"] for row in rows if "first_kl" in row) < 1e-9  # the first token comes of the whole prompt


def test_the_order_of_the_budgets_and_the_gold_change_no_figure() -> None:
    key = ("prompt", "policy", "share")
    runs = ((Asked(case=CASE, gold=[5, 6, 7]), 0), (Asked(case=CASE), 3))
    first, second = (
        {
            tuple(row[name] for name in key): float(row.get("kl", 0))
            for row in budget(LOADED, [one], shares=(0.5,), seed=seed)
        }
        for one, seed in runs
    )
    assert first == pytest.approx(second, abs=1e-9)


def test_gold_answers_are_those_of_the_development_half(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    keys = [f"q{at}" for at in range(40)]
    rows = [{"query_id": key, "text": f"what {at}", "answers": [f"answer {at}"]} for at, key in enumerate(keys)]
    rows[0]["answers"] = []
    (tmp_path / "set" / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for at in range(40):
        alone = Corpus(name="set", texts=corpus().texts, questions=[(f"what {at}", ())], outside={})
        (one,) = asked_cases(LOADED, alone, tmp_path, tokens=200, count=1, seed=0)
        told = at > 0 and half_of(keys[at]) == "dev"
        assert list(one.gold) == (encode(f"answer {at}") if told else [])
    assert len(asked_cases(LOADED, corpus(), None, tokens=200, count=4, seed=0)) == 4


def test_a_needle_stands_whole_among_the_passages() -> None:
    (one,) = needles(LOADED, [Asked(case=CASE)], seed=1)
    assert len(one.case.chunks) == 3
    (added,) = [chunk for chunk in one.case.chunks if chunk not in CASE.chunks]
    start = encode("The access code of the north gate is")
    assert any(added[at : at + len(start)] == start for at in range(len(added)))
    assert one.case.tail[-len(start) :] == start
    assert len(one.gold) == 1


def test_the_part_has_figures_and_a_table() -> None:
    (part,) = budget_part(LOADED, [corpus()], None, lengths=(200,), count=2)
    assert json.loads(json.dumps(part)) == part
    told = {(one["policy"], one["prompts"]) for one in part["policies"]}
    assert told == {(name, 2) for name in ("whole", *budgets(100))}
    assert all(one["kl_interval"][0] <= one["kl"] <= one["kl_interval"][1] for one in part["policies"] if "kl" in one)
    text = budget_table(part)
    assert all(name in text for name in budgets(100))
