"""`rag bench query` on tiny texts: ours without a model runs for real, peers are stand-ins; stages, rounds, claims."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from eval.bench import query as bench
from eval.bench._children import Contender
from eval.bench._claims import read_reports
from eval.bench._query_report import COLD, STAGES, claims_of, row_of
from eval.bench._report import Settings
from eval.chunks.data import half_of
from rag.config import PipelineConfig
from rag.errors import RagError, UsageError

PEER = '''"""A peer that greps."""
PACKAGES = ("numpy",)
MODULES = ({module!r},)
SETTINGS = "none"

def load(model, options):
    return None

def ingest(encoder, documents, store):
    store.mkdir()
    for path in documents.iterdir():
        (store / path.name).write_bytes(path.read_bytes())

def searcher(encoder, store):
    def search(question, k):
        {search}
        return [(path.name, path.read_text(), 1.0) for path in sorted(store.iterdir())][:k]
    return search
'''
MODEL_FREE = PipelineConfig(
    embedder="hashing", retriever="bm25", selector={"use": "top-k", "budget": 60}, near_duplicates="off"
)


def peer(folder: Path, name: str, module: str = "json", search: str = "pass") -> Contender:
    path = folder / f"{name}.py"
    path.write_text(PEER.format(module=module, search=search), encoding="utf-8")
    return Contender(name=name, role="peer", module=path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A set with its own name below a data folder; every question names its number."""
    folder = tmp_path / "data" / bench.DATASET
    folder.mkdir(parents=True)
    texts = {f"d{at}": f"The mill {at} has a wheel. The keeper {at} turns it." for at in range(12)}
    rows: dict[str, list[dict[str, Any]]] = {
        "corpus": [{"doc_id": name, "text": text} for name, text in texts.items()],
        "queries": [{"query_id": f"q{at}", "text": f"who turns wheel {at}?", "answers": ["x"]} for at in range(12)],
        "evidence": [{"query_id": f"q{at}", "doc_id": f"d{at}", "start": 0, "end": 10} for at in range(12)],
    }
    for name, found in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return tmp_path / "data"


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rag.embedders._files.find_folder", lambda name: tmp_path)


def settings(data: Path, **changes: Any) -> Settings:
    given: dict[str, Any] = {"data": data, "rounds": 2, "documents": 12, "quiet": True}
    return Settings(**{**given, **changes})


@pytest.mark.usefixtures("no_weights")
def test_a_report_has_every_stage_of_ours_and_the_search_of_the_peers(data: Path, tmp_path: Path) -> None:
    ours = bench.contenders(MODEL_FREE.to_dict())[0]
    field = [ours, peer(tmp_path, "works"), peer(tmp_path, "gone", "no_such_package"),
             peer(tmp_path, "breaks", search="raise ValueError('no')")]  # fmt: skip
    report = bench.run(settings(data), field, questions=3)
    rows = {row["name"]: row for row in report["results"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        "chunkwise": "ok", "works": "ok", "breaks": "failed", "gone": "absent",
    }  # fmt: skip
    assert tuple(rows["chunkwise"]["new"]) == STAGES
    assert list(rows["works"]["again"]) == ["retrieve"]
    parts = sum(rows["chunkwise"]["new"][stage]["wall_ms"]["rounds"][0] for stage in STAGES[:-1])
    assert parts == pytest.approx(rows["chunkwise"]["new"]["ask"]["wall_ms"]["rounds"][0], rel=0.9)
    for row in (rows["chunkwise"], rows["works"]):
        assert len(row["cold"]["rounds"]) == 2
        whole = sum(row["cold"]["rounds"][0][f"{part}_wall_ms"] for part in COLD)
        assert row["cold"]["rounds"][0]["wall_ms"] == pytest.approx(whole)
    assert report["questions"] == 3
    assert report["corpus"]["documents"] == 12
    assert report["versions"]["works"]["numpy"]
    out = tmp_path / "results"
    out.mkdir()
    (out / "query.json").write_text(json.dumps(report), encoding="utf-8")
    assert len(read_reports(out)["query"].claims) == 6, "the house reads its claims"


@pytest.mark.usefixtures("no_weights")
def test_every_round_starts_from_the_store_as_it_was_ingested(data: Path, tmp_path: Path) -> None:
    seen = "(store / 'seen')"
    writes = f"assert not {seen}.exists() or {seen}.read_text() == PROCESS; {seen}.write_text(PROCESS)"
    greedy = peer(tmp_path, "writes", search=writes)
    greedy.module.write_text(f"import os\nPROCESS = str(os.getpid())\n{greedy.module.read_text()}")
    ours = bench.contenders(MODEL_FREE.to_dict())[0]
    report = bench.run(settings(data), [ours, greedy], questions=2)
    assert {row["status"] for row in report["results"]} == {"ok"}


def test_questions_are_of_the_dev_half_about_the_documents_that_are_there(data: Path) -> None:
    name, texts, asked = bench._corpus(settings(data), 40)
    dev = {f"who turns wheel {at}?" for at in range(12) if half_of(f"{bench.DATASET}/q{at}") == "dev"}
    assert set(asked) == dev
    assert bench._corpus(settings(data / name), 40) == (name, texts, asked), "a set may be named itself"
    few = bench._corpus(settings(data, documents=8), 40)
    assert len(few[1]) == 8
    assert all(f"d{question.split()[-1][:-1]}.txt" in few[1] for question in few[2])
    assert bench._corpus(settings(data, seed=1, documents=8), 40)[1] != few[1]
    with pytest.raises(UsageError, match="raise --documents"):
        bench._corpus(settings(data, documents=1), 40)


def test_without_data_the_sample_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "DATASET", "not-there")
    name, texts, asked = bench._corpus(Settings(quiet=True), 5)
    assert name == "sample documents"
    assert texts
    assert len(asked) == 5


@pytest.mark.usefixtures("no_weights")
def test_a_failure_of_ours_ends_the_run(data: Path, tmp_path: Path) -> None:
    broken = replace(peer(tmp_path, "chunkwise", search="raise ValueError('no')"), role="ours")
    with pytest.raises(RagError, match="our own pipeline failed"):
        bench.run(settings(data, rounds=1), [broken], questions=2)


# ------------------------------------------------------------------ arithmetic


def outcome(milliseconds: float, stages: tuple[str, ...]) -> dict[str, Any]:
    phase = {"wall_seconds": milliseconds / 1000, "cpu_seconds": milliseconds / 2000}
    spent = {stage: [[at * milliseconds / 1000, milliseconds / 2000] for at in (1, 1, 9)] for stage in stages}
    return {
        "status": "ok",
        **dict.fromkeys(COLD, phase),
        "new": spent,
        "again": spent,
        "peak_rss_mb": 5.0,
        "versions": {},
    }


def rows_of(ours: list[float], peers: dict[str, list[float]]) -> list[dict[str, Any]]:
    made = [row_of(Contender(name="o", role="ours", module=Path("o")), [outcome(one, STAGES) for one in ours])]
    for name, values in peers.items():
        contender = Contender(name=name, role="peer", module=Path("p"))
        made.append(row_of(contender, [outcome(one, ("retrieve",)) for one in values]))
    return made


def test_ratios_are_paired_by_round_and_taken_to_the_cheapest_peer() -> None:
    rows = rows_of([2.0, 4.0, 8.0], {"slow": [20.0, 40.0, 80.0], "fast": [4.0, 8.0, 4.0]})
    claims = claims_of(rows)
    assert [one["value"] for one in claims[:4]] == [0.5, 0.5, 0.5, 0.5]
    assert all("(fast)" in one["claim"] and one["holds"] for one in claims[:4])
    assert claims[4]["value"] == 4.0
    figures = rows[0]["new"]["ask"]["wall_ms"]
    assert (figures["median"], figures["range"], figures["p95"]) == (4.0, [2.0, 8.0], 36.0)
    assert math.isclose(rows[0]["cold"]["wall_ms"], 16.0)


def test_a_lost_row_is_lost_and_nothing_to_compare_with_never_holds() -> None:
    assert not claims_of(rows_of([9.0], {"fast": [1.0]}))[0]["holds"]
    assert [one["holds"] for one in claims_of(rows_of([9.0], {}))] == [False] * 4 + [True] * 2


def test_the_verb_is_there_and_has_its_options(tmp_path: Path) -> None:
    import typer

    from eval.bench.cli import bench as verb
    from eval.bench.cli import benchmarks

    app = typer.Typer()
    app.command()(verb)
    assert "query" in benchmarks()
    made = CliRunner().invoke(app, ["query", "--out", str(tmp_path / "q.json"), "--length", "3"])
    assert isinstance(made.exception, UsageError)
    assert "rag bench query has no option for lengths" in str(made.exception)
