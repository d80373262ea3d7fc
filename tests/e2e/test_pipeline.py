"""The Python door: idempotent, resumable, offline, and counted."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rag import Pipeline, PipelineConfig
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError, IndexDamagedError
from tests.e2e.test_cli import dump

CONFIG = PipelineConfig.from_dict(
    {"embedder": "hashing", "retriever": "hybrid", "generator": {"use": "extractive", "min_support": 0.3}}
)


@dataclass(frozen=True, kw_only=True)
class CountingEmbedder(HashingEmbedder):
    """The hashing embedder, with a list of what it was given, that can die after so many calls."""

    calls: list[list[str]] = field(default_factory=list)
    dies_after: int = 10**9

    def embed(self, texts: Sequence[str]):  # type: ignore[no-untyped-def]
        if len(self.calls) >= self.dies_after:
            raise KeyboardInterrupt
        self.calls.append(list(texts))
        return super().embed(texts)


def with_embedder(embedder: HashingEmbedder) -> Pipeline:
    pipeline = Pipeline(CONFIG)
    pipeline.__dict__["embedder"] = embedder  # fills the cached property, as a third party would with a plugin
    return pipeline


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Fifty files, several batches."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(50):
        (folder / f"{number:02}.txt").write_text(
            f"Report {number} is about topic {number * 7}. Its code is X{number}.\n"
        )
    return folder


def test_nothing_is_embedded_twice(many: Path, tmp_path: Path) -> None:
    embedder = CountingEmbedder()
    pipeline = with_embedder(embedder)
    pipeline.index(many, into=tmp_path / "idx").close()
    texts = [text for call in embedder.calls for text in call]
    assert len(texts) == len(set(texts)) == 50
    embedder.calls.clear()
    (many / "copy.txt").write_text((many / "00.txt").read_text())
    (many / "01.txt").touch()
    (many / "02.txt").write_text("Report two was written anew.\n")
    with pipeline.index(many, into=tmp_path / "idx") as index:
        assert index.report is not None
        assert index.report.embedded == 1
        assert index.report.skipped == 49
    assert embedder.calls == [["Report two was written anew.\n"]]


def test_a_killed_run_is_resumed_to_the_same_bytes(many: Path, tmp_path: Path) -> None:
    with_embedder(CountingEmbedder()).index(many, into=tmp_path / "whole").close()
    with pytest.raises(KeyboardInterrupt):
        with_embedder(CountingEmbedder(dies_after=2)).index(many, into=tmp_path / "torn")
    resumed = CountingEmbedder()
    with with_embedder(resumed).index(many, into=tmp_path / "torn") as index:
        assert index.report is not None
        assert index.report.skipped == 32
    assert sum(len(call) for call in resumed.calls) == 18
    tables = ("chunks", "documents", "vectors", "files")
    for table in tables:
        whole = [row for row in dump(tmp_path / "whole") if row.startswith(table + " ")]
        assert whole == [row for row in dump(tmp_path / "torn") if row.startswith(table + " ")]
        assert whole


def test_ids_do_not_depend_on_where_the_folder_lies(many: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "deep" / "down" / "many"
    shutil.copytree(many, elsewhere)
    pipeline = Pipeline(CONFIG)
    with pipeline.index(many, into=tmp_path / "a") as here, pipeline.index(elsewhere, into=tmp_path / "b") as there:
        ids = [[hit.chunk.id for hit in pipeline.search("topic code", index, k=50)] for index in (here, there)]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 50


def test_two_files_that_would_share_a_name_are_an_error(tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place / "docs").mkdir(parents=True)
        (tmp_path / place / "docs" / "a.txt").write_text(f"Text of {place}.\n")
    pipeline = Pipeline(CONFIG)
    pipeline.index(tmp_path / "one" / "docs", into=tmp_path / "idx").close()
    with pipeline.index(tmp_path / "two" / "docs", into=tmp_path / "idx") as index:
        assert index.report is not None
        assert "already" in index.report.failed[0].error
        assert index.document("docs/a.txt").text == "Text of one.\n"
    shutil.rmtree(tmp_path / "one")
    with pipeline.index(tmp_path / "two" / "docs", into=tmp_path / "idx") as index:
        assert index.document("docs/a.txt").text == "Text of two.\n"


def test_not_one_packet_leaves_the_machine(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX:
            raise AssertionError(f"network use: {address}")
        real(self, address)  # type: ignore[arg-type]

    real = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail(f"name lookup: {a}"))
    pipeline = Pipeline(CONFIG)
    with pipeline.index(many, into=tmp_path / "idx") as index:
        assert pipeline.ask("What is report 7 about?", index).citations


def test_an_index_without_vectors_refuses_a_dense_retriever(many: Path, tmp_path: Path) -> None:
    words_only = Pipeline(PipelineConfig.from_dict({"embedder": "hashing", "retriever": "bm25"}))
    words_only.index(many, into=tmp_path / "idx").close()
    with pytest.raises(ConfigError, match="without vectors"):
        Pipeline(CONFIG).search("topic", tmp_path / "idx")


def test_a_changed_chunker_cuts_unchanged_files_again(many: Path, tmp_path: Path) -> None:
    Pipeline(CONFIG).index(many, into=tmp_path / "idx").close()
    other = Pipeline(CONFIG.merged({"chunker": {"use": "fixed", "max_tokens": 4}}, where="test"))
    with other.index(many, into=tmp_path / "idx") as index:
        assert index.report is not None
        assert index.report.documents == 50
        assert all(chunk.token_count <= 4 for chunk in index.corpus.chunks(index.corpus.rows().tolist()))


def test_the_trace_names_every_stage(many: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(CONFIG)
    with pipeline.index(many, into=tmp_path / "idx") as index:
        answer = pipeline.ask("What is report 7 about?", index)
    assert [stage.stage for stage in answer.trace] == ["retrieve", "select", "compress", "generate"]
    assert answer.run_id


def test_tables_that_disagree_are_damage_and_no_traceback(many: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(CONFIG)
    with pipeline.index(many, tmp_path / "idx") as index:
        searcher = index.searcher(pipeline.retriever)

        def disagree(*_: object) -> None:
            raise KeyError(41)

        searcher.search = disagree  # type: ignore[method-assign]
        with pytest.raises(IndexDamagedError, match=r"chunk row 41.*rag repair"):
            pipeline.search("anything", index)
