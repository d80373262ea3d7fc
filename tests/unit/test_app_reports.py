"""The view Reports: the leaderboard, and the way down to one question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rag.errors import InputError

testing = pytest.importorskip("streamlit.testing.v1", reason="streamlit is not installed (pip install 'chunkwise[ui]')")


def measure(mean: float, *, better: str = "higher", proxy: bool = False) -> dict[str, Any]:
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 2, "proxy": proxy, "better": better}


def question(query_id: str, failure: str | None) -> dict[str, Any]:
    text = "Travel above 5,000 EUR is approved by <b>the CFO</b>. Splitting a trip is a breach."
    return {
        "query_id": query_id,
        "question": f"Who approves travel? ({query_id})",
        "answers": [] if failure else ["the CFO"],
        "answer": "" if failure else text[:50],
        "failure": failure,
        "error": None,
        "scores": {"nDCG@10": 0.0 if failure else 1.0, "answer F1": 0.5},
        "evidence": [{"source": "handbook.md", "start": 100, "end": 154, "text": text[:54]}],
        "hits": [{"rank": 1, "source": "handbook.md", "start": 100, "end": 185, "score": 0.9, "gold": not failure}],
        "context": [
            {"source": "handbook.md", "start": 100, "end": 185, "kept": [[100, 154]], "before": "", "text": text,
             "after": ""},
        ],
        "citations": [{"source": "handbook.md", "start": 100, "end": 150}],
    }  # fmt: skip


def report() -> dict[str, Any]:
    def run(label: str, score: float) -> dict[str, Any]:
        return {
            "set": "sample",
            "config": label,
            "chunks": 12,
            "measures": {
                "nDCG@10": measure(score),
                "answer F1": measure(score / 2),
                "number containment": measure(score / 3, proxy=True),
            },
            "curve": [{"tokens": tokens, "recall": score, "low": 0.1, "high": 1.0} for tokens in (200, 400, 800, 1600)],
            "waterfall": [
                {"stage": stage, "value": score, "low": 0.1, "high": 1.0}
                for stage in ("chunk", "retrieve", "select", "compress", "generate")
            ],
            "failures": {"none": 1, "parse": 0, "chunk": 0, "retrieve": 1, "select": 0, "compress": 0, "generate": 0,
                         "error": 0},
            "questions": [question("q1", None), question("q2", "retrieve")],
        }  # fmt: skip

    comparison = {"set": "sample", "measure": "nDCG@10", "a": "default", "b": "top-k"}
    return {
        "format": 1,
        "seed": 0,
        "resamples": 1000,
        "versions": {"chunkwise": "0.1.0"},
        "sets": {"sample": {"documents": 23, "questions": 2, "half": "all", "digests": {}, "has_answers": True}},
        "configs": {"default": {"config": {"retriever": "hybrid"}, "hash": "0"}, "top-k": {"config": {}, "hash": "1"}},
        "runs": [run("top-k", 0.6), run("default", 0.9)],
        "comparisons": [{**comparison, "difference": -0.3, "low": -0.4, "high": -0.2, "p": 0.01, "p_holm": 0.02}],
    }


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "report" / "results.json"
    path.parent.mkdir()
    path.write_text(json.dumps(report()), encoding="utf-8")
    return path


def script() -> None:
    from app.views.reports import show

    show(None)  # type: ignore[arg-type]  # the view reads files only


def html_of(app: Any) -> str:
    return " ".join(one.proto.body for one in app.get("html"))


def test_the_leaderboard_is_ranked_and_a_question_can_be_opened(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(written.parent.parent)
    app = testing.AppTest.from_function(script, default_timeout=30).run()
    assert not app.exception
    shown = html_of(app)
    board = shown[shown.index('data-testid="leaderboard"') :]
    assert board.index("default") < board.index("top-k")
    assert "0.900 [0.850, 0.950]" in board
    assert "number containment (proxy)" in board
    assert "-0.300 [-0.400, -0.200]" in shown
    assert "<b>" not in shown
    assert "&lt;b&gt;the CFO&lt;/b&gt;" in shown
    app.selectbox(key="failure").set_value("retrieve").run()
    assert not app.exception
    assert "(q2)" in html_of(app)
    assert "(q1)" not in html_of(app)
    assert "lost in stage: retrieve" in app.warning[0].value


def test_no_report_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = testing.AppTest.from_function(script, default_timeout=30).run()
    assert not app.exception
    assert "rag eval run" in " ".join(one.value for one in app.markdown)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}', json.dumps({**report(), "runs": []})])
def test_what_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    from app.views.reports import load

    path = tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="no report of rag eval run"):
        load(path)
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "other.json")
