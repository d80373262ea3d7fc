"""Damage to what stands beside the truth is noticed, named and made good; damage to the truth is reported."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rag.builder import PipelineBuilder
from rag.errors import RagError
from rag.pipeline import Pipeline
from rag.store import Store, verify
from tests.crash.conftest import quick_folder
from tests.crash.entries import dump
from tests.crash.papers import Papers
from tests.crash.victim import Runner

QUESTION = "travel policy of the harbour"


def pipeline(retriever: str, **options: Any) -> Pipeline:
    builder = PipelineBuilder().embedder("hashing", buckets=32).chunker("recursive", max_tokens=60)
    return builder.retriever(retriever, **options).generator("extractive").build()


def found(line: Pipeline, index: Path) -> list[tuple[str, float]]:
    return [(hit.chunk.id, round(hit.score, 5)) for hit in line.search(QUESTION, index, k=8)]


@dataclass(frozen=True)
class Sound:
    """A sound index with a FAISS file, and the files of its first generation."""

    line: Pipeline
    papers: Papers
    directory: Path
    older: Path
    hits: list[tuple[str, float]]

    def copy(self, folder: Path) -> tuple[Path, Path]:
        """(a copy of the index, its derived file)."""
        target = Path(shutil.copytree(self.directory, folder / "copy"))
        (file,) = (target / "derived").iterdir()
        return target, file


@pytest.fixture(scope="module")
def sound() -> Iterator[Sound]:
    pytest.importorskip("faiss")
    with quick_folder() as folder:
        line = pipeline("faiss-dense", index="hnsw")
        papers = Papers(folder / "papers", 9, files=24, html=False)
        papers.advance(0)
        line.index(papers.folder, folder / "earlier").close()  # as it was before there were more files
        papers.advance(1)
        index = folder / "index"
        line.index(papers.folder, index).close()
        yield Sound(line, papers, index, folder / "earlier" / "derived", found(line, index))


def regions(size: int) -> list[int]:
    """Places all over a file: its head byte by byte, the rest spread out."""
    spread = random.Random(3).sample(range(64, size), 40)
    return sorted({*range(0, 64, 3), *spread, size - 1})


def damages(file: Path, older: Path) -> dict[str, Callable[[], object]]:
    data = file.read_bytes()
    (old,) = older.iterdir()

    def flip(at: int) -> Callable[[], object]:
        return lambda: file.write_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])

    def folder() -> None:
        file.unlink()
        file.mkdir()
        (file / "inside").write_text("x")

    half = len(data) // 2
    return {
        **{f"bit flip at {at}": flip(at) for at in regions(len(data))},
        **{f"cut at {at}": (lambda at=at: file.write_bytes(data[:at])) for at in (0, 1, 100, half, len(data) - 1)},
        "torn: zeros in the second half": lambda: file.write_bytes(data[:half] + bytes(len(data) - half)),
        "longer than it was": lambda: file.write_bytes(data + b"\0"),
        "an older generation's file": lambda: file.write_bytes(old.read_bytes()),
        "deleted": file.unlink,
        "a directory": folder,
        "a link to nothing": lambda: (file.unlink(), file.symlink_to("nowhere")),
    }


@pytest.mark.slow
def test_damaged_faiss_files_are_never_believed(sound: Sound, quick: Path) -> None:
    target, file = sound.copy(quick)
    assert found(sound.line, target) == sound.hits
    data = file.read_bytes()
    for name, damage in damages(file, sound.older).items():
        damage()
        report = verify(target)
        assert len(report.problems) == 1, name
        assert file.name in report.problems[0], name
        assert found(sound.line, target) == sound.hits, name  # a reader goes without the file
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        file.unlink(missing_ok=True)
        file.write_bytes(data)
    assert verify(target).ok


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bit flip at 0", "cut at 0", "deleted", "a directory", "an older generation's file"])
def test_the_next_ingestion_makes_the_file_anew(sound: Sound, quick: Path, name: str) -> None:
    """At once when its size or kind tells, which costs a look; else when there is something new to index."""
    target, file = sound.copy(quick)
    damages(file, sound.older)[name]()
    sound.line.index(sound.papers.folder, target).close()
    if name == "bit flip at 0":
        assert not verify(target).ok
        with Store.create_or_open(target) as store:
            store.clear_derived()
        sound.line.index(sound.papers.folder, target).close()
    assert verify(target).problems == []
    assert [path.is_file() for path in (target / "derived").iterdir()] == [True]
    assert found(sound.line, target) == sound.hits
    assert dump(target) == dump(sound.directory)


CHROMA_DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "flip": lambda path: path.write_bytes(bytes(byte ^ (at % 97 == 13) for at, byte in enumerate(path.read_bytes()))),
    "noise": lambda path: path.write_bytes(random.Random(1).randbytes(path.stat().st_size)),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHROMA_DAMAGES)
def test_a_damaged_chroma_mirror_is_made_anew(quick: Path, name: str) -> None:
    """In processes of their own: what Chroma does with a damaged directory is crash."""
    pytest.importorskip("chromadb")
    papers = Papers(quick / "papers", 9, files=12, html=False)
    papers.advance(0)
    (quick / "rag.yaml").write_text("embedder: {use: hashing, buckets: 32}\nretriever: chroma-dense\n")
    options = ("--index", str(quick / "index"), "--config", str(quick / "rag.yaml"))
    with Runner(quick, modules=["chromadb"]) as runner:
        assert runner.warm("ingest", str(papers.folder), "-q", *options).code == 4
        before = runner.warm("search", QUESTION, "--json", *options)
        assert before.code == 0
        assert '"hits": [{' in before.output
        for path in sorted((quick / "index" / "chroma").rglob("*")):
            if path.is_file() and path.stat().st_size:
                CHROMA_DAMAGES[name](path)
        after = runner.warm("search", QUESTION, "--json", *options)
        assert after.code == 0, after.output
        assert _hits(after.output) == _hits(before.output)
        assert runner.warm("verify", *options).code == 0
        again = runner.warm("search", QUESTION, "--json", *options)
        assert _hits(again.output) == _hits(before.output)


def _hits(output: str) -> str:
    """The hits of `rag search --json`, without the time that it took."""
    return output.partition('"hits": ')[2].partition('"seconds"')[0]


BOOKKEEPING = {"files", "state", "sqlite_sequence"}
"""What was seen when, and counters: no checksum guards them, and no answer is taken from them."""


@pytest.mark.slow
def test_bit_flips_in_the_truth_are_reported_or_without_effect(sound: Sound, quick: Path) -> None:
    """A flip in content is reported. One that is not reported has changed nothing, or what the next ingestion mends."""
    target, _ = sound.copy(quick)
    file = target / "index.sqlite"
    data, content = file.read_bytes(), dump(target)
    content["vectors"] = [row[1:] for row in content["vectors"]]
    chances = random.Random(7)
    places = [*range(0, 100, 7), *chances.sample(range(100, len(data)), 90)]
    reported = 0
    for at in places:
        for beside in ("-wal", "-shm"):
            Path(f"{file}{beside}").unlink(missing_ok=True)
        file.write_bytes(data[:at] + bytes([data[at] ^ (1 << chances.randrange(8))]) + data[at + 1 :])
        with contextlib.suppress(RagError, KeyError):  # our own error, with a hint; else this test fails
            found(sound.line, target)
        with contextlib.suppress(RagError, KeyError), Store.open(target) as store:
            for info in store.documents():
                store.document(info.id), store.chunks_of(info.id)
        report = verify(target)
        reported += not report.ok
        if report.ok:
            now = dump(target)
            now["vectors"] = [row[1:] for row in now["vectors"]]  # nothing refers to the row of a vector
            different = {name for name in content if now[name] != content[name]}
            assert different <= BOOKKEEPING, f"byte {at} was changed and nobody noticed"
            if different:  # at worst a file is read again
                sound.line.index(sound.papers.folder, target, delete_missing=True).close()
                mended = dump(target)
                mended["vectors"] = [row[1:] for row in mended["vectors"]]
                assert {name for name in content if mended[name] != content[name]} <= BOOKKEEPING, f"byte {at}"
                assert verify(target).ok
                assert found(sound.line, target) == sound.hits
    assert reported > len(places) / 3
