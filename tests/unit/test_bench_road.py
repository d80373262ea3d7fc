"""`rag bench road`: the rule and its figures on made-up rows, and every way with a tiny random model on the sample."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("transformers")

from eval.bench import _road_contexts
from eval.bench import road as bench
from eval.bench._report import Settings
from eval.bench._road_rule import Way, advice, choose, seconds, threshold
from eval.bench._road_ways import FULL, REPAIRED, ways_of
from rag.generators.local import LocalGenerator
from tests.unit.test_generators_local import tiny_llama

FULL_WAY = Way("full", warm=1.0, make=0.0, loss=0.0)
PRUNE = Way("prune", warm=0.5, make=0.0, loss=0.3)
REUSE = Way("reuse", warm=0.25, make=3.0, loss=0.05)
WAYS = (FULL_WAY, PRUNE, REUSE)
COSTS = st.floats(0, 5)
SOME = st.lists(st.builds(Way, st.sampled_from("abcdef"), COSTS, COSTS, COSTS), min_size=1, max_size=5)


def test_reuse_pays_from_the_share_at_which_it_costs_the_same() -> None:
    assert threshold(REUSE, 1.0) == pytest.approx(0.75)
    assert seconds(REUSE, 0.75) == pytest.approx(1.0)
    assert threshold(REUSE, 0.2) is None
    assert threshold(REUSE, 4.0) == threshold(PRUNE, 0.5) == 0.0


def test_the_rule_is_the_cheapest_within_the_bound() -> None:
    assert [choose(WAYS, share, 0.1).name for share in (0.0, 0.7, 0.8, 1.0)] == ["full", "full", "reuse", "reuse"]
    assert [choose(WAYS, share, 0.5).name for share in (0.0, 0.9, 0.95)] == ["prune", "prune", "reuse"]
    assert choose(WAYS[1:], 0.0, 0.01).name == "reuse"  # none fits: the least loss


@given(SOME, st.floats(0, 1), COSTS)
def test_no_other_way_within_the_bound_is_cheaper(ways: list[Way], share: float, bound: float) -> None:
    best = choose(ways, share, bound)
    fits = [way for way in ways if way.loss <= bound]
    assert all(seconds(best, share) <= seconds(way, share) for way in fits)
    assert best in (fits or ways)


@given(SOME, COSTS)
def test_advice_covers_all_shares(ways: list[Way], bound: float) -> None:
    lines = advice(ways, bound)
    assert lines[0].startswith("0% to ")
    assert " to 100% of chunks kept: " in lines[-1]
    for left, right in pairwise(lines):
        assert left.partition(" to ")[2].partition(" of ")[0] == right.partition(" to ")[0]
        assert left.partition(": ")[2] != right.partition(": ")[2]


def test_advice_tells_the_numbers() -> None:
    first, second = advice(WAYS, 0.1)
    assert first == "0% to 75% of chunks kept: full; 1.000 to 1.000 s to the first token, +0.00 nats lost a token of the answer"  # fmt: skip  # noqa: E501
    assert second.startswith("75% to 100% of chunks kept: reuse; 1.000 to 0.250 s")


def rows_of(costs: dict[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """Three questions along every way; name -> (seconds, logp), (0.5, -1) for the others."""
    rows = []
    for way in ways_of(bench.RATES):
        spent, logp = costs.get(way.name, (0.5, -1.0))
        same: dict[str, Any] = {"compress_seconds": 0.0, "prompt": 9, "left": 9, "kl": 0.1, "same": True}
        rows += [
            {**same, "way": way.name, "question": f"q{at}", "seconds": spent, "logp": logp - at} for at in range(3)
        ]
    return rows


def test_figures_are_paired_and_claims_can_fail() -> None:
    pruned = f"sentence-prune 0.5, KV pruning, {REPAIRED}"
    costs = {FULL: (1.0, -1.0), f"whole, {REPAIRED}": (0.3, -1.05), f"whole, {REPAIRED}, cold": (3.3, -1.05)}
    told = bench.figures(rows_of({**costs, pruned: (0.2, -0.9), "sentence-prune 0.5, computed": (0.5, -1.2)}))
    by_name = {one["way"]: one for one in told["results"]}
    assert by_name[FULL]["lost"] == 0
    assert (by_name[pruned]["lost"], by_name[pruned]["of_full"]) == (pytest.approx(-0.1), pytest.approx(0.2))
    assert by_name[pruned]["lost_to_computed"] == pytest.approx(-0.3)
    assert by_name[pruned]["lost_to_computed_interval"] == pytest.approx([-0.3, -0.3])
    assert told["questions"] == 3
    (half,) = [one for one in bench.ways_of_rule(told["results"]) if one.name == pruned]
    assert half.warm == 0.2
    assert half.make == pytest.approx(3.0)
    assert told["rule"]["advice"][-1].startswith("90% to 100% of chunks kept: sentence-prune 0.5, KV pruning")
    assert f"whole, {REPAIRED} costs no more than {FULL} from 77% of the chunks kept on" in told["rule"]["even"]
    assert told["claims"][0]["holds"]
    slow = bench.figures(rows_of({**costs, pruned: (0.7, -1.3)}))
    assert [one["holds"] for one in slow["claims"][:2]] == [False, False]


def test_every_way_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_road_contexts, "__file__", str(tmp_path / "project" / "eval" / "bench" / "x.py"))
    config = tmp_path / "rag.yaml"
    config.write_text("embedder: hashing\n", encoding="utf-8")
    tiny = LocalGenerator(model=str(tiny_llama(tmp_path / "tiny")), dtype="float32", lead="Answer:")
    report = bench.run(Settings(config=config, quiet=True), questions=4, lengths=(900,), generator=tiny)
    assert json.loads(json.dumps(report)) == report
    rows, names = report["rows"], [way.name for way in ways_of(bench.RATES)]
    assert report["questions"] >= 1
    assert len(rows) == len(names) * report["questions"]
    by_way: dict[str, list[dict[str, Any]]] = {name: [row for row in rows if row["way"] == name] for name in names}
    for name, own in by_way.items():
        for row in own:
            assert (row["made"] > 0) == name.endswith((", cold", ", half")), name
            assert 0 <= row["computed"] <= row["prompt"]
            assert row["seconds"] > 0
            assert (row["compress_seconds"] < row["seconds"]) and row["logp"] < 0  # noqa: PT018
    for rate in bench.RATES:
        computed, kept = by_way[f"sentence-prune {rate}, computed"], by_way[f"sentence-prune {rate}, KV pruning, solo"]
        for left, right, full in zip(computed, kept, by_way[FULL], strict=True):
            assert left["prompt"] == right["prompt"] < full["prompt"]  # every byte is a token: the same text is read
            assert right["computed"] < left["computed"] == left["prompt"]
    assert {"cpu", "threads", "load_before"} <= report["machine"].keys()


def test_ways_have_names_of_their_own() -> None:
    ways = ways_of((0.5, 0.25))
    assert len({way.name for way in ways}) == len(ways)
    assert {replace(way, name="").store for way in ways} == {"cold", "half", "warm"}
