"""The view Compression: what was dropped is struck, what is protected is boxed, and nothing is lost in between."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest

from tests.app_views import asked, built, html_of, view_of

pytest.importorskip("streamlit", reason="the app needs streamlit (pip install 'chunkwise[ui]')")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("compression"))


@pytest.fixture(scope="module")
def run(index: Path) -> dict[str, Any]:
    return asked(index, compressor={"use": "sentence-prune", "target": 30})


def _diffs(drawn: str) -> list[str]:
    return re.findall(r'<div data-testid="diff">(.*?</div>)</div>', drawn, flags=re.DOTALL)


def test_before_the_first_question_it_says_what_to_do(tmp_path: Path) -> None:
    page = view_of("compression", built(tmp_path))
    assert "Ask a question" in " ".join(one.value for one in page.markdown)


def test_kept_and_dropped_text_is_the_bubble_and_the_kept_text_the_context(index: Path, run: dict[str, Any]) -> None:
    from rag import Index
    from rag.text import printable

    page = view_of("compression", index, run)
    diffs = _diffs(html_of(page))
    assert len(diffs) == len(run["bubble"]["chunk_ids"])
    with Index.open(index) as opened:
        for shown, chunk_id, pairs in zip(diffs, run["bubble"]["chunk_ids"], run["bubble"]["kept"], strict=True):
            text = opened.document(chunk_id.partition(":")[0]).text
            chosen = "".join(printable(text[start:end], lines=True) for start, end in pairs)
            told = html.unescape(re.sub(r"<[^>]+>", "", shown.replace("[…] not in the bubble", "")))
            assert told.split() == chosen.split()
    assert any("cw-drop" in one for one in diffs)
    assert any("cw-keep" in one for one in diffs)
    assert page.metric[1].value == str(run["context"]["token_count"])
    assert page.metric[3].value == "30"


def test_protected_spans_are_boxed_and_the_boxes_can_be_left_out(index: Path, run: dict[str, Any]) -> None:
    page = view_of("compression", index, run)
    shown = "".join(_diffs(html_of(page)))
    assert re.search(r'<mark class="[^"]*cw-guard[^"]*"[^>]*title="[^"]*(number|unit|entity)[^"]*"', shown)
    page.toggle[0].set_value(False).run()
    assert "cw-guard" not in "".join(_diffs(html_of(page)))
    assert not page.exception


def test_text_of_documents_is_text(index: Path) -> None:
    hostile = asked(index, "Approval of two people?", compressor={"use": "sentence-prune", "rate": 0.9})
    drawn = html_of(view_of("compression", index, hostile))
    assert "&lt;script&gt;" in drawn
    assert "\\u202e" in drawn
    assert "<script>" not in drawn
    assert "<img" not in drawn
    assert "\u202e" not in drawn


def test_without_a_compressor_it_says_how_to_have_one(index: Path) -> None:
    page = view_of("compression", index, asked(index))
    assert "left everything as it was" in page.info[0].value
    assert "use: sentence-prune" in page.code[1].value
    assert page.metric[2].value == "100.0%"


def test_chunks_that_were_left_alone_can_be_hidden(index: Path) -> None:
    page = view_of("compression", index, asked(index))
    page.toggle[1].set_value(True).run()
    assert not page.exception
    assert not _diffs(html_of(page))
