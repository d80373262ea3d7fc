"""`rag eval poison` and `rag eval calibrate` on tiny made-up sets, by the commands themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from eval.chunks.data import half_of
from eval.cli import eval_app
from eval.select import poison_report
from eval.select.poison import Case, rates, resampled
from rag.config import PipelineConfig
from rag.errors import ConfigError, MissingError, UsageError
from rag.types import Document
from tests.fakes import FakeGenerator, FakeModel
from tests.unit.test_eval_select import TOPICS, text_of


def write(folder: Path, **files: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder.parent


def invoke(*given: str) -> Any:
    result = CliRunner().invoke(eval_app, list(given), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def poison_data(root: Path) -> Path:
    """Two topics, of one a poisoned passage that begins with the question; and a clean set of the same texts."""
    clean = [{"doc_id": topic, "text": text_of(topic), "meta": {"role": "clean"}} for topic in ("mill", "orchard")]
    bad = {"doc_id": "bad", "text": "what is the mill part 2 called item. It is item 5.", "meta": {"role": "poison"}}
    bad["meta"]["query_id"] = "q"  # type: ignore[index]
    query = {"query_id": "q", "text": "what is the mill part 2 called item", "type": "nq"}
    evidence = [{"query_id": "q", "doc_id": "mill", "start": 0, "end": 40, "role": "clean"}]
    write(root / "poisonedrag_nq", corpus=[*clean, bad], queries=[query], evidence=evidence)
    return write(root / "squad_long", corpus=clean, queries=[query], evidence=evidence)


def poison(tmp_path: Path, *more: str) -> tuple[dict[str, Any], str]:
    data, out = poison_data(tmp_path / "data"), tmp_path / "out"
    given = ("poison", "--data", str(data), "--out", str(out), "--half", "all", "--resamples", "100", "--quiet")
    result = invoke(*given, "--set", "poisonedrag_nq", "--set", "squad_long", "--json", *more)
    report = json.loads((out / "poison.json").read_text())
    assert report == json.loads(result.stdout)
    return report, (out / "poison.md").read_text()


class TestPoison:
    def test_the_report_has_detection_and_its_price(self, tmp_path: Path) -> None:
        report, shown = poison(tmp_path, "--perplexity", "0")
        rows = {row["signal"]: row for row in report["sets"]["poisonedrag_nq"]["signals"]}
        assert rows["all"]["f1"] == rows["containment"]["f1"] == 1.0
        assert rows["all"]["poisoned"] == rows["all"]["flagged"] == 1
        assert (rows["all"]["false_flags"], rows["all"]["evidence_lost"]) == (0.0, 0.0)
        assert rows["all"]["intervals"]["f1"] == [1.0, 1.0]
        assert not {"density", "agreement"} & rows.keys(), "signals that are off have no row"
        [clean] = [row for row in report["sets"]["squad_long"]["signals"] if row["signal"] == "all"]
        assert (clean["poisoned"], clean["flagged"]) == (0, 0)
        assert report["baseline"] == "not asked for"
        assert "beside_the_baseline" not in report["sets"]["squad_long"]
        for line in (
            "## squad_long (clean)",
            "| containment | 1.000 |",
            "| all | - | - | - | 0.000",
            "Flags nothing: inj",
        ):
            assert line in shown

    def test_options_reach_the_verifier(self, tmp_path: Path) -> None:
        report, _ = poison(tmp_path, "--perplexity", "0", "--option", "containment=0", "--option", "density=2.5")
        rows = {row["signal"]: row for row in report["sets"]["poisonedrag_nq"]["signals"]}
        assert rows["all"]["recall"] == 0.0
        assert "containment" not in rows
        assert "density" in rows

    def test_a_baseline_that_knows_the_poison(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def nats(token: str, before: str) -> float:
            return 9.0 if token.strip() == "5" else 0.5

        real = poison_report.build
        fake = FakeGenerator(model=FakeModel(nats))
        monkeypatch.setattr(
            poison_report, "build", lambda kind, *a, **k: fake if kind == "generator" else real(kind, *a, **k)
        )
        report, shown = poison(tmp_path, "--perplexity", "1")
        compared = report["sets"]["poisonedrag_nq"]["beside_the_baseline"]
        assert compared["questions"] == 1
        assert [row["signal"] for row in compared["rows"]] == ["perplexity", "verified"]
        assert compared["rows"][1]["f1"] == 1.0
        assert compared["rows"][0]["hits"] == compared["rows"][1]["hits"]
        assert report["baseline"] == "perplexity by local"
        assert "Beside the baseline, the first 1 questions:" in shown

    def test_a_model_that_is_absent_is_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = poison_report.build

        def build(kind: str, *given: Any, **options: Any) -> Any:
            if kind == "generator":
                raise MissingError("no model files here")
            return real(kind, *given, **options)

        monkeypatch.setattr(poison_report, "build", build)
        report, shown = poison(tmp_path)
        assert report["baseline"] == "no model files here"
        assert "no model files here" in shown

    def test_what_is_wrong_is_refused(self, tmp_path: Path) -> None:
        data = poison_data(tmp_path / "data")
        given = ["poison", "--data", str(data), "--out", str(tmp_path / "out"), "--perplexity", "0", "--quiet"]
        with pytest.raises(ConfigError, match="contaimnent"):
            invoke(*given, "--option", "contaimnent=1")
        half = "dev" if half_of("squad_long/q") == "test" else "test"
        with pytest.raises(UsageError, match=f"no question in the {half} half"):
            invoke(*given, "--set", "squad_long", "--half", half)
        with pytest.raises(UsageError, match="--data"):
            invoke(*given, "--set", "none-such")

    def test_intervals_are_around_the_rates_and_repeat(self) -> None:
        document = Document(text="x", source="x")
        cases = [
            Case(
                question="q", documents=(document,) * 4, bad=(True, True, False, False), evidence=(False,) * 3 + (True,)
            )
            for _ in range(12)
        ]
        flags = [[True, at % 2 == 0, at % 3 == 0, at % 4 == 0] for at in range(12)]
        found = rates(cases, flags)
        assert (found["poisoned"], found["flagged"], found["recall"], found["false_flags"]) == (24, 25, 0.75, 0.2917)
        assert found["precision"] == round(18 / 25, 4)
        assert found["f1"] == round(36 / 49, 4)
        assert found["evidence_lost"] == 0.25
        drawn = resampled(cases, flags, 200, 3)
        for name in ("precision", "recall", "f1", "false_flags", "evidence_lost"):
            low, high = drawn[name]
            assert low < found[name] < high
        assert drawn == resampled(cases, flags, 200, 3) != resampled(cases, flags, 200, 4)


def calibration_data(root: Path) -> Path:
    """Topics in a set that `rag eval select` knows, with questions about one sentence each."""
    corpus = [{"doc_id": topic, "text": text_of(topic)} for topic in TOPICS]
    queries, evidence = [], []
    for topic in TOPICS:
        for number in range(12):
            at = text_of(topic).index(f"The {topic} has a part {number} ")
            end = text_of(topic).index(".", at) + 1
            name = f"{topic}-{number}"
            queries.append({"query_id": name, "text": f"what is {topic} part {number}"})
            evidence.append({"query_id": name, "doc_id": topic, "start": at, "end": end})
    return write(root / "covidqa", corpus=corpus, queries=queries, evidence=evidence)


def calibrated(tmp_path: Path, *more: str) -> tuple[dict[str, Any], str]:
    data, out = calibration_data(tmp_path / "data"), tmp_path / "out"
    given = ("calibrate", "--data", str(data), "--out", str(out), "--set", "covidqa", "--embedder", "hashing")
    options = ("--retriever", "{use: bm25, k: 9}", "--counter", "embedder", "--json", "--quiet")
    result = invoke(*given, *options, "--chunker", "{use: recursive, max_tokens: 45}", *more)
    report = json.loads((out / "calibrate.json").read_text())
    assert report == json.loads(result.stdout)
    return report, (out / "calibrate.md").read_text()


class TestCalibrate:
    def test_the_spec_can_be_pasted_and_its_bound_is_over_the_target(self, tmp_path: Path) -> None:
        grid = [option for theta in (0, 1, 2, 30) for option in ("--theta", str(theta))]
        report, shown = calibrated(tmp_path, "--target", "0.5", "--budget", "150", *grid)
        assert report["questions"] == sum(half_of(f"covidqa/{t}-{n}") == "dev" for t in TOPICS for n in range(12))
        holds = [one for one in report["tested"] if one["bound"] >= 0.5]
        assert report["theta"] == holds[-1]["theta"]
        assert report["tokens"] == holds[-1]["tokens"] <= 150
        assert report["bound"] == pytest.approx(holds[-1]["recall"] - report["slack"], abs=2e-4)
        tokens = [one["tokens"] for one in report["tested"]]
        assert tokens == sorted(tokens, reverse=True)
        assert report["without_threshold"]["tokens"] >= tokens[0]
        pasted = yaml.safe_load(shown.split("```yaml\n")[1].split("```")[0])
        assert pasted["selector"] == report["spec"]
        assert PipelineConfig.from_dict(pasted).selector["theta"] == report["theta"]  # type: ignore[index]
        PipelineConfig.from_dict(pasted).check()

    def test_a_target_out_of_reach_is_said(self, tmp_path: Path) -> None:
        report, shown = calibrated(tmp_path, "--target", "0.99", "--budget", "30")
        assert (report["theta"], report["spec"], report["bound"]) == (None, None, None)
        assert len(report["tested"]) == 1, "nothing is tried after the first that fails"
        assert "No threshold holds a mean recall of at least 0.99" in shown

    def test_what_is_wrong_is_refused(self, tmp_path: Path) -> None:
        given = ["calibrate", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--quiet"]
        with pytest.raises(UsageError, match="one set"):
            invoke(*given, "--set", "covidqa", "--set", "squad_long")
        with pytest.raises(UsageError, match="--per word"):
            invoke(*given, "--per", "word")
        with pytest.raises(UsageError, match="between 0 and 1"):
            invoke(*given, "--target", "80")
