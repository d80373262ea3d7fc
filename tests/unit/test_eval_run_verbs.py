"""`rag eval compare`, `regress`, `sweep` and the commands, on the tiny set of test_eval_run.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from eval.cli import eval_app
from eval.runs.comparing import compare, regress
from eval.runs.results import read_results, results_of, timings_of, write
from eval.runs.sweeping import grid, sweep
from rag.errors import ConfigError, UsageError
from tests.unit.test_eval_run import CONFIG, asked, done_of, no_bar, settings, tiny

pytest.importorskip("ir_measures")
pytest.importorskip("rouge_score")

__all__ = ["asked"]


def two(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    narrow = CONFIG.merged({"selector": {"use": "top-k", "budget": 1}}, where="test")
    good = results_of(done_of(settings(tmp_path)))
    bad = results_of(done_of(settings(tmp_path, configs={"base": narrow})))
    return good, bad


def test_compare_and_regress_see_what_fell(tmp_path: Path) -> None:
    good, bad = two(tmp_path)
    rows = {one["measure"]: one for one in compare(good, bad, resamples=200)["comparisons"]}
    assert rows["span_recall"]["difference"] < 0
    assert rows["nDCG@10"]["difference"] == rows["nDCG@10"]["high"] == 0
    fell = {one["measure"] for one in regress(good, bad, resamples=200)["fallen"]}
    assert "span_recall" in fell
    assert not fell & {"nDCG@10", "context_tokens"}, "fewer tokens are no loss"
    back = {one["measure"] for one in regress(bad, good, resamples=200)["fallen"]}
    assert "span_recall" not in back
    assert "context_tokens" in back
    assert regress(good, good, resamples=200)["fallen"] == []


def test_results_of_other_questions_are_not_compared(tmp_path: Path) -> None:
    good, _ = two(tmp_path)
    fewer = results_of(done_of(settings(tmp_path, datasets=(tiny().part("all", 5),))))
    with pytest.raises(UsageError, match="the questions of the two results are not the same"):
        compare(good, fewer)
    other = results_of(done_of(settings(tmp_path, datasets=(tiny("other"),))))
    with pytest.raises(UsageError, match="nothing to compare"):
        compare(good, other)
    with pytest.raises(UsageError, match="lack tiny"):
        regress(good, other)


def test_comparisons_of_a_run_are_paired_and_corrected(tmp_path: Path) -> None:
    narrow = CONFIG.merged({"selector": {"use": "top-k", "budget": 1}}, where="test")
    found = results_of(done_of(settings(tmp_path, configs={"base": CONFIG, "narrow": narrow})))
    row = next(one for one in found["comparisons"] if one["measure"] == "span_recall")
    means = {one["config"]: one["measures"]["span_recall"]["mean"] for one in found["runs"]}
    assert (row["a"], row["b"]) == ("base", "narrow")
    assert row["difference"] == pytest.approx(means["narrow"] - means["base"], abs=1e-5)
    assert row["p_holm"] >= row["p"]


def test_a_grid_is_every_combination_checked() -> None:
    found = grid(CONFIG, ["selector.budget=40,80", "chunker=recursive,sentence"])
    assert len(found) == 4
    assert found["selector.budget=80, chunker=sentence"].selector == {"use": "top-k", "budget": 80}
    assert found["selector.budget=80, chunker=sentence"].chunker == "sentence"
    with pytest.raises(ConfigError, match="bugdet"):
        grid(CONFIG, ["selector.bugdet=1"])
    with pytest.raises(UsageError, match="SLOT=NAME"):
        grid(CONFIG, ["selector.budget"])
    with pytest.raises(UsageError, match="201"):
        grid(CONFIG, ["selector.budget=" + ",".join(map(str, range(1, 202)))])


def test_a_sweep_finds_the_best_and_halving_asks_less(tmp_path: Path, asked: list[str]) -> None:
    many = replace(tiny(), questions=tuple(
        replace(one, id=f"{one.id}-{copy}", text=f"{one.text} please {copy}")
        for copy in range(6) for one in tiny().questions[:-1]
    ))  # fmt: skip
    configs = grid(CONFIG, ["selector.budget=1,2,3,100"])
    given = settings(tmp_path, datasets=(many,), configs=configs)
    done, rounds = sweep(given, lambda line: None, no_bar, measure="span_recall", halving=True)
    assert [one.questions for one in rounds] == [24, 72]
    assert next(iter(rounds[-1].means)) == "selector.budget=100"
    assert {one.label for one in done.runs} == set(rounds[-1].means)
    assert len(asked) < 4 * 72
    with pytest.raises(UsageError, match="--measure nope"):
        sweep(given, lambda line: None, no_bar, measure="nope", halving=False)


# ------------------------------------------------------------------ the commands


def layout(folder: Path) -> Path:
    data = tiny()
    rows: dict[str, list[dict[str, Any]]] = {
        "corpus": [{"doc_id": name.removesuffix(".txt"), "text": text} for name, text in data.texts.items()],
        "queries": [{"query_id": one.id, "text": one.text, "answers": one.answers} for one in data.questions],
        "evidence": [
            {"query_id": one.id, "doc_id": name.removesuffix(".txt"), "start": start, "end": end}
            for one in data.questions
            for name, start, end in one.evidence
        ],
    }
    folder.mkdir(parents=True)
    for name, found in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return folder


def test_the_commands(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    layout(tmp_path / "data" / "tiny")
    (tmp_path / "base.yaml").write_text(CONFIG.to_yaml(), encoding="utf-8")
    common = ["--data", str(tmp_path / "data"), "--dataset", "tiny", "--config", str(tmp_path / "base.yaml"),
              "--cache", str(tmp_path / "cache"), "--workers", "0", "--resamples", "200"]  # fmt: skip
    runner = CliRunner()
    for out in ("one", "two"):
        made = runner.invoke(eval_app, ["run", *common, "--out", str(tmp_path / out), "--quiet"])
        assert made.exit_code == 0, made.output
    for name in ("results.json", "report.html", "report.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    run_file = (tmp_path / "one" / "trec" / "tiny" / "base" / "run.trec").read_text(encoding="utf-8")
    assert run_file.startswith("bridge-2 Q0 bridge.txt:")
    assert "machine" in json.loads((tmp_path / "one" / "timings.json").read_text(encoding="utf-8"))
    first = str(tmp_path / "one" / "results.json")
    assert runner.invoke(eval_app, ["compare", first, str(tmp_path / "two")]).exit_code == 0
    assert runner.invoke(eval_app, ["regress", str(tmp_path / "two"), "--against", first]).exit_code == 0
    worse = ["--out", str(tmp_path / "bad"), "--quiet"]
    (tmp_path / "base.yaml").write_text(CONFIG.to_yaml().replace("budget: 90", "budget: 1"), encoding="utf-8")
    assert runner.invoke(eval_app, ["run", *common, *worse]).exit_code == 0
    fell = runner.invoke(eval_app, ["regress", str(tmp_path / "bad"), "--against", first, "--out", str(tmp_path / "r")])
    assert fell.exit_code == 1
    assert "span_recall" in fell.output
    assert (tmp_path / "r" / "regress.json").is_file()
    swept = ["sweep", *common, "--out", str(tmp_path / "s"), "--grid", "selector.budget=1,90", "--half", "all"]
    assert runner.invoke(eval_app, swept).exit_code == 0
    assert json.loads((tmp_path / "s" / "sweep.json").read_text(encoding="utf-8"))["best"] == "selector.budget=90"


def test_the_commands_say_what_is_missing(tmp_path: Path) -> None:
    runner = CliRunner()
    out = ["--out", str(tmp_path / "o")]
    for arguments, words in (
        (["run"], "--out"),
        (["run", *out], "--dataset"),
        (["run", *out, "--dataset", str(tmp_path / "none")], "no such folder"),
        (["sweep", "--grid", "selector.budget=1", "--half", "test", *out], "dev half"),
        (["compare", str(tmp_path / "a"), str(tmp_path / "b")], "no results"),
    ):
        made = runner.invoke(eval_app, arguments)
        assert isinstance(made.exception, UsageError)
        assert words in str(made.exception)
    (tmp_path / "old.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match="format 1"):
        read_results(tmp_path / "old.json")


def test_write_leaves_no_part_behind(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    done = done_of(settings(tmp_path))
    found = write(done, tmp_path / "out")
    assert read_results(tmp_path / "out") == json.loads(json.dumps(found))
    assert not list((tmp_path / "out").rglob("*.part"))
    assert timings_of(done)["runs"][0]["stages"]["retrieve"]["p50"] >= 0


def test_run_and_sweep_have_the_same_options_and_other_defaults() -> None:
    from inspect import signature

    from eval.runs.verbs import Asked, compare, regress, run, sweep

    asked, swept = signature(run).parameters, signature(sweep).parameters
    names = set(Asked.__dataclass_fields__)
    assert set(asked) == {"config"} | names
    assert set(swept) == {"grid", "config", "halving", "measure"} | names
    assert {name for name in names if asked[name].default != swept[name].default} == {"half"}
    assert {name for name in names if asked[name].annotation != swept[name].annotation} == set()
    shared = signature(compare).parameters.keys() & signature(regress).parameters.keys()
    assert shared == {"after", "out", "resamples", "seed", "as_json", "quiet"}
    with pytest.raises(UsageError, match="--out DIR is needed"):
        run(**{name: one.default for name, one in asked.items()})
