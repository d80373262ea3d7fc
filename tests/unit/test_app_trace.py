"""The view Trace: stages, fates of candidates, and text of documents that stays text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.app_views import asked, built, html_of, view_of

pytest.importorskip("streamlit", reason="the app needs streamlit (pip install 'chunkwise[ui]')")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("trace"))


@pytest.fixture(scope="module")
def run(index: Path) -> dict[str, Any]:
    return asked(index, compressor={"use": "sentence-prune", "target": 30})


def test_before_the_first_question_it_says_what_to_do(tmp_path: Path) -> None:
    page = view_of("trace", built(tmp_path))
    assert "Ask a question" in " ".join(one.value for one in page.markdown)


def test_every_stage_has_a_bar_that_starts_where_the_one_before_ended(run: dict[str, Any]) -> None:
    from app.views.trace import waterfall

    trace = [{**one, "seconds": seconds} for one, seconds in zip(run["trace"], (1.0, 2.0, 0.0, 1.0), strict=True)]
    drawn = waterfall({**run, "trace": trace})
    assert [one["stage"] for one in trace] == ["retrieve", "select", "compress", "generate"]
    assert "width:25.00%" in drawn
    assert "width:50.00%" in drawn
    assert "4,000 ms in all" in drawn
    assert drawn.count('class="cw-row"') == 4


def test_each_candidate_has_its_ranks_its_fate_and_the_rule(run: dict[str, Any]) -> None:
    from app.views.trace import candidate_rows

    rows = candidate_rows(run)
    assert len(rows) == len(run["candidates"])
    assert [row["rank"] for row in rows] == sorted(row["rank"] for row in rows)
    chosen, left = set(run["bubble"]["chunk_ids"]), {piece["chunk_id"] for piece in run["context"]["pieces"]}
    for row in rows:
        fate = "●" if row["chunk_id"] in left else "◐" if row["chunk_id"] in chosen else "○"
        assert row["fate"].startswith(fate)
        assert row["rule"]
    assert any(row["cited"] == "[1]" for row in rows)


def test_ranks_of_the_parts_of_a_fusion_are_columns(run: dict[str, Any]) -> None:
    from app.views.trace import candidate_rows

    first = {**run["candidates"][0], "parts": {"dense": 0.5, "dense.rank": 2.0, "bm25": 7.1, "bm25.rank": 1.0}}
    bubble = {**run["bubble"], "hits": []}
    row = candidate_rows({**run, "bubble": bubble, "candidates": [first, *run["candidates"][1:]]})[0]
    assert (row["dense.rank"], row["bm25.rank"], row["dense"]) == (2, 1, 0.5)


def test_the_view_draws_the_run_and_the_text_of_a_candidate(index: Path, run: dict[str, Any]) -> None:
    page = view_of("trace", index, run)
    assert len(page.dataframe[0].value) == len(run["candidates"])
    drawn = html_of(page)
    assert 'data-testid="waterfall"' in drawn
    assert 'data-testid="candidate"' in drawn
    assert "<script>" not in drawn
    assert "<img" not in drawn
    assert "\u202e" not in drawn
    picked = page.selectbox[0]
    travel = next(one for one in picked.options if "travel" in one)
    page = picked.select(travel).run()
    drawn = html_of(page)
    assert not page.exception
    assert "&lt;script&gt;" in drawn
    assert "\\u202e" in drawn
    assert "<script>" not in drawn


def test_candidates_are_filtered_by_fate(index: Path, run: dict[str, Any]) -> None:
    page = view_of("trace", index, run)
    page.button_group[0].set_value([page.button_group[0].options[0]]).run()
    fates = set(page.dataframe[0].value["fate"])
    assert not page.exception
    assert len(fates) == 1
