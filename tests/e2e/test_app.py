"""The app through Streamlit's own test driver: real script, real index, no browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from rag import Pipeline, PipelineConfig
from tests.e2e.conftest import ROOT

testing = pytest.importorskip("streamlit.testing.v1", reason="streamlit is not installed (pip install 'chunkwise[ui]')")


@pytest.fixture
def app(home: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(home)
    config = PipelineConfig.from_yaml(home / "rag.yaml")
    Pipeline(config).index("docs", into=home / "idx").close()
    monkeypatch.setenv("RAG_INDEX", str(home / "idx"))
    return testing.AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60)


def test_ask_shows_the_answer_and_opens_the_span(app) -> None:  # type: ignore[no-untyped-def]
    app.run()
    assert not app.exception
    assert "4 documents" in app.caption[0].value
    app.chat_input[0].set_value("Who approves travel above 5,000 EUR?").run()
    assert not app.exception
    shown = " ".join(text.value for text in app.markdown)
    assert "chief financial officer" in shown
    assert "docs/handbook.md" in app.expander[0].label
    app.run()  # a rerun keeps the conversation
    assert "chief financial officer" in " ".join(text.value for text in app.markdown)


def test_no_answer_is_a_result_of_its_own(app) -> None:  # type: ignore[no-untyped-def]
    app.run()
    app.chat_input[0].set_value("Quantum chromodynamics lattice spacing?").run()
    assert not app.exception
    assert "Not found in the documents" in app.info[0].value
