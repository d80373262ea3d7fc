"""The view KV and attention: hits, repairs and misses of every segment, and plain words where there is nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.app_views import asked, built, html_of, view_of

pytest.importorskip("streamlit", reason="the app needs streamlit (pip install 'chunkwise[ui]')")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("kv"))


@pytest.fixture(scope="module")
def run(index: Path) -> dict[str, Any]:
    return asked(index)


@pytest.fixture(scope="module")
def reused(run: dict[str, Any]) -> dict[str, Any]:
    """As `run`, with the accounts of a model that reused what it could."""
    chunk_id = run["bubble"]["chunk_ids"][0]
    counts = ("tokens", "reused", "repaired", "computed", "bytes")
    rows = [
        {"part": "start", **dict(zip(counts, (80, 80, 0, 0, 4_000_000), strict=True))},
        {"part": "1", "chunk_id": chunk_id, **dict(zip(counts, (100, 90, 10, 10, 5_000_000), strict=True))},
        {"part": "2", "chunk_id": chunk_id, **dict(zip(counts, (50, 0, 0, 50, 0), strict=True))},
        {"part": "question", **dict(zip(counts, (20, 0, 0, 20, 0), strict=True))},
    ]
    stats = {
        **run["stats"],
        **{"prompt_tokens": 250, "reused_tokens": 170, "repaired_tokens": 10, "computed_tokens": 80},
        **{"ttft_seconds": 0.5, "bytes_loaded": 9_000_000, "policy": "chunk", "attention": "sdpa"},
        **{"measured_deviation": 0.0123, "measured_agreement": 0.98},
    }
    trace = [*run["trace"][:-1], {**run["trace"][-1], "notes": {"reuse": "chunk", "segments": rows}}]
    return {**run, "stats": stats, "trace": trace, "prompt": "The prompt.", "run_id": "0000beef"}


def test_before_the_first_question_it_says_what_to_do(tmp_path: Path) -> None:
    page = view_of("kv_attention", built(tmp_path))
    assert "Ask a question" in " ".join(one.value for one in page.markdown)


def test_a_run_without_a_language_model_says_so_and_how_to_have_one(index: Path, run: dict[str, Any]) -> None:
    page = view_of("kv_attention", index, run)
    told = " ".join(one.value for one in page.markdown)
    assert "no prompt with a language model" in told
    assert "no attention" in told
    assert "use: local" in page.code[1].value
    assert "reuse: chunk" in page.code[1].value
    assert "--audit-kv" not in page.code[0].value


def test_every_segment_is_a_hit_a_repair_or_a_miss(index: Path, reused: dict[str, Any]) -> None:
    page = view_of("kv_attention", index, reused)
    drawn = html_of(page)
    timeline = drawn[drawn.index('data-testid="kv-timeline"') :]
    assert timeline.count('class="cw-row"') == 4
    for state in ("hit · 80 tokens · 4.00 MB", "hit, repaired · 100 tokens", "miss · 50 tokens", "miss · 20 tokens"):
        assert state in timeline, state
    for title in ("80 reused", "10 repaired", "50 new"):
        assert title in timeline, title
    assert [one.value for one in page.metric] == ["68 %", "80", "500 ms", "9.00 MB"]
    told = " ".join(one.value for one in (*page.caption, *page.markdown))
    assert "nats a token" in told
    assert "full prefill of this prompt is not among" in told
    assert "dense" in told


def test_a_full_prefill_of_the_same_prompt_is_compared_with(index: Path, reused: dict[str, Any]) -> None:
    from app.desk import Desk, open_desk
    from app.views.kv_attention import full_prefill

    stats = {**reused["stats"], "policy": "none", "computed_tokens": 250, "reused_tokens": 0, "repaired_tokens": 0}
    full = {**reused, "run_id": "feed", "stats": {**stats, "ttft_seconds": 1.0}}
    other = {**full, "run_id": "cafe", "prompt": "Another prompt."}

    sparse = {**full, "run_id": "fade", "stats": {**full["stats"], "attention": "quest, gather"}}

    class Kept(Desk):
        def runs(self) -> list[dict[str, Any]]:
            return [other, sparse, reused, full]

    desk = open_desk(index)
    kept = Kept(**{name: getattr(desk, name) for name in desk.__dataclass_fields__})
    found = full_prefill(kept, reused)
    assert found is full
    assert full_prefill(replace(desk), reused) is None


def test_sparse_attention_is_drawn_where_the_run_tells_of_it(index: Path, reused: dict[str, Any]) -> None:
    stats = {**reused["stats"], "attention": "chunk-block, gather", "density": 0.38}
    told = {
        "selection": "chunk-block",
        "executor": "gather",
        "prefill_density": 0.4,
        "decode_density": 0.25,
        "masks": [{"layer": 3, "rows": [[1, 0], [1, 1]]}],
    }
    rows = [{**row, "read": 0.5} for row in reused["trace"][-1]["notes"]["segments"]]
    last = {**reused["trace"][-1], "notes": {"reuse": "chunk", "segments": rows, "attention": told}}
    run = {**reused, "stats": stats, "trace": [*reused["trace"][:-1], last]}
    drawn = html_of(view_of("kv_attention", index, run))
    assert 'data-testid="attention-density"' in drawn
    assert "25.0% computed" in drawn
    assert "chunk-block" in drawn
    assert "gather" in drawn
    assert "layer 3" in drawn
    assert drawn.count('class="cw-on"') == 3
    assert 'data-testid="attention-segments"' in drawn
    assert "50.0% read" in drawn


def test_what_nobody_read_was_not_loaded(run: dict[str, Any]) -> None:
    from app.views.kv_attention import timeline

    row = {"part": "1", "tokens": 90, "reused": 0, "repaired": 0, "computed": 10, "bytes": 0, "skipped": 80}
    drawn = timeline(run, [row])
    assert "80 read by none and not loaded" in drawn
    assert "not read · 90 tokens" in drawn


def test_without_masks_it_says_so(index: Path, reused: dict[str, Any]) -> None:
    run = {**reused, "stats": {**reused["stats"], "attention": "quest", "density": 0.5}}
    page = view_of("kv_attention", index, run)
    assert "no block masks" in " ".join(one.value for one in page.caption)
