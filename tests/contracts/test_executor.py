"""The laws of every executor: ordered, lazy, bounded, and one bad job or dead worker is one bad outcome."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rag import registry
from rag.errors import ConfigError, RagError
from rag.executors._work import FileWork
from rag.jobs import Batch, Executor, Job, Outcome
from rag.limits import Limits
from rag.registry import build, catalogue
from tests.plugins import install

IN_PROCESS = ("serial", "threads")
_ABSENT = pytest.mark.skipif(find_spec("ray") is None, reason="not installed: ray (pip install 'chunkwise[ray]')")


def _marked(name: str, *slow: str) -> Any:
    """Starting processes takes its time, and Ray takes seconds."""
    marks = [pytest.mark.slow] * (name in slow) + [_ABSENT] * (name == "ray")
    return pytest.param(name, marks=marks)


NAMES = [_marked(name, "ray") for name in catalogue("executor")]
EACH = [_marked(name, "ray", "processes") for name in catalogue("executor")]
OUTSIDE = [_marked(name, "ray", "processes") for name in catalogue("executor") if name not in IN_PROCESS]
SLOTS: dict[str, Any] = {"chunker": {"use": "fixed", "max_tokens": 8}, "embedder": "hashing", "generator": "extractive"}


def make(name: str) -> Executor:
    """The executor with two workers, where it has workers, that embed, where they can."""
    known = [parameter.name for parameter in registry.describe("executor", name).parameters]
    wanted = {key: value for key, value in {"workers": 2, "embed": True}.items() if key in known}
    executor: Executor = build("executor", {"use": name, **wanted}, services={})
    return executor


def make_work(**slots: Any) -> FileWork:
    return FileWork({**SLOTS, **slots}, limits=Limits(), signatures=True)


def job(path: Path, **options: str) -> Job:
    size = path.stat().st_size if path.exists() else 0
    return Job(path=str(path), source=path.name, parser="text", size_bytes=size, **options)


def texts(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number:03}.txt" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_text(f"Report {number} has its own words. " * (1 + number % 7))
    return paths


def run(name: str, jobs: list[Job], work: FileWork | None = None) -> list[Outcome]:
    with closing(make(name).open(work or make_work())) as runner:
        return list(runner.run(jobs))


def children(of: int | None = None) -> set[int]:
    """Processes below this one, or below another."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = entry.read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.parent.name)] = int(words[1])
    top = {of or os.getpid()}
    below = set(top)
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return below - top


@pytest.mark.parametrize("name", NAMES)
def test_order_and_content(name: str, tmp_path: Path) -> None:
    paths = texts(tmp_path, 30)
    outcomes = run(name, [job(path) for path in paths])
    assert [outcome.document.source for outcome in outcomes if outcome.document] == [path.name for path in paths]
    assert outcomes == run("serial", [job(path) for path in paths])
    for outcome, path in zip(outcomes, paths, strict=True):
        assert outcome.document is not None
        assert outcome.document.text == path.read_text()
        assert "".join(chunk.text for chunk in outcome.chunks) == outcome.document.text
        assert len(outcome.content_hash) == 32
        assert outcome.signature


@pytest.mark.parametrize("name", EACH)
class TestLaws:
    def test_nothing_to_do(self, name: str) -> None:
        before = children()
        assert run(name, []) == []
        assert children() == before

    def test_jobs_are_pulled_as_outcomes_are_taken(self, name: str, tmp_path: Path) -> None:
        pulled = 0

        def jobs() -> Iterator[Job]:
            nonlocal pulled
            for path in texts(tmp_path, 60):
                pulled += 1
                yield job(path)

        with closing(make(name).open(make_work())) as runner:
            outcomes = runner.run(jobs())
            assert pulled == 0
            for taken in range(1, 31):
                next(outcomes)
                if taken % 10 == 0:
                    time.sleep(0.05)  # a slow writer: workers could run ahead now
                assert pulled <= taken + 8
            assert len(list(outcomes)) == 30
        assert pulled == 60

    def test_a_job_that_fails_is_an_outcome(self, name: str, tmp_path: Path) -> None:
        good, empty = texts(tmp_path, 1)[0], tmp_path / "empty.txt"
        empty.write_text("")
        absent, fake = job(tmp_path / "absent.txt"), Job(path=str(good), source="a.pdf", parser="pdf", size_bytes=5)
        outcomes = run(name, [absent, job(empty), fake, job(good)])
        assert [bool(outcome.error) for outcome in outcomes] == [True, True, True, False]
        assert [outcome.lasting for outcome in outcomes] == [False, True, True, False]
        assert outcomes[0].content_hash == ""
        assert "cannot be read" in outcomes[0].error
        assert outcomes[3].document

    def test_known_bytes_are_not_parsed(self, name: str, tmp_path: Path) -> None:
        path = texts(tmp_path, 1)[0]
        digest = run(name, [job(path)])[0].content_hash
        assert run(name, [job(path, known_hash=digest)]) == [Outcome(content_hash=digest)]

    def test_a_config_that_cannot_be_built_ends_the_run(self, name: str, tmp_path: Path) -> None:
        work = make_work(chunker={"use": "fixed", "max_tokens": 999})
        with pytest.raises(ConfigError, match="999"):
            run(name, [job(path) for path in texts(tmp_path, 3)], work)

    def test_workers_embed_what_the_caller_would(self, name: str, tmp_path: Path) -> None:
        work = make_work(embedder={"use": "hashing", "buckets": 64})
        outcomes = run("serial", [job(path) for path in texts(tmp_path, 9)])
        chunks = {chunk.key: chunk for outcome in outcomes for chunk in outcome.chunks}
        batch = Batch(chunks=tuple(chunks.values()), texts={})
        with closing(make(name).open(work)) as runner:
            if not runner.embeds:
                with pytest.raises(RagError, match="leaves embedding to its caller"):
                    runner.embed(batch)
                return
            made = [runner.embed(batch) for _ in range(3)]
            made += [runner.embed(Batch(chunks=(), texts={}))]
            expected = {key: row.tobytes() for key, row in work.embed(batch).items()}
            assert len(expected) == len(chunks) > 9
            for one in made[:3]:
                assert {key: row.tobytes() for key, row in one.result().items()} == expected
            assert made[3].result() == {}

    def test_a_worker_with_another_embedder_is_refused(self, name: str, tmp_path: Path) -> None:
        outcome = run("serial", [job(texts(tmp_path, 1)[0])])[0]
        work = FileWork(SLOTS, limits=Limits(), vectors="hashing-77")
        with closing(make(name).open(work)) as runner:
            if runner.embeds:
                with pytest.raises(ConfigError, match=r"'hashing-77'.*'hashing-512'.*embed: false"):
                    runner.embed(Batch(chunks=outcome.chunks, texts={})).result()

    @pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
    def test_closing_in_the_middle_leaves_nothing(self, name: str, tmp_path: Path) -> None:
        before = children()
        runner = make(name).open(make_work())
        outcomes = runner.run(job(path) for path in texts(tmp_path, 40))
        next(outcomes)
        runner.close()
        runner.close()
        assert children() <= before


CHUNKER = '''
import os, signal
from dataclasses import dataclass
from pathlib import Path
from rag.protocols import Chunker, TokenCounter, service
from rag.types import Chunk

@dataclass(frozen=True, kw_only=True)
class MortalChunker(Chunker):
    """Whole texts; some words kill."""
    counter: TokenCounter = service()
    marks: str = ""

    def chunk(self, document):
        mark = Path(self.marks) / document.source
        if "always" in document.text or ("once" in document.text and not mark.exists()):
            mark.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        if "bug" in document.text:
            raise KeyError("a bug")
        if "limit" in document.text:
            raise ValueError(os.environ["OMP_NUM_THREADS"])
        return [Chunk.cut(document, 0, len(document.text), counter=self.counter, chunker="mortal")]
'''


@pytest.fixture
def mortal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The spec of a third party's chunker, installed for this process and for its children."""
    marks = tmp_path / "marks"
    marks.mkdir()
    with install(tmp_path / "site", monkeypatch, "chunker", "mortal:MortalChunker", CHUNKER):
        yield {"use": "mortal", "marks": str(marks)}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_dead_worker_costs_one_file_at_most(
    name: str, tmp_path: Path, mortal: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["one", "dies once", "two", "dies always", "three", "once more", "four"]
    paths = [tmp_path / f"{number}.txt" for number in range(len(words))]
    for path, text in zip(paths, words, strict=True):
        path.write_text(text)
    outcomes = run(name, [job(path) for path in paths], make_work(chunker=mortal))
    assert [outcome.document.text if outcome.document else "" for outcome in outcomes] == [
        "" if "always" in text else text for text in words
    ]
    assert capsys.readouterr().out == "", "stdout is the caller's"
    assert "ended the worker process twice (" in outcomes[3].error
    assert ("SIGKILL" if name == "processes" else "ActorDiedError") in outcomes[3].error
    assert not outcomes[3].lasting


@pytest.mark.parametrize("name", EACH)
def test_a_chunker_with_a_bug_costs_its_file(name: str, tmp_path: Path, mortal: dict[str, str]) -> None:
    for number, text in enumerate(["fine", "bug", "fine again"]):
        (tmp_path / f"{number}.txt").write_text(text)
    outcomes = run(name, [job(tmp_path / f"{number}.txt") for number in range(3)], make_work(chunker=mortal))
    assert [outcome.error for outcome in outcomes] == ["", "1.txt: the chunker failed: KeyError: 'a bug'", ""]
    assert not outcomes[1].lasting


@pytest.mark.slow
def test_children_share_the_cores(tmp_path: Path, mortal: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("rag.executors.processes.usable_cores", lambda: 8)
    (tmp_path / "a.txt").write_text("limit")
    assert run("processes", [job(tmp_path / "a.txt")], make_work(chunker=mortal))[0].error.endswith("ValueError: 4")


@pytest.mark.slow
def test_a_chunker_put_in_by_hand_is_not_swapped_for_another(tmp_path: Path) -> None:
    work = FileWork(SLOTS, limits=Limits(), cuts="somebody's own chunker")
    with pytest.raises(ConfigError, match="put in by hand"):
        run("processes", [job(path) for path in texts(tmp_path, 1)], work)


@pytest.mark.parametrize(("name", "workers"), [("threads", 0), ("threads", 999), ("processes", -1), ("ray", -1)])
def test_worker_counts_are_checked(name: str, workers: int) -> None:
    with pytest.raises(ConfigError, match="workers"):
        build("executor", {"use": name, "workers": workers}, services={})
