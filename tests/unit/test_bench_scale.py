"""`rag bench scale` on a small store: the shape of its report, and what its figures are made of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("faiss")

from eval.bench import _scale_data, _scale_steps, scale
from eval.bench._report import Settings


@pytest.fixture(scope="module")
def material() -> _scale_data.Material:
    return _scale_data.gather(None, questions=12, seed=0, base=100)


def test_entries_depend_on_their_number_alone(material: _scale_data.Material) -> None:
    one, two = _scale_data.entries(material, 0, 3, 0), _scale_data.entries(material, 2, 1, 0)
    assert one[2].document == two[0].document
    assert all(np.array_equal(one[2].vectors[key], vector) for key, vector in two[0].vectors.items())
    assert one[2].document != _scale_data.entries(material, 2, 1, 1)[0].document
    vectors = np.stack(list(one[0].vectors.values()))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(vectors)), abs=1e-5)
    assert len(one[0].chunks) == _scale_data.CHUNKS_PER_DOCUMENT
    assert "".join(chunk.text for chunk in one[0].chunks) == one[0].document.text


def test_material_survives_the_way_to_a_child(material: _scale_data.Material, tmp_path: Path) -> None:
    _scale_data.save(material, tmp_path)
    again = _scale_data.load(tmp_path)
    assert again.questions == material.questions
    assert np.array_equal(again.asked, material.asked)
    assert np.array_equal(again.base, material.base)


def test_the_steps_in_one_process(material: _scale_data.Material, tmp_path: Path) -> None:
    _scale_data.save(material, tmp_path / "material")
    job = {"store": str(tmp_path / "store"), "material": str(tmp_path / "material"), "chunks": 300, "seed": 0}
    assert _scale_steps.fill(job)["rows_per_second"] > 0
    assert _scale_steps.index(job)["seconds"] > 0
    before = _scale_steps.search(job)
    assert before["recall_at_10"] == 1.0
    ways = {"faiss-dense", "bm25", "hybrid", "raw faiss", "raw fts5", "raw both", "hybrid, filter keeps 10 %"}
    assert ways <= set(before["milliseconds"])
    assert _scale_steps.delete(job)["documents"] == 1
    assert _scale_steps.search(job)["recall_at_10"] == 1.0
    assert _scale_steps.compact(job)["bytes_after"] > 0


def test_raw_looks_up_the_words_that_ours_looks_up(material: _scale_data.Material, tmp_path: Path) -> None:
    _scale_data.save(material, tmp_path / "material")
    job = {"store": str(tmp_path / "store"), "material": str(tmp_path / "material"), "chunks": 100, "seed": 0}
    _scale_steps.fill(job)
    with _scale_steps.Store.open(tmp_path / "store") as store, store.corpus() as corpus:
        searcher = _scale_steps._retriever("bm25", material).open(corpus)
        words = _scale_steps._words_asked(searcher, corpus, material.questions)
        raw = _scale_steps._Raw(store.directory, material, words)
        for question in material.questions:
            assert set(words[question]) <= set(question.split())
            ours = [corpus.rows_of([hit.chunk.id])[0] for hit in searcher.search(question, 5)]
            assert [row for (row,) in raw.lexical(question)][:5] == ours


def test_claims_name_the_largest_size() -> None:
    figures = {"hybrid_p95_over_raw": 1.2, "recall_at_10": 0.979}
    row = {"chunks": 1000, "search": figures, "search after delete": figures, "search after compact": figures}
    claims = scale._claims(row)
    assert [(one["holds"], one["goal"]) for one in claims] == [(True, 1.5), (False, 0.98)] * 3
    assert all("1,000 chunks" in one["claim"] for one in claims)


@pytest.mark.slow
def test_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "_CURVE", (100,))
    monkeypatch.setattr(scale, "_QUESTIONS", 10)
    monkeypatch.setattr(scale, "_data", lambda settings: None)
    report = scale.run(Settings(documents=305, quiet=True))
    assert json.loads(json.dumps(report)) == report
    assert [row["chunks"] for row in report["results"]] == [100, 300]
    assert {"bench", "machine", "versions", "seed", "results", "claims"} <= set(report)
    assert len(report["claims"]) == 6
    assert all(row["search"]["peak_rss_mb_ours"] > 10 for row in report["results"])
