"""The view Compare: what differs stands first, and a wrong config is told, not raised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_app_ask import bodies, idx, script

testing = pytest.importorskip("streamlit.testing.v1", reason="streamlit is not installed (pip install 'chunkwise[ui]')")

__all__ = ["idx"]
QUESTION = "Who approves travel above 5,000 EUR?"


def compared(where: Path) -> Any:
    app = testing.AppTest.from_function(script, args=("compare", str(where)), default_timeout=60).run()
    assert not app.exception
    return app


def test_it_waits_for_a_question_and_then_shows_both(idx: Path) -> None:
    app = compared(idx)
    assert "Nothing to compare yet" in " ".join(one.value for one in app.markdown)
    app.text_input(key="compared").set_value(QUESTION).run()
    assert not app.exception
    page = bodies(app)
    assert 'data-testid="answer-A"' in page
    assert 'data-testid="answer-B"' in page
    rows = page[page.index('data-testid="differences"') :]
    assert "differ" in app.subheader[0].value or "No difference" in app.subheader[0].value
    assert rows.index("answer") < rows.index("milliseconds")
    assert "rag ask" in app.code[-2].value
    assert "retriever" in app.code[-1].value


def test_the_same_pipeline_twice_differs_in_nothing(idx: Path) -> None:
    app = compared(idx)
    app.text_input(key="compared").set_value(QUESTION)
    app.selectbox(key="preset-B").set_value("As the index was built").run()
    assert not app.exception
    assert app.subheader[0].value == "No difference"


@pytest.mark.parametrize(
    ("yaml", "told"),
    [("chunker: sentence", "cannot be changed here"), ("retriever: nonsense", "nonsense"), ("[", "no YAML"),
     ("- a", "expected slots")],
)  # fmt: skip
def test_a_wrong_config_is_told(yaml: str, told: str, idx: Path) -> None:
    app = compared(idx)
    app.text_input(key="compared").set_value(QUESTION)
    app.selectbox(key="preset-B").set_value("My own YAML").run()
    app.text_area(key="yaml-B").set_value(yaml).run()
    assert not app.exception
    assert told in app.error[0].value.replace("\\", "")
    assert 'data-testid="answer-A"' not in bodies(app)


def test_what_differs_stands_first_and_each_side_has_its_own() -> None:
    from app.views.compare import contrasts, only_in

    def run(answer: str, kept: list[list[int]]) -> dict[str, Any]:
        piece = {"chunk_id": "d:0-90", "doc_id": "d", "kept": kept}
        return {"answer": answer, "citations": [], "context": {"token_count": 9, "pieces": [piece]},
                "bubble": {"chunk_ids": ["d:0-90"]}, "candidates": [], "trace": [{"seconds": 0.5}]}  # fmt: skip

    one, two = run("yes", [[0, 10], [20, 30]]), run("no", [[0, 30]])
    rows = contrasts(one, two)
    assert [row[3] for row in rows] == ["differs", *["same"] * 5, "measured"]
    assert rows[0][:3] == ("answer", "yes", "no")
    assert only_in(one, two) == []
    assert only_in(two, one) == [{"chunk_id": "d:0-90", "doc_id": "d", "kept": [[0, 30]]}]
