"""The view Ask: answers with marks that open their span, doubts, and "not found"; nothing of a document is markup."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest

from rag import Index, Pipeline, PipelineConfig
from tests.e2e.conftest import CONFIG, FILES

testing = pytest.importorskip("streamlit.testing.v1", reason="streamlit is not installed (pip install 'chunkwise[ui]')")

HOSTILE = (
    "The xylophone rule says <b>seven</b> <script>alert(1)</script> ![x](http://evil.example/x.png) "
    "[link](javascript:x) a\u202egnp.exe."
)


def script(view: str, directory: str) -> None:
    from importlib import import_module

    from app.desk import open_desk

    import_module(f"app.views.{view}").show(open_desk(directory))


@pytest.fixture
def idx(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "handbook.md").write_text(FILES["handbook.md"], encoding="utf-8")
    (tmp_path / "docs" / "hostile.txt").write_text(HOSTILE, encoding="utf-8")
    (tmp_path / "rag.yaml").write_text(CONFIG)
    config = PipelineConfig.from_yaml(tmp_path / "rag.yaml")
    Pipeline(config).index(tmp_path / "docs", into=tmp_path / "idx").close()
    return tmp_path / "idx"


def bodies(app: Any) -> str:
    return "\n".join(one.proto.body for one in app.get("html"))


def marked(page: str, test_id: str) -> list[str]:
    """The texts of the marks inside of the blocks with this id."""
    blocks = re.findall(rf'data-testid="{test_id}">(.*?)</div>', page, re.DOTALL)
    return [
        html.unescape(text) for block in blocks for text in re.findall(r"<mark[^>]*>(.*?)</mark>", block, re.DOTALL)
    ]


def test_an_answer_links_each_mark_to_the_exact_span(idx: Path) -> None:
    app = testing.AppTest.from_function(script, args=("ask", str(idx)), default_timeout=60).run()
    assert not app.exception
    app.chat_input[0].set_value("Who approves travel above 5,000 EUR?").run()
    assert not app.exception
    page = bodies(app)
    (run,) = app.session_state["asked"]
    with Index.open(idx) as index:
        cited = [index.document(one["doc_id"]).text[one["start"] : one["end"]] for one in run["citations"]]
    assert cited
    assert marked(page, "citation") == cited
    for one in run["citations"]:
        assert page.count(f'href="#source-1-{one["mark"]}"') == 1
        assert page.count(f' id="source-1-{one["mark"]}"') == 1
    app.run()  # a rerun keeps the conversation and asks nothing
    assert bodies(app) == page
    assert len(app.session_state["asked"]) == 1
    with Index.open(idx) as index:
        assert len(index.store.runs()) == 1


def test_the_newest_answer_stands_first(idx: Path) -> None:
    app = testing.AppTest.from_function(script, args=("ask", str(idx)), default_timeout=60).run()
    app.chat_input[0].set_value("Who approves travel above 5,000 EUR?").run()
    app.chat_input[0].set_value("When do unused days expire?").run()
    assert [run["question"][:4] for run in app.session_state["asked"]] == ["When", "Who "]
    assert "expire in March" in bodies(app).split('data-testid="answer"')[1]


def test_not_found_is_a_result_and_shows_what_came_closest(idx: Path) -> None:
    app = testing.AppTest.from_function(script, args=("ask", str(idx)), default_timeout=60).run()
    app.chat_input[0].set_value("Quantum chromodynamics lattice spacing?").run()
    assert not app.exception
    assert "Not found in the documents" in app.info[0].value
    assert 'data-testid="answer"' not in bodies(app)


def test_hostile_text_is_text(idx: Path) -> None:
    app = testing.AppTest.from_function(script, args=("ask", str(idx)), default_timeout=60).run()
    app.chat_input[0].set_value("What does the xylophone rule say?").run()
    assert not app.exception
    page = bodies(app)
    assert "&lt;b&gt;seven&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "<script" not in page
    assert "<img" not in page
    assert "\u202e" not in page
    assert "\\u202e" in page
    assert not any("evil.example" in one.value for one in app.markdown)


def test_a_sentence_without_support_has_a_wavy_line() -> None:
    from app.views.ask import answer_html

    text = "Travel is approved [1]. The moon <i>is</i> cheese [7]."
    run = {"answer": text, "citations": [{"mark": 1}], "sentences": [[0, 23], [24, 54]], "supported": [True, False]}
    made = answer_html(run, "3")
    assert re.findall(r'<mark class="cw-doubt"[^>]*>(.*?)</mark>', made) == [
        "The moon &lt;i&gt;is&lt;/i&gt; cheese [7]."
    ]
    assert 'href="#source-3-1"' in made
    assert "#source-3-7" not in made


def test_a_citation_of_a_lost_version_shows_its_words(idx: Path) -> None:
    app = testing.AppTest.from_function(script, args=("ask", str(idx)), default_timeout=60).run()
    app.chat_input[0].set_value("Who approves travel above 5,000 EUR?").run()
    cited = app.session_state["asked"][0]["citations"][0]["text"]
    (idx.parent / "docs" / "handbook.md").write_text("# Handbook\n\nNothing.", encoding="utf-8")
    config = PipelineConfig.from_yaml(idx.parent / "rag.yaml")
    Pipeline(config).index(idx.parent / "docs", into=idx).close()
    app.run()
    assert not app.exception
    assert "not in the index any more" in bodies(app)
    assert marked(bodies(app), "citation") == [cited]


def test_the_first_page_offers_questions_and_they_work(idx: Path) -> None:
    app = testing.AppTest.from_function(script, args=("ask", str(idx)), default_timeout=60).run()
    app.button(key="example-0").click().run()
    assert not app.exception
    assert "chief financial officer" in bodies(app).lower()
    assert not app.button
