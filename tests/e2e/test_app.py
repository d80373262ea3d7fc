"""The whole app through Streamlit's own test driver: real script, real index, no browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rag import Pipeline, PipelineConfig
from rag.store.schema import FILE_NAME
from tests.e2e.conftest import ROOT
from tests.unit.test_app_ask import bodies, marked

testing = pytest.importorskip("streamlit.testing.v1", reason="streamlit is not installed (pip install 'chunkwise[ui]')")

QUESTION = "Who approves travel above 5,000 EUR?"


def started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RAG_INDEX", "idx")
    return testing.AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=120).run()


@pytest.fixture
def app(home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    Pipeline(PipelineConfig.from_yaml(home / "rag.yaml")).index(home / "docs", into=home / "idx").close()
    return started(home, monkeypatch)


def test_ask_shows_the_answer_and_opens_the_span(app: Any) -> None:
    assert not app.exception
    assert "4 documents" in app.sidebar.caption[0].value
    app.chat_input[0].set_value(QUESTION).run()
    assert not app.exception
    assert marked(bodies(app), "citation") == ["Travel above 5,000 EUR is approved by the chief financial officer."]
    assert "docs/handbook.md" in bodies(app)
    app.run()  # a rerun keeps the conversation
    assert "chief financial officer" in bodies(app)


def test_the_sidebar_picks_the_run_that_was_asked_last_and_any_other(app: Any) -> None:
    assert not app.sidebar.selectbox
    app.chat_input[0].set_value(QUESTION).run()
    app.chat_input[0].set_value("When do unused days expire?").run()
    picked = app.sidebar.selectbox(key="picked")
    assert picked.options == ["When do unused days expire?", QUESTION]
    assert picked.value == app.session_state["asked"][0]["run_id"]
    first = app.session_state["asked"][1]["run_id"]
    picked.set_value(first).run()
    assert not app.exception
    assert first in app.sidebar.code[0].value


def test_runs_of_the_same_question_are_told_apart(app: Any) -> None:
    for _ in range(3):
        app.chat_input[0].set_value(QUESTION).run()
    picked = app.sidebar.selectbox(key="picked")
    assert len(set(picked.options)) == 3
    oldest = app.session_state["asked"][2]["run_id"]
    picked.set_value(oldest).run()
    app.run()
    assert app.sidebar.selectbox(key="picked").value == oldest


def test_no_answer_is_a_result_of_its_own(app: Any) -> None:
    app.chat_input[0].set_value("Quantum chromodynamics lattice spacing?").run()
    assert not app.exception
    assert "Not found in the documents" in app.info[0].value


def test_the_first_start_ingests_the_sample_documents(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = started(home, monkeypatch)
    assert not app.exception
    assert "23 documents" in app.sidebar.caption[0].value
    app.button(key="example-0").click().run()
    assert "Chief Financial Officer" in marked(bodies(app), "citation")[0]


def test_what_is_wrong_with_an_index_is_told_and_not_raised(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "idx").mkdir()
    (home / "idx" / FILE_NAME).write_bytes(b"no database at all" * 100)
    app = started(home, monkeypatch)
    assert not app.exception
    assert app.error


def test_rag_ui_serves_on_the_loopback_and_tells_nobody(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from app.cli import ui

    started: list[list[str]] = []

    def become(_: str, command: list[str], environment: dict[str, str]) -> None:
        assert environment["RAG_INDEX"] == str(home / "idx")
        started.append(command)
        raise SystemExit(0)

    monkeypatch.setattr(os, "name", "posix")
    monkeypatch.setattr(os, "execve", become)
    with pytest.raises(SystemExit):
        ui(home / "idx", port=8600, headless=True)
    options = dict(zip(started[0][5::2], started[0][6::2], strict=True))
    assert options["--server.address"] == "127.0.0.1"
    assert options["--server.port"] == "8600"
    assert options["--browser.gatherUsageStats"] == "false"
    assert options["--server.maxUploadSize"] == "50"
