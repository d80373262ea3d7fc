"""`rag bench kv` with a tiny random model: every part, its claims, and prompts that keep donors apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from eval.bench import kv as bench
from eval.bench._kv_prompts import PASSAGE, Loaded, corpora, donors_of, kv_cases
from eval.bench._kv_report import reuse_claims, speculation_claims
from eval.bench._kv_reuse import OURS, PUBLISHED, interval, summary
from eval.bench._report import Settings
from rag.engine.donor import DonorMean
from rag.errors import UsageError
from rag.generators._repairs import build_repair
from tests.unit.test_engine_model import shared


def encode(text: str) -> list[int]:
    """A token a word, so that a prompt's tokens tell its words."""
    return [3 + sum(map(ord, word)) % 90 for word in text.split()]


@pytest.fixture
def loaded() -> Loaded:
    return Loaded(model=shared(), encode=encode, before="begin here", after="end here")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two sets of documents that have one in common."""
    for number, name in enumerate(("hotpotqa_200", "2wiki_164")):
        folder = tmp_path / name
        folder.mkdir()
        keys = [f"{number}-{at}" for at in range(30)] + ["both"]
        rows: dict[str, list[dict[str, Any]]] = {
            "corpus": [{"doc_id": key, "title": key, "text": f"word{key} " * 45} for key in keys],
            "queries": [
                {"query_id": f"q{number}-{at}", "text": f"what {at}", "candidates": keys[:3]} for at in range(12)
            ],
        }
        for kind, lines in rows.items():
            (folder / f"{kind}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return tmp_path


def test_every_part_reports_and_claims(loaded: Loaded, data: Path) -> None:
    settings = Settings(data=data, rounds=1, quiet=True)
    reuse_of = bench.ReuseSettings(near=lambda passage: [[7, *passage[:9]], [], [8], [9, 9]])
    report = bench.run(settings, lengths=(200,), questions=4, loaded=loaded, reuse=reuse_of)
    assert json.loads(json.dumps(report)) == report
    assert report["exact"]["same"] == dict.fromkeys(("prefix hit", "prompt lookup", "suffix draft", "batch"), 4)
    (reuse,) = report["reuse"]
    assert {one["policy"] for one in reuse["policies"]} == {"prefix-hit", *OURS, *PUBLISHED}
    assert {(row["prompt"], row["set"]) for row in reuse["rows"]} == {
        (0, "hotpotqa_200"), (1, "hotpotqa_200"), (0, "2wiki_164"), (1, "2wiki_164"),
    }  # fmt: skip
    by_name = {one["policy"]: one for one in reuse["policies"]}
    assert by_name["prefix-hit"]["kl"] < 1e-6 < by_name["naive"]["kl"]
    assert by_name["prefix-hit"]["agreement"] == 1
    assert by_name["near"]["kl"] != by_name["mix"]["kl"]
    assert by_name["naive"]["kl_interval"][0] <= by_name["naive"]["kl"] <= by_name["naive"]["kl_interval"][1]
    assert all(200 < tokens <= 500 for tokens in reuse["donors"]["tokens"])
    assert report["batch"]["questions"] == 16
    assert {(row["kind"], row["draft"]) for row in report["speculation"]} == {
        (kind, draft) for kind in ("copy", "other") for draft in ("plain", "prompt-lookup", "suffix")
    }
    assert all(row["same"] for row in report["speculation"])
    assert {row["ratio"] for row in report["speculation"] if row["draft"] == "plain"} == {1.0}
    assert len(report["claims"]) == 4 + 9 + len(report["load"]) + 1 + 4
    assert "cpu" in report["machine"]


def test_parts_run_alone(loaded: Loaded, data: Path) -> None:
    report = bench.run(
        Settings(data=data, rounds=1, quiet=True), parts=("exact",), lengths=(60,), questions=1, loaded=loaded
    )
    assert report["exact"]["prompts"] == 1
    assert "reuse" not in report
    with pytest.raises(UsageError, match="no part speed; there are exact"):
        bench.run(Settings(), parts=("speed",), loaded=loaded)


def test_questions_share_contexts_and_a_run_goes_on_where_it_stopped(
    loaded: Loaded, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("naive", "mix", "mix+i10")
    rows = tmp_path / "rows"
    rows.mkdir()
    reuse = bench.ReuseSettings(half="all", policies=names, everywhere=names[1:], first=1, together=True, rows=rows)
    settings = Settings(data=data, rounds=1, quiet=True)

    def told() -> dict[str, Any]:
        report = bench.run(settings, parts=("reuse",), lengths=(2000,), questions=12, reuse=reuse, loaded=loaded)
        (part,) = report["reuse"]
        return part

    part = told()
    file = tmp_path / "calibration.json"
    report = bench.run(
        settings, parts=("reuse",), lengths=(2000,), questions=12, reuse=reuse, calibrate=file, loaded=loaded
    )
    policy = build_repair({"use": "auto", "table": str(file), "bound": 9.0, "floor": 0.0}, loaded.model.fingerprint)
    assert {one.policy for one in policy.table} == {"naive", '{"share": 0.1, "use": "info-flow"}'}  # type: ignore[attr-defined]
    assert report["reuse"][0]["policies"] == part["policies"]
    with pytest.raises(UsageError, match="needs the part reuse"):
        bench.run(settings, parts=("exact",), lengths=(60,), questions=1, calibrate=file, loaded=loaded)
    counts = {one["policy"]: (one["prompts"], one["contexts"]) for one in part["policies"]}
    assert counts == {"prefix-hit": (12, 6), "mix": (12, 6), "mix+i10": (12, 6), "naive": (4, 2)}
    assert {one["prompts"] for one in part["common"]} == {4}
    file = rows / "2wiki_164-2000.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["context"] == 0), encoding="utf-8")
    makes = monkeypatch.setattr(DonorMean, "block", lambda *_: pytest.fail("blocks are kept"))
    assert makes is None
    again = told()
    costs = {"cost", "of_own"}
    cost_free = [{key: value for key, value in one.items() if key not in costs} for one in again["policies"]]
    assert cost_free == [{key: value for key, value in one.items() if key not in costs} for one in part["policies"]]


def test_prompts_keep_their_size_and_donors_their_distance(loaded: Loaded, data: Path) -> None:
    first, second = corpora(data)
    assert "both" not in first.outside
    assert "both" not in second.outside
    assert not set(first.outside) & set(first.texts)
    cases = kv_cases(loaded, first, tokens=150, count=3, seed=1)
    assert (
        cases
        == kv_cases(loaded, first, tokens=150, count=3, seed=1)
        != kv_cases(loaded, first, tokens=150, count=3, seed=2)
    )
    for case in cases:
        assert 100 < sum(map(len, case.chunks)) <= 150
        assert case.ids[:2] == encode("begin here")
        assert case.ids[-2:] == encode("end here")
        own = [
            encode(f"<document> Source: {title} {text} </document>")[:PASSAGE] for title, text in first.texts.values()
        ]
        assert all(chunk in own for chunk in case.chunks)
        assert sum(chunk in own[:3] for chunk in case.chunks) == 3  # those that the question came with
    backwards = kv_cases(
        loaded, first, tokens=150, count=3, seed=1, rank=lambda _, texts: sorted(range(len(texts)))[::-1]
    )
    assert [sorted(case.chunks) for case in backwards] == [sorted(case.chunks) for case in cases]
    donors = donors_of(loaded, first, tokens=75, count=4, seed=0)
    assert len({tuple(donor) for donor in donors}) == 4


def test_without_data_the_sample_is_used(loaded: Loaded) -> None:
    (sample,) = corpora(None)
    assert not set(sample.texts) & set(sample.outside)
    (case,) = kv_cases(loaded, sample, tokens=300, count=1, seed=0)
    assert len(case.chunks) > 2
    assert all(donors_of(loaded, sample, tokens=100, count=4, seed=0))


def rows_of(figures: dict[str, tuple[float, float]]) -> list[dict[str, Any]]:
    zero = {"tokens": 9, "agreement": 1.0, "repaired": 0}
    return [
        dict(zero, prompt=at, policy=name, cost=cost, of_own=cost, kl=kl, first_kl=kl)
        for name, (cost, kl) in figures.items()
        for at in range(4)
    ]


def test_auto_takes_the_cheapest_under_the_bound_and_is_judged_on_other_prompts() -> None:
    rows = rows_of({"prefix-hit": (0.1, 0.0), "naive": (0.15, 0.4), "mix": (0.2, 0.04), "mix+v15": (0.3, 0.01)})
    for row in rows:
        row["kl"] += row["prompt"] % 2
    told = bench.auto(rows)
    # the even prompts choose mix for the odd, which have a KL over the bound and choose nothing for the even
    assert told["chosen"] == ["mix", "all"]
    assert (told["figures"]["prompts"], told["figures"]["cost"]) == (4, pytest.approx(0.6))
    assert told["figures"]["kl"] == pytest.approx((1.04 + 0) / 2)
    assert [one["policy"] for one in told["table"]] == ["mix", "mix+v15", "naive"]
    # on all of them a KL of .5 more has nothing within the bound
    assert told["calibrated"]["policy"] == "all"
    plain = bench.auto(rows_of({"prefix-hit": (0.1, 0.0), "mix": (0.2, 0.04), "mix+v15": (0.3, 0.01)}))
    assert (plain["calibrated"]["policy"], plain["calibrated"]["figures"]["cost"]) == ("mix", pytest.approx(0.2))
    strict = bench.auto(rows, bound=0.001)
    assert (strict["chosen"], strict["figures"]["cost"]) == (["all", "all"], 1.0)


def test_claims_can_fail() -> None:
    def held(figures: dict[str, tuple[float, float]]) -> list[bool]:
        rows = rows_of(figures)
        part = {"length": 1000, "policies": summary(rows), "auto": bench.auto(rows)}
        return [one["holds"] for one in reuse_claims(part)]

    assert held({"prefix-hit": (0.1, 0.0), "naive": (0.2, 0.4), "mix": (0.2, 0.04)}) == [True] * 9
    assert held({"prefix-hit": (0.2, 0.0), "naive": (0.2, 0.4), "mix": (0.31, 0.04)}) == [
        False,
        *(False, True, True),
        *(False, True, True),
        *(True, False),
    ]
    speeds = [("copy", 1.6), ("other", 1.0), ("other", 0.9)]
    rows = [{"draft": "suffix", "kind": kind, "ratio": ratio} for kind, ratio in speeds]
    assert [one["holds"] for one in speculation_claims(rows)] == [True, False]


def test_intervals_cover_the_mean_and_shrink() -> None:
    few, many = interval([0.0, 1.0] * 4), interval([0.0, 1.0] * 200)
    assert few[0] < many[0] < 0.5 < many[1] < few[1]
    assert interval([0.3] * 5) == pytest.approx([0.3, 0.3])
