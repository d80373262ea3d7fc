"""`rag eval peers`: the driver, places, the shared reader, and the report that hides no loss."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.bench._children import Contender
from eval.bench._claims import read_reports
from eval.datasets import Dataset, DatasetQuestion
from eval.peers.measuring import PEERS, Measured, contenders, measure
from eval.peers.reading import places_of, read_all
from eval.peers.report import markdown, report_of
from eval.peers.run import OURS, PLAIN, Compared, PeerSettings
from rag.config import PipelineConfig
from rag.errors import UsageError

TEXTS = {
    "a.txt": "Travel above 5,000 EUR is approved by the chief financial officer.\n\nTea is free on Mondays.",
    "b.txt": "Receipts are handed in within thirty days.",
}
QUESTION = "Who approves travel above 5,000 EUR?"
SET = Dataset(
    name="tiny",
    texts=TEXTS,
    questions=(DatasetQuestion(text=QUESTION, id="q1", evidence=(("a.txt", 0, 66),), answers=("officer",)),),
)
FAKE = """
import json, time
PACKAGES, MODULES, SETTINGS = ("pip",), ("json",), "paragraphs in a file"
def load(model, options): return options
def ingest(encoder, documents, store):
    if encoder.get("broken"): raise RuntimeError("out of paper")
    store.mkdir(parents=True, exist_ok=True)
    old = json.loads((store / "rows.json").read_text()) if (store / "rows.json").exists() else []
    for path in sorted(documents.glob("*")):
        old += [[path.name, part] for part in path.read_bytes().decode().split("\\n\\n")]
        (store / "rows.json").write_text(json.dumps(old))
        while store.name == "killed" or time.process_time() < 0.5: pass
def rows(encoder, store): return [tuple(row) for row in json.loads((store / "rows.json").read_text())]
def searcher(encoder, store):
    found = rows(encoder, store)
    return lambda question, k: [(*row, 1 / (1 + at)) for at, row in enumerate(found[:k])]
"""


def fake(folder: Path, **options: Any) -> Contender:
    path = folder / "rag_fake.py"
    path.write_text(FAKE, encoding="utf-8")
    return Contender(name="fake", role="peer", module=path, python=sys.executable, options=options)


def measured(contender: Contender, cache: Path, told: list[str], upkeep: bool = False) -> Measured:
    return measure(contender, SET, model="", cache=cache, threads=1, upkeep=upkeep, tell=told.append)


def test_a_framework_is_measured_once_and_then_read(tmp_path: Path) -> None:
    told: list[str] = []
    first = measured(fake(tmp_path), tmp_path / "cache", told, upkeep=True)
    steps = len(told)
    assert first.failed is None
    assert first.costs is not None
    assert [list(row) for row in first.entries] == [
        [name, part] for name in TEXTS for part in TEXTS[name].split("\n\n")
    ]
    assert first.costs["entries"] == 3
    assert first.costs["again_entries"] == 6
    assert first.costs["kept_share"] == 0.5  # killed after its first document
    assert steps
    assert measured(fake(tmp_path), tmp_path / "cache", told, upkeep=True) == Measured(
        **json.loads(json.dumps(vars(first)))
    )
    assert len(told) == steps


def test_a_failure_says_why_and_is_tried_again(tmp_path: Path) -> None:
    told: list[str] = []
    for _ in range(2):
        assert "out of paper" in str(measured(fake(tmp_path, broken=True), tmp_path / "cache", told).failed)
    assert len(told) == 2


def test_places_are_exact_or_unknown() -> None:
    entries = [("a.txt", "Travel above"), ("a.txt", "altered text"), ("a.txt", "Tea is free"), ("b.txt", "Receipts")]
    assert places_of(entries, TEXTS) == [("a.txt", 0, 12), None, ("a.txt", 68, 79), ("b.txt", 0, 8)]
    assert places_of([("a.txt", 3, 9)], TEXTS) == [("a.txt", 3, 9)]


def reader(budget: int = 800) -> PipelineConfig:
    changes: dict[str, Any] = {"embedder": "hashing", "selector": {"use": "top-k", "budget": budget}}
    return PipelineConfig.default().merged(changes, where="test")


@pytest.mark.parametrize(("order", "recall"), [([0, 1, 2], 1.0), ([2, 2, 1], 0.0)])
def test_chunks_are_read_in_their_order_into_the_budget(tmp_path: Path, order: list[int], recall: float) -> None:
    entries = [[name, part] for name in TEXTS for part in TEXTS[name].split("\n\n")]
    found = Measured(name="fake", entries=entries, hits=[[(number, 1.0) for number in order]])
    run = read_all(found, SET, reader(), tmp_path)
    assert run.chunks == 3
    assert run.questions[0].scores["span_recall"] == recall
    assert len(run.questions[0].row["hits"]) == len(set(order))  # a duplicate takes no room twice
    small = read_all(found, SET, reader(budget=1), tmp_path)
    assert small.questions[0].scores["context_chunks"] == 0


def test_altered_chunks_and_failed_frameworks_score_zero(tmp_path: Path) -> None:
    lower = Measured(name="fake", entries=[["a.txt", TEXTS["a.txt"].lower()]], hits=[[(0, 1.0)]])
    broken = Measured(name="fake", failed="out of paper")
    for one in (lower, broken):
        scores = read_all(one, SET, reader(), tmp_path).questions[0].scores
        assert scores["span_recall"] == scores["recall@800"] == 0.0


def results(ours: float, theirs: float) -> dict[str, Any]:
    """As of `rag eval run`, with the same mean for every measure; differences are b minus a."""
    names = ("recall@800", "span_recall", "answer_in_context", "f1", "citation_recall")
    means = {OURS: ours, PLAIN: theirs, "fake": theirs}
    return {
        "versions": {},
        "sets": {"tiny": {"questions": 1, "documents": 2, "half": "all"}},
        "configs": {
            OURS: {"config": {}, "hash": "0"},
            PLAIN: {"config": {}, "hash": "1"},
            "fake": {"config": {"settings": "a file"}, "hash": "2"},
        },
        "runs": [
            {"set": "tiny", "config": label, "measures": {key: {"mean": at, "low": 0.0, "high": 1.0} for key in names}}
            for label, at in means.items()
        ],
        "comparisons": [
            {"set": "tiny", "measure": name, "a": label, "b": "fake", "difference": theirs - means[label],
             "low": theirs - means[label] - 0.01, "high": theirs - means[label] + 0.01, "p_holm": 0.5}
            for name in names for label in (OURS, PLAIN)
        ],
    }  # fmt: skip


def compared(ours: float, theirs: float, costs: dict[str, float], peer_costs: dict[str, float]) -> Compared:
    pairs = {OURS: costs, "fake": peer_costs}
    return Compared(
        settings=PeerSettings(datasets=(SET,), cache=Path(), budgets=(800,)), results={800: results(ours, theirs)},
        measured={("tiny", name): Measured(name=name, costs=found) for name, found in pairs.items()},
        absent={"other": "no module named other"}, load=(1.0, 1.0), seconds=1.0,
    )  # fmt: skip


def test_every_lost_row_is_shown_as_lost(tmp_path: Path) -> None:
    cheap, dear = {"ingest_cpu_seconds": 1.0, "kept_share": 0.5}, {"ingest_cpu_seconds": 2.0, "kept_share": 0.0}
    report = report_of(compared(0.5, 0.8, dear, cheap))
    lost = [one for one in report["claims"] if not one["holds"]]
    text = markdown(report)
    assert len(report["claims"]) == 11
    assert len(lost) == 7
    assert text.count("**lost** |") == 7
    assert "no module named other" in text
    (tmp_path / "peers.json").write_text(json.dumps(report), encoding="utf-8")
    assert len(read_reports(tmp_path)["peers"].lost) == 7
    assert report["quality"][0]["differences"][OURS]["mean"] == pytest.approx(-0.3)


def test_a_won_row_is_won_and_nothing_of_the_data_is_in_the_report() -> None:
    cheap, dear = {"ingest_cpu_seconds": 1.0}, {"ingest_cpu_seconds": 2.0}
    report = report_of(compared(0.9, 0.8, cheap, dear))
    assert all(one["holds"] for one in report["claims"])
    assert "lost** |" not in markdown(report)
    assert not any(words in json.dumps(report) for words in (QUESTION, *TEXTS.values()))


def test_what_was_measured_for_a_peer_and_not_for_ours_is_lost() -> None:
    report = report_of(compared(0.8, 0.8, {}, {"ingest_cpu_seconds": 2.0}))
    assert [one["claim"] for one in report["claims"] if not one["holds"]] == ["tiny: ingest, CPU s, against fake"]
    assert "| **lost** |" in markdown(report)


def test_settings_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--peer nobody"):
        PeerSettings(datasets=(SET,), cache=tmp_path, peers=("nobody",))
    with pytest.raises(UsageError, match="--upkeep other"):
        PeerSettings(datasets=(SET,), cache=tmp_path, upkeep=("other",))
    with pytest.raises(UsageError, match="documents are files"):
        PeerSettings(datasets=(Dataset(name="files", questions=SET.questions, folder=tmp_path),), cache=tmp_path)


def test_every_peer_has_its_file() -> None:
    field = contenders()
    assert [one.name for one in field] == [OURS, *PEERS]
    assert all(one.module.is_file() for one in field)
    assert [one.role for one in field] == ["ours", *["peer"] * len(PEERS)]


def test_a_framework_that_has_stored_nothing_has_failed_and_scores_no_zeros(tmp_path: Path) -> None:
    nothing = fake(tmp_path)
    nothing.module.write_text(FAKE.replace("old += ", "_ = "), encoding="utf-8")
    found = measured(nothing, tmp_path / "cache", [])
    assert found.failed is not None
    assert "none of 2 documents" in found.failed
