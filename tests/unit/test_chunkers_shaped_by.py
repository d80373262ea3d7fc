"""What shapes chunks beside parameters is part of what decides whether a file is up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

from rag import Pipeline, PipelineConfig
from rag.errors import ConfigError
from rag.generators.extractive import ExtractiveGenerator
from rag.planning import cutting
from rag.registry import build
from rag.tokens import WordCounter
from tests.contracts.test_chunker import PLUGINS, make


@pytest.mark.parametrize("name", PLUGINS)
def test_without_models_or_files_parameters_say_it_all(name: str) -> None:
    assert make(name, WordCounter(limit=254)).shaped_by == ""


def test_a_changed_query_log_cuts_files_again(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("The mill stands by the stream. Its wheel turns all day. " * 20)
    log = tmp_path / "log.txt"
    log.write_text("Where does the mill stand?\n")
    chunker = {"use": "intent-driven", "sources": ["query-log"], "questions": str(log)}
    config = PipelineConfig.from_dict({"chunker": chunker, "embedder": "hashing", "retriever": "bm25"})

    def written() -> int:
        with Pipeline(config).index(tmp_path / "docs", into=tmp_path / "i") as index:
            assert index.report
            return index.report.documents

    assert [written(), written()] == [1, 0]
    log.write_text("Where does the mill stand?\nWhen does its wheel turn?\n")
    assert [written(), written()] == [1, 0]


def test_a_candidate_hands_on_what_shapes_it(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("Where does the mill stand?\n")
    inner = {"use": "intent-driven", "sources": ["query-log"], "questions": str(log)}
    services = {"counter": WordCounter(limit=254), "embedder": make("semantic", WordCounter(limit=254)).embedder}
    spec = {"use": "metric-selected", "candidates": ["recursive", inner]}
    before = build("chunker", spec, services=services)
    assert before.shaped_by
    log.write_text("Another question?\n")
    after = build("chunker", spec, services=services)
    assert cutting(after, "words", None) != cutting(before, "words", None)


def test_the_model_that_writes_intents_counts_only_when_it_is_asked() -> None:
    services = {"counter": WordCounter(limit=254), "embedder": make("semantic", WordCounter(limit=254)).embedder}
    services["generator"] = ExtractiveGenerator(embedder=services["embedder"])
    asked = build("chunker", {"use": "intent-driven", "sources": ["generator", "heuristic"]}, services=services)
    silent = build("chunker", "intent-driven", services=services)
    assert "ExtractiveGenerator" in asked.shaped_by
    assert silent.shaped_by == ""


def test_an_absent_query_log_is_a_config_error(tmp_path: Path) -> None:
    services = {"counter": WordCounter(limit=254), "embedder": make("semantic", WordCounter(limit=254)).embedder}
    spec = {"use": "intent-driven", "sources": ["query-log"], "questions": str(tmp_path / "absent.txt")}
    with pytest.raises(ConfigError, match="absent"):
        _ = build("chunker", spec, services=services).shaped_by
