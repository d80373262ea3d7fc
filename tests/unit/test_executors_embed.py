"""Embedding ahead of the writer: the bytes and the calls of a serial run, whatever dies in between."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rag import Pipeline, PipelineConfig
from rag.errors import InputError, RagError
from rag.executors import _vectors
from rag.executors._frames import batch_header, to_batch, to_vectors, vectors_frame
from rag.jobs import Batch, Executor, Job, Outcome, Runner, Work, WorkerLostError
from rag.report import IngestReport
from rag.store import verify
from rag.types import Chunk, Span
from tests.e2e.test_cli import dump
from tests.plugins import install

SLOTS: dict[str, Any] = {
    "chunker": {"use": "fixed", "max_tokens": 24},
    "embedder": "hashing",
    "retriever": "faiss-dense",
    "near_duplicates": "off",
}
ABSENT = pytest.mark.skipif(find_spec("ray") is None, reason="not installed: ray (pip install 'chunkwise[ray]')")
OUTSIDE = [
    pytest.param("processes", marks=pytest.mark.slow),
    pytest.param("ray", marks=[pytest.mark.slow, ABSENT]),
]


@dataclass(frozen=True, kw_only=True)
class AheadExecutor(Executor):
    """Reads here; embeds a batch when its vectors are wanted, or dies over a text that holds a word of `kills`."""

    kills: tuple[str, ...] = ()
    embedded: list[str] = field(default_factory=list)
    open_batches: list[int] = field(default_factory=list)
    too_many: int = 10**9

    def open(self, work: Work) -> Runner:
        return AheadRunner(work, self)


class Late(Future[Any]):
    """A future that does its work when it is asked."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__()
        self._work = work

    def result(self, timeout: float | None = None) -> Any:
        return self._work()


class AheadRunner(Runner):
    def __init__(self, work: Work, executor: AheadExecutor) -> None:
        self._work, self._executor = work, executor
        self._open = 0

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        return map(self._work.run, jobs)

    @property
    def embeds(self) -> int:
        return 3

    def embed(self, batch: Batch) -> Future[Mapping[str, Any]]:
        self._open += 1
        self._executor.open_batches.append(self._open)

        def made() -> Mapping[str, Any]:
            self._open -= 1
            texts = [chunk.text for chunk in batch.chunks]
            if any(word in text for word in self._executor.kills for text in texts):
                raise WorkerLostError("ended the worker process twice (SIGKILL)")
            if len(texts) > self._executor.too_many:
                raise WorkerLostError("ended the worker process twice (out of memory)")
            self._executor.embedded.extend(texts)
            return self._work.embed(to_batch(batch_header(batch)))

        return Late(made)

    def close(self) -> None:
        self._work.close()


class AheadPipeline(Pipeline):
    executor: Executor

    def _build(self, slot: str, services: Mapping[str, Any]) -> Any:
        return self.executor if slot == "executor" else super()._build(slot, services)


def ingest(folder: Path, into: Path, executor: Any = "serial", **slots: Any) -> tuple[IngestReport, list[str]]:
    """The report, and all rows of the index."""
    named = isinstance(executor, str | dict)
    config = PipelineConfig.from_dict({**SLOTS, **slots, "executor": executor if named else "serial"})
    pipeline = AheadPipeline(config)
    if named:
        pipeline = Pipeline(config)  # type: ignore[assignment]
    else:
        pipeline.executor = executor
    with pipeline.index(folder, into=into) as index:
        assert index.report
        assert verify(into).ok
        return index.report, dump(into)


def write(folder: Path, name: str, text: str, *, newer: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    os.utime(folder / name, (1_600_000_000 + newer, 1_600_000_000 + newer))


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Several batches, with texts that stand in more than one."""
    folder = tmp_path / "docs"
    for number in range(90):
        shared = " ".join(f"Common part {number % 7} has sentence {line}." for line in range(12))
        write(folder, f"{number:03}.txt", f"{shared}\n\n" + " ".join(f"File {number} says {n}." for n in range(30)))
    return folder


class TestAhead:
    def test_the_bytes_and_the_calls_of_a_serial_run(self, docs: Path, tmp_path: Path) -> None:
        executor = AheadExecutor()
        report, rows = ingest(docs, tmp_path / "ahead", executor)
        serial, expected = ingest(docs, tmp_path / "serial")
        assert rows == expected
        assert report.embedded == serial.embedded == len(executor.embedded) == len(set(executor.embedded))
        assert len(executor.embedded) < report.chunks, "texts that stand in several batches are embedded once"
        assert max(executor.open_batches) == 4
        again = AheadExecutor()
        report, rows = ingest(docs, tmp_path / "ahead", again)
        assert (report.skipped, again.embedded, rows) == (90, [], expected)

    def test_a_vector_that_a_commit_in_between_takes_away(self, tmp_path: Path) -> None:
        """File 00 loses the text that file 20 gets, so that its vector goes before the batch of file 20 is written."""
        folder, runs = tmp_path / "docs", {}
        for into in ("serial", "ahead"):
            for number in range(40):
                write(folder, f"{number:02}.txt", f"Document {number}.")
            ingest(folder, tmp_path / into)
            write(folder, "00.txt", "Something else.", newer=5)
            write(folder, "20.txt", "Document 0.", newer=5)
            executor = AheadExecutor()
            report, rows = ingest(folder, tmp_path / into, executor if into == "ahead" else "serial")
            runs[into] = report.embedded, rows
            for number in (0, 20):
                write(folder, f"{number:02}.txt", f"Document {number}.")
        assert runs["ahead"] == runs["serial"]
        assert runs["serial"][0] == 2

    def test_little_text_waits_for_the_writer(
        self, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_vectors, "WINDOW_BYTES", 1)
        executor = AheadExecutor()
        _, rows = ingest(docs, tmp_path / "ahead", executor)
        assert max(executor.open_batches) == 1
        assert rows == ingest(docs, tmp_path / "serial")[1]

    def test_near_duplicates_across_waiting_batches(self, docs: Path, tmp_path: Path) -> None:
        pytest.importorskip("datasketch")
        write(docs, "zz.txt", (docs / "088.txt").read_text() + " One more word.")
        write(docs, "000a.txt", (docs / "060.txt").read_text() + " One more word.")
        report, rows = ingest(docs, tmp_path / "ahead", AheadExecutor(), near_duplicates="skip")
        serial, expected = ingest(docs, tmp_path / "serial", near_duplicates="skip")
        assert rows == expected
        assert report.near_duplicates == serial.near_duplicates
        assert report.left_out == serial.left_out >= 2


class TestKillers:
    def test_a_document_that_kills_is_listed_and_the_rest_goes_in(self, docs: Path, tmp_path: Path) -> None:
        write(docs, "020.txt", "This one is poison.")
        report, _ = ingest(docs, tmp_path / "ahead", AheadExecutor(kills=("poison",)))
        assert [(failure.source, failure.error) for failure in report.failed] == [
            ("docs/020.txt", "embedding it ended the worker process twice (SIGKILL)")
        ]
        assert (report.documents, report.skipped) == (89, 0)
        report, _ = ingest(docs, tmp_path / "ahead", AheadExecutor())  # it is tried again, and lives
        assert (report.documents, report.skipped, report.failed) == (1, 89, ())

    def test_the_version_that_was_there_stays(self, tmp_path: Path) -> None:
        folder, into = tmp_path / "docs", tmp_path / "idx"
        write(folder, "a.txt", "A first version.")
        write(folder, "b.txt", "A file beside it.")
        _, before = ingest(folder, into)
        write(folder, "a.txt", "Now it is poison.", newer=5)
        report, after = ingest(folder, into, AheadExecutor(kills=("poison",)))
        assert len(report.failed) == 1
        assert [row for row in after if row.startswith(("chunks ", "vectors ", "files "))] == [
            row for row in before if row.startswith(("chunks ", "vectors ", "files "))
        ]

    def test_what_is_too_much_together_goes_in_one_by_one(self, docs: Path, tmp_path: Path) -> None:
        report, _ = ingest(docs, tmp_path / "ahead", AheadExecutor(too_many=40))
        assert (report.documents, report.failed) == (90, ())

    def test_an_error_that_is_no_death_ends_the_run(self, tmp_path: Path) -> None:
        """As it does where the caller embeds."""
        write(tmp_path / "docs", "a.txt", "one two three four five six seven eight nine ten")
        slots = {"embedder": {"use": "hashing", "max_tokens": 2}, "chunker": {"use": "fixed", "max_tokens": 2}}
        executor = AheadExecutor()
        runner = executor.open(Broken())
        with pytest.raises(InputError, match="too long"):
            runner.embed(Batch(chunks=(), texts={})).result()
        assert ingest(tmp_path / "docs", tmp_path / "idx", executor, **slots)[0].documents == 1


class Broken(Work):
    def describe(self) -> dict[str, Any]:
        return {}

    def copy(self) -> Work:
        return self

    def run(self, job: Job) -> Outcome:
        raise NotImplementedError

    def embed(self, batch: Batch) -> Mapping[str, Any]:
        raise InputError("too long")

    def close(self) -> None:
        """Nothing was started."""


class TestFrames:
    def test_a_batch_and_its_vectors_arrive_whole(self) -> None:
        import numpy as np

        text = "Ünïcode 😀 and\x00 more"
        plain = Chunk(doc_id="d" * 16, span=Span(0, 3), text=text[:3], token_count=9, header="H", section=("S",))
        late = Chunk(doc_id="d" * 16, span=Span(3, 9), text=text[3:9], token_count=2, surround="x")
        there = to_batch(batch_header(Batch(chunks=(plain, late), texts={"d" * 16: text})))
        assert [(one.key, one.text, one.span, one.header) for one in there.chunks] == [
            (one.key, one.text, one.span, one.header) for one in (plain, late)
        ]
        assert there.texts == {"d" * 16: text}
        rows = np.random.default_rng(1).standard_normal((2, 5)).astype(np.float32)
        vectors = {plain.key: rows[0], late.key: rows[1]}
        back = to_vectors(*vectors_frame(vectors))
        assert {key: row.tobytes() for key, row in back.items()} == {key: row.tobytes() for key, row in vectors.items()}
        assert to_vectors(*vectors_frame({})) == {}
        with pytest.raises(ValueError, match="reshape"):
            to_vectors({"keys": ["a", "b"]}, b"1234" * 3)


EMBEDDER = '''
import os, signal
from dataclasses import dataclass
from pathlib import Path
from rag.embedders.hashing import HashingEmbedder

@dataclass(frozen=True, kw_only=True)
class MortalEmbedder(HashingEmbedder):
    """Writes down what it embeds and where; some words kill."""
    marks: str = ""

    def embed(self, texts):
        mark = Path(self.marks) / "once"
        for text in texts:
            if "always" in text or ("dies once" in text and not mark.exists()):
                mark.write_text("")
                os.kill(os.getpid(), signal.SIGKILL)
        with open(Path(self.marks) / f"by-{os.getpid()}", "a") as log:
            log.writelines(f"{text!r}\\n" for text in texts)
        return super().embed(texts)
'''


@pytest.fixture
def mortal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The spec of a third party's embedder."""
    marks = tmp_path / "marks"
    marks.mkdir()
    with install(tmp_path / "site", monkeypatch, "embedder", "mortal:MortalEmbedder", EMBEDDER):
        yield {"use": "mortal", "marks": str(marks)}


def embedded(mortal: dict[str, str]) -> dict[int, list[str]]:
    """Process -> the texts that it embedded."""
    return {int(path.name[3:]): path.read_text().splitlines() for path in Path(mortal["marks"]).glob("by-*")}


@pytest.mark.parametrize("name", OUTSIDE)
class TestOutside:
    def test_workers_embed_each_text_once_and_the_caller_none(
        self, name: str, docs: Path, tmp_path: Path, mortal: dict[str, str]
    ) -> None:
        report, rows = ingest(docs, tmp_path / name, {"use": name, "workers": 2, "embed": True}, embedder=mortal)
        made = embedded(mortal)
        assert os.getpid() not in made
        texts = [text for each in made.values() for text in each]
        assert report.embedded == len(texts) == len(set(texts))
        _, expected = ingest(docs, tmp_path / "serial", embedder=mortal)
        assert len(embedded(mortal)[os.getpid()]) == len(texts)
        assert rows == expected

    def test_one_death_changes_nothing_and_a_killer_is_listed(
        self, name: str, docs: Path, tmp_path: Path, mortal: dict[str, str]
    ) -> None:
        write(docs, "033.txt", "This one dies once.")
        write(docs, "089.txt", "This one dies always.")
        report, rows = ingest(docs, tmp_path / name, {"use": name, "workers": 2, "embed": True}, embedder=mortal)
        assert [failure.source for failure in report.failed] == ["docs/089.txt"]
        assert report.failed[0].error.startswith("embedding it ended the worker process twice (")
        assert report.documents == 89
        (docs / "089.txt").unlink()
        _, expected = ingest(docs, tmp_path / "serial", embedder=mortal)
        assert rows == expected

    @pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
    def test_a_worker_that_embeds_is_killed_from_outside(
        self, name: str, docs: Path, tmp_path: Path, mortal: dict[str, str]
    ) -> None:
        killed: list[int] = []

        def kill(progress: Any) -> None:
            for pid in embedded(mortal):
                if pid not in killed and len(killed) < 2:
                    killed.append(pid)
                    os.kill(pid, signal.SIGKILL)

        executor = {"use": name, "workers": 2, "embed": True}
        config = PipelineConfig.from_dict({**SLOTS, "embedder": mortal, "executor": executor})
        Pipeline(config).index(docs, into=tmp_path / name, on_progress=kill).close()
        assert killed, "nobody was killed, so nothing was tested"
        assert dump(tmp_path / name) == ingest(docs, tmp_path / "serial", embedder=mortal)[1]

    @pytest.mark.models
    def test_the_model_gives_the_bytes_that_it_gives_the_caller(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        folder = tmp_path / "docs"
        for number in range(40):
            lines = " ".join(f"Pump {number} was checked in week {week}." for week in range(number % 11 + 1))
            write(folder, f"{number:02}.md", f"# Pump {number}\n\n{lines}\n")
        late: dict[str, Any] = {"use": "late", "max_tokens": 24, "context_tokens": 24, "alpha": 0.5}
        executor = {"use": name, "workers": 2, "embed": True}
        for chunker in (SLOTS["chunker"], late):
            into = tmp_path / str(chunker["use"])
            _, rows = ingest(folder, into / name, executor, embedder="minilm", chunker=chunker)
            assert rows == ingest(folder, into / "serial", embedder="minilm", chunker=chunker)[1]


def test_a_caller_that_embeds_is_told_apart(tmp_path: Path) -> None:
    write(tmp_path / "docs", "a.txt", "Some text.")
    with pytest.raises(RagError, match="leaves embedding to its caller"):
        ingest(tmp_path / "docs", tmp_path / "idx", Unable())


@dataclass(frozen=True, kw_only=True)
class Unable(Executor):
    """Says that it embeds, and does not."""

    def open(self, work: Work) -> Runner:
        class Says(Runner):
            @property
            def embeds(self) -> int:
                return 1

            def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
                return map(work.run, jobs)

            def close(self) -> None:
                work.close()

        return Says()
