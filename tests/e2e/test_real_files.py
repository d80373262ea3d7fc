"""Real and hostile files through the whole line: nothing crashes, every failure has a reason, every slice is exact."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rag import Index, Pipeline
from rag.config import resolve
from tests.e2e.conftest import Run

pytestmark = pytest.mark.data

QUESTIONS = (
    "What is the term of the agreement?",
    "Which law governs this contract?",
    "What was the net revenue?",
    "How are tables recognised?",
)


def test_the_whole_folder(rag: Callable[..., Run], home: Path, data_dir: Path) -> None:
    done = rag("ingest", str(data_dir / "real_files"), "--index", "idx", "--json")
    assert done.code in (0, 4), done.err
    report = done.json
    files = sum(len(names) for _, _, names in os.walk(data_dir / "real_files"))
    assert report["documents"] + len(report["failed"]) + report["ignored"] == files
    assert all(len(failure["error"]) > 10 for failure in report["failed"])
    assert report["documents"] > 300
    with Index.open(home / "idx") as index:
        for info in index.store.documents():
            document = index.document(info.id)
            for chunk in index.store.chunks_of(info.id):
                assert document.text[chunk.span.start : chunk.span.end] == chunk.text
        pipeline = Pipeline(resolve(index_config=index.manifest()["config"]).config)
        cited = 0
        for question in QUESTIONS:
            for citation in pipeline.ask(question, index).citations:
                text = index.document(citation.doc_id).text
                assert text[citation.span.start : citation.span.end] == citation.text
                cited += 1
        assert cited
    again = rag("ingest", str(data_dir / "real_files"), "--index", "idx", "--json").json
    assert (again["documents"], again["embedded"]) == (0, 0)
    assert len(again["failed"]) == len(report["failed"])
