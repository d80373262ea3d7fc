"""Report shape and claims arithmetic of `rag bench ingest`, with canned measurements and no model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import eval.bench.ingest as bench
from eval.bench._children import Contender
from eval.bench._report import Settings, claim, machine, medians, table
from rag.errors import RagError, UsageError

TEXT = "".join(f"Fact number {number} is written on this line.\n" for number in range(60))


def field(*names: str) -> list[Contender]:
    """The first is ours; a name with bf16 is an extra row."""
    roles = ["ours", *("extra" if "bf16" in name else "peer" for name in names[1:])]
    return [
        Contender(
            name=name, role=role, module=Path(f"{name}.py"), options={"dtype": "bfloat16"} if "bf16" in name else {}
        )
        for name, role in zip(names, roles, strict=True)
    ]


def measured(cpu: float) -> dict[str, Any]:
    phase = {"cpu_seconds": cpu, "wall_seconds": 2 * cpu}
    figures = {"chunks": 9, "peak_rss_mb": 50.0, "disk_bytes": 1000, "versions": {"x": "1"}}
    return {"status": "ok", "imports": phase, "load": phase, "work": phase, **figures}


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Answers in place of child processes: `speeds` name -> CPU seconds per round, `found` name -> retrieve result."""
    speeds: dict[str, list[Any]] = {}
    found: dict[str, dict[str, Any]] = {}
    absent: dict[str, dict[str, Any]] = {}

    def interleave(contenders, job, *, rounds, threads, tell):
        if job["task"] == "ingest":
            return {
                one.name: [s if isinstance(s, dict) else measured(s) for s in speeds[one.name]] for one in contenders
            }
        return {one.name: [{**measured(1.0), "found": found[one.name]}] for one in contenders}

    def find_pythons(contenders, pythons, threads):
        return [one for one in contenders if one.name not in absent], absent

    monkeypatch.setattr(bench, "interleave", interleave)
    monkeypatch.setattr("eval.bench._quality.interleave", interleave)
    monkeypatch.setattr(bench, "find_pythons", find_pythons)
    monkeypatch.setattr("rag.embedders._files.find_folder", lambda model: tmp_path)
    folder = tmp_path / "data" / "chroma_chunking"
    folder.mkdir(parents=True)
    rows = {
        "corpus": [{"doc_id": "facts", "text": TEXT}],
        "queries": [{"query_id": "1", "text": "Which fact?"}, {"query_id": "2", "text": "And then?"}],
        "evidence": [
            {"query_id": "1", "doc_id": "facts", "start": 0, "end": 10},
            {"query_id": "2", "doc_id": "facts", "start": 100, "end": 120},
        ],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = Settings(data=tmp_path / "data", documents=1, rounds=3, quiet=True)
    return speeds, found, absent, settings


def test_the_speed_claim_is_the_median_of_paired_ratios_to_the_best_peer(canned) -> None:
    speeds, _, _, settings = canned
    speeds |= {"ours": [1.0, 2.0, 1.0], "slow": [9.0, 9.0, 9.0], "fast": [3.0, 4.0, 2.0], "bf16": [1.0, 1.0, 0.8]}
    settings = Settings(**{**vars_of(settings), "quality": False})
    report = bench.run(settings, field("ours", "slow", "fast", "bf16"))
    rows = {row["name"]: row for row in report["results"]}
    assert rows["fast"]["ours_over_this"] == {"rounds": [3.0, 2.0, 2.0], "median": 2.0}
    assert rows["ours"]["median"]["cpu_seconds"] == 1.0
    assert rows["fast"]["median"]["documents_per_cpu_second"] == pytest.approx(1 / 3)
    assert report["claims"] == [
        {
            "claim": "documents per CPU second over the best peer (fast)",
            "value": 2.0,
            "goal": 2.5,
            "better": "higher",
            "holds": False,
        },
        {
            "claim": "documents per CPU second over bf16",
            "value": 0.8,
            "goal": 1.0,
            "better": "higher",
            "holds": False,
        },
    ]


def vars_of(settings: Settings) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(settings)


def test_recall_rows_and_claims(canned) -> None:
    speeds, found, _, settings = canned
    speeds |= {"ours": [1.0], "peer": [3.0]}
    found["ours"] = {
        "chunks": [["facts.txt", 0, 50], ["facts.txt", 90, 110], ["facts.txt", 200, 300]],
        "hits": {"dense": [[0], [2]], "default": [[0, 2], [1, 0]]},
    }
    found["peer"] = {
        "chunks": [["facts.txt", TEXT[0:5]], ["facts.txt", "not in the text"], ["facts.txt", TEXT[85:135]]],
        "hits": {"dense": [[0, 1], [2]]},
    }
    report = bench.run(settings, field("ours", "peer"))
    rows = {(row["name"], row["ranking"]): row for row in report["results"] if row["measure"] == "recall@5"}
    assert rows["ours", "dense"]["recall"] == 0.5  # 10 of 10, 0 of 20
    assert rows["ours", "default"]["recall"] == 0.75  # 10 of 10, 10 of 20
    assert rows["peer", "dense"]["recall"] == 0.75  # 5 of 10, 20 of 20
    assert rows["peer", "dense"]["chunks_not_found"] == 1
    assert rows["ours", "default"]["context_characters"] == (150 + 70) / 2
    holds = {one["claim"]: (one["value"], one["goal"], one["holds"]) for one in report["claims"][1:]}
    assert holds == {
        "recall@5, dense ranking, at least that of the best peer (peer)": (0.5, 0.75, False),
        "recall@5, default ranking, at least that of the best peer (peer)": (0.75, 0.75, True),
    }


def test_only_five_chunks_count_and_the_budget_cuts_deeper_ones(canned) -> None:
    speeds, found, _, settings = canned
    speeds |= {"ours": [1.0]}
    places = [["facts.txt", 1000 + 10 * at, 1010 + 10 * at] for at in range(5)] + [["facts.txt", 0, 200]]
    found["ours"] = {"chunks": places, "hits": {"dense": [[0, 1, 2, 3, 4, 5]] * 2}}
    report = bench.run(settings, field("ours"))
    row = report["results"][-1]
    assert row["recall"] == 0.0
    assert row["recall_within_4000_characters"] == 1.0


def test_absent_peers_are_named_and_no_claim_holds_without_one(canned) -> None:
    speeds, found, absent, settings = canned
    speeds |= {"ours": [1.0]}
    found["ours"] = {"chunks": [["facts.txt", 0, 50]], "hits": {"dense": [[0], [0]]}}
    absent["gone"] = {"status": "absent", "reason": "No module named 'gone'"}
    report = bench.run(settings, field("ours", "gone"))
    gone = {"name": "gone", "measure": "ingest", "status": "absent", "reason": "No module named 'gone'"}
    assert gone in report["results"]
    assert [(one["value"], one["holds"]) for one in report["claims"]] == [(None, False), (None, False)]


def test_a_peer_that_crashes_is_a_row_but_our_own_crash_is_an_error(canned) -> None:
    speeds, _, _, settings = canned
    settings = Settings(**{**vars_of(settings), "quality": False})
    speeds |= {"ours": [1.0], "peer": [{"status": "failed", "reason": "boom", "disk_bytes": 0}]}
    row = bench.run(settings, field("ours", "peer"))["results"][1]
    assert (row["status"], row["reason"]) == ("failed", "boom")
    speeds["ours"] = speeds["peer"]
    with pytest.raises(RagError, match="boom"):
        bench.run(settings, field("ours", "peer"))


def test_the_report_has_the_agreed_keys_and_is_json(canned) -> None:
    speeds, _, _, settings = canned
    speeds |= {"ours": [1.0, 1.0], "peer": [3.0, 3.0]}
    report = bench.run(Settings(**{**vars_of(settings), "quality": False}), field("ours", "peer"))
    assert {"bench", "machine", "versions", "seed", "results", "claims"} <= set(report)
    assert json.loads(json.dumps(report)) == report
    assert report["bench"] == "ingest"
    assert report["versions"] == {"ours": {"x": "1"}, "peer": {"x": "1"}}
    assert {"cpu", "cores", "flags", "threads", "load_before"} <= set(report["machine"])
    assert all(set(one) == {"claim", "value", "goal", "better", "holds"} for one in report["claims"])


def test_without_public_data_the_documents_are_made_up(canned, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds, _, _, settings = canned
    speeds |= {"ours": [1.0]}
    monkeypatch.setattr(bench, "DATASET", "no-such-set")
    with pytest.raises(UsageError, match="no-such-set"):
        bench.run(settings, field("ours"))
    report = bench.run(Settings(**{**vars_of(settings), "data": None, "documents": 5}), field("ours"))
    assert "generated" in report["corpus"]
    assert report["results"][0]["documents"] == 5


def test_the_contenders_are_files_that_import_nothing_of_ours() -> None:
    import ast

    asked = bench.contenders()
    assert [one.role for one in asked].count("ours") == 1
    for path in {one.module for one in asked if one.role != "ours"} | {Path(bench.__file__).parent / "peers/_drive.py"}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {"rag", "eval", "chunkers", "retrievers", "compressors"}


def test_claims_and_tables() -> None:
    assert claim("x", 2.0, 2.0, "higher")["holds"]
    assert claim("x", 2.0, 2.0, "lower")["holds"]
    assert not claim("x", 1.9, 2.0, "higher")["holds"]
    assert not claim("x", None, 0.0, "lower")["holds"]
    assert medians([{"a": 1.0}, {"a": 5.0}, {"a": 2.0}]) == {"a": 2.0}
    assert table(["name", "n"], [["a", 1.5], ["bb", None]]) == "name     n\na     1.50\nbb       -"
    assert machine()["cores"] >= 1


def test_the_command_is_light_and_names_the_benchmarks() -> None:
    code = "import sys, eval.bench.cli; print({'numpy', 'torch', 'rich', 'yaml', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_command_writes_the_report(canned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from rag.cli.main import app

    monkeypatch.setattr(bench, "run", lambda settings: {"bench": "ingest", "rounds": settings.rounds})
    out = tmp_path / "report.json"
    done = CliRunner().invoke(app, ["bench", "ingest", "--out", str(out), "--rounds", "2", "--json", "-q"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == json.loads(out.read_text()) == {"bench": "ingest", "rounds": 2}


def test_an_unknown_benchmark_or_folder_is_a_usage_error(tmp_path: Path) -> None:
    from rag.cli.main import app

    done = CliRunner().invoke(app, ["bench", "nope", "--out", str(tmp_path / "x.json")])
    assert isinstance(done.exception, UsageError)
    assert "ingest" in str(done.exception)
    done = CliRunner().invoke(app, ["bench", "ingest", "--out", str(tmp_path / "no" / "x.json")])
    assert isinstance(done.exception, UsageError)
