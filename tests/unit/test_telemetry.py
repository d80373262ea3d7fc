"""Spans of a run in an in-memory exporter; and nothing at all without the package."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rag import Pipeline
from rag.config import PipelineConfig
from rag.errors import UsageError

CONFIG = {"embedder": "hashing", "retriever": "bm25", "generator": {"use": "extractive", "min_support": 0.2}}
TEXT = "# Travel\n\nTravel above 5,000 EUR is approved by the chief financial officer.\n"


@pytest.fixture(scope="module")
def memory() -> Any:
    """The exporter of a provider that is set once: OpenTelemetry lets nobody set a second one."""
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(memory: Any) -> Iterator[Any]:
    memory.clear()
    yield lambda: {span.name: span for span in memory.get_finished_spans()}
    memory.clear()


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "handbook.md").write_text(TEXT)
    return tmp_path / "docs"


def test_every_stage_has_a_span_inside_that_of_the_answer(spans: Any, docs: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(PipelineConfig.from_dict(CONFIG))
    with pipeline.index(docs, tmp_path / "idx") as index:
        answer = pipeline.ask("Who approves travel?", index)
    found = spans()
    assert set(found) == {
        "rag.ingest_batch", "invoke_workflow rag.ask", "retrieval bm25", "rag.select", "rag.compress",
        "chat extractive",
    }  # fmt: skip
    whole = found["invoke_workflow rag.ask"]
    for name in ("retrieval bm25", "rag.select", "rag.compress", "chat extractive"):
        assert found[name].parent.span_id == whole.context.span_id, name
        assert whole.start_time <= found[name].start_time <= found[name].end_time <= whole.end_time, name
    assert found["retrieval bm25"].attributes["gen_ai.operation.name"] == "retrieval"
    assert found["retrieval bm25"].attributes["openinference.span.kind"] == "RETRIEVER"
    assert found["retrieval bm25"].attributes["rag.items_out"] == len(answer.candidates)
    assert found["chat extractive"].attributes["gen_ai.operation.name"] == "chat"
    assert whole.attributes["rag.run_id"] == answer.run_id
    assert found["rag.ingest_batch"].attributes["rag.files"] == 1


def test_questions_answered_in_a_row_have_their_stages_too(spans: Any, docs: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(PipelineConfig.from_dict(CONFIG))
    with pipeline.index(docs, tmp_path / "idx") as index:
        list(pipeline.ask_many(["Who approves travel?"], index))
    assert {"retrieval bm25", "rag.select", "rag.compress", "chat extractive"} <= set(spans())


def test_an_error_is_on_its_span(spans: Any, docs: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(PipelineConfig.from_dict(CONFIG))
    with pipeline.index(docs, tmp_path / "idx") as index, pytest.raises(UsageError):
        pipeline.ask("   ", index)
    assert spans()["invoke_workflow rag.ask"].status.status_code.name == "ERROR"


def test_the_question_is_no_attribute_unless_asked_for(
    spans: Any, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(PipelineConfig.from_dict(CONFIG))
    with pipeline.index(docs, tmp_path / "idx") as index:
        pipeline.ask("Who approves travel?", index)
        assert not any("approves" in str(span.attributes) for span in spans().values())
        monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
        pipeline.search("Who approves travel?", index=index)
    assert spans()["retrieval bm25"].attributes["gen_ai.retrieval.query.text"] == "Who approves travel?"


def test_the_path_of_an_index_gives_one_span_not_two(spans: Any, docs: Path, tmp_path: Path, memory: Any) -> None:
    pipeline = Pipeline(PipelineConfig.from_dict(CONFIG))
    pipeline.index(docs, tmp_path / "idx").close()
    memory.clear()
    pipeline.search("travel", tmp_path / "idx")
    assert [span.name for span in memory.get_finished_spans()] == ["retrieval bm25"]


def test_without_the_package_everything_works_and_nothing_is_loaded(docs: Path, tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["opentelemetry"] = None
from rag import Pipeline
from rag.config import PipelineConfig
pipeline = Pipeline(PipelineConfig.from_dict({CONFIG!r}))
index = pipeline.index({str(docs)!r}, {str(tmp_path / "idx")!r})
print(pipeline.ask("Who approves travel?", index).text)
assert not [name for name in sys.modules if name.startswith("opentelemetry.")]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "chief financial officer" in done.stdout
