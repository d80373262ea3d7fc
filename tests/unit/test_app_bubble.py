"""The view Bubble: another budget, another ledger, and nothing embedded for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.app_views import asked, built, embedded, html_of, view_of

pytest.importorskip("streamlit", reason="the app needs streamlit (pip install 'chunkwise[ui]')")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("bubble"))


@pytest.fixture(scope="module")
def run(index: Path) -> dict[str, Any]:
    return asked(index)


def test_before_the_first_question_it_says_what_to_do(tmp_path: Path) -> None:
    page = view_of("bubble", built(tmp_path))
    assert not page.slider
    assert "Ask a question" in " ".join(one.value for one in page.markdown)


def test_the_ledger_has_every_decision_and_the_parts_of_its_score(index: Path, run: dict[str, Any]) -> None:
    page = view_of("bubble", index, run)
    rows = page.dataframe[0].value
    assert len(rows) == len(run["bubble"]["decisions"])
    assert page.metric[0].value == str(run["bubble"]["token_count"])
    assert any(name.startswith("part: ") for name in rows.columns)
    assert 'data-testid="budget-bar"' in html_of(page)


def test_a_smaller_budget_changes_the_ledger_and_embeds_nothing(
    index: Path, run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = view_of("bubble", index, run)
    before = page.dataframe[0].value

    read = embedded(monkeypatch)
    page.slider[0].set_value(50).run()
    assert not page.exception
    after, drawn = page.dataframe[0].value, html_of(page)
    assert page.metric[1].value == "50"
    assert int(page.metric[0].value) <= 50
    assert (after["taken"] == "● taken").sum() < (before["taken"] == "● taken").sum()
    assert (after["change"] == "− lost").any()
    assert 'data-testid="ledger-change"' in drawn
    assert "budget: 50" in page.code[1].value
    assert set(read) <= {run["question"]}, "a process that has not asked the question reads it once, and nothing else"
    read.clear()
    for budget in (100, run["bubble"]["budget"], 50):
        page.slider[0].set_value(budget).run()
        assert not page.exception
        assert not read, f"budget {budget} embedded {read}"


def test_lines_can_be_narrowed(index: Path, run: dict[str, Any]) -> None:
    page = view_of("bubble", index, run)
    page.button_group[0].set_value("taken").run()
    assert not page.exception
    assert set(page.dataframe[0].value["taken"]) == {"● taken"}


def test_the_change_column_compares_places_not_lines(run: dict[str, Any]) -> None:
    from app.views.bubble import ledger_rows

    decisions = run["bubble"]["decisions"]
    first = {**decisions[0], "action": "skip-budget"}
    now = {**run, "bubble": {**run["bubble"], "decisions": [*decisions[1:], first]}}
    changes = [row["change"] for row in ledger_rows(run, now)]
    assert changes == [""] * (len(decisions) - 1) + ["− lost"]


def test_a_run_of_a_flow_is_shown_as_it_was(index: Path, run: dict[str, Any]) -> None:
    page = view_of("bubble", index, {**run, "flow": {"name": "crag"}})
    assert not page.slider
    assert "flow" in page.info[0].value
    assert len(page.dataframe) == 1


def test_candidates_that_are_gone_are_told(index: Path, run: dict[str, Any]) -> None:
    gone = {**run["candidates"][0], "chunk_id": "0123456789abcdef:0-9"}
    page = view_of("bubble", index, {**run, "run_id": "gone", "candidates": [gone]})
    page.slider[0].set_value(50).run()
    assert not page.exception
    assert "not in the index any more" in page.warning[0].value
    assert page.metric[1].value == str(run["bubble"]["budget"])
