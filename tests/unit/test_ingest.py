"""Ingestion by itself: incremental, the same bytes for any executor, near-duplicates, limits, racy files."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rag import Pipeline, PipelineConfig, sample
from rag.embedders.hashing import HashingEmbedder
from rag.ingest import IngestReport
from rag.store import Store, verify
from tests.crash.entries import dump

ROOT = Path(__file__).resolve().parents[2]
LONG_AGO = 1_600_000_000
PROSE = "The pump is checked every week by two people, and its oil is changed twice a year. " * 4
SENTENCES = {"use": "sentence", "max_tokens": 60}
CONFIG = PipelineConfig.from_dict({"embedder": "hashing", "retriever": "faiss-dense", "chunker": SENTENCES})


@dataclass(frozen=True, kw_only=True)
class CountingEmbedder(HashingEmbedder):
    """Keeps what it was asked to embed; dies at the call after `dies_after`."""

    texts: list[str] = field(default_factory=list)
    dies_after: int = 10**9

    def embed(self, texts: Sequence[str]) -> Any:
        if len(self.texts) >= self.dies_after:
            raise KeyboardInterrupt
        self.texts.extend(texts)
        return super().embed(texts)


def ingest(
    folder: Path, into: Path, *, dies_after: int = 10**9, delete_missing: bool = False, **slots: Any
) -> tuple[IngestReport, list[str]]:
    """The report, and what was embedded."""
    pipeline = Pipeline(CONFIG.merged(slots, where="test"))
    embedder = CountingEmbedder(dies_after=dies_after)
    pipeline.__dict__["embedder"] = embedder
    with pipeline.index(folder, into=into, delete_missing=delete_missing) as index:
        assert index.report is not None
        return index.report, embedder.texts


def write(path: Path, text: str, *, mtime: float = LONG_AGO) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (mtime, mtime))


def vector_keys(into: Path) -> set[bytes]:
    with sqlite3.connect(into / "index.sqlite") as db:
        return {key for (key,) in db.execute("SELECT key FROM vectors")}


def everything(into: Path) -> dict[str, list[Any]]:
    """All tables, those that the crash suite compares and the signatures."""
    with sqlite3.connect(into / "index.sqlite") as db:
        tables = ("signatures", "signature_bands")
        return {**dump(into), **{name: db.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall() for name in tables}}


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    for number in range(20):
        write(folder / f"{number:02}.txt", "".join(f"Line {line} of file {number}. " for line in range(40)))
    return folder


class TestIncremental:
    def test_a_changed_document_embeds_what_changed(self, docs: Path, tmp_path: Path) -> None:
        first, texts = ingest(docs, tmp_path / "i")
        assert len(texts) == first.chunks > 40
        path = docs / "07.txt"
        write(path, path.read_text() + "A new last sentence.", mtime=LONG_AGO + 1)
        second, texts = ingest(docs, tmp_path / "i")
        assert (second.documents, second.skipped) == (1, 19)
        assert 1 <= len(texts) <= 2
        assert second.chunks > 2

    @pytest.mark.parametrize("delete_missing", [True, False])
    def test_what_moved_keeps_its_vectors(self, docs: Path, tmp_path: Path, delete_missing: bool) -> None:
        ingest(docs, tmp_path / "i")
        keys = vector_keys(tmp_path / "i")
        (docs / "deep").mkdir()
        for number in range(10):
            (docs / f"{number:02}.txt").rename(docs / "deep" / f"renamed-{number}.txt")
        report, texts = ingest(docs, tmp_path / "i", delete_missing=delete_missing)
        assert texts == []
        assert (report.documents, report.skipped, report.removed) == (10, 10, 10 * delete_missing)
        assert vector_keys(tmp_path / "i") == keys
        shutil.move(docs, tmp_path / "elsewhere" / "docs")  # a moved folder has the same names
        report, texts = ingest(tmp_path / "elsewhere" / "docs", tmp_path / "i")
        assert (report.documents, texts) == (20, [])
        assert verify(tmp_path / "i").ok

    def test_a_kill_between_the_new_place_and_the_removal(self, docs: Path, tmp_path: Path) -> None:
        for into in ("whole", "torn"):
            ingest(docs, tmp_path / into)
        for number in range(20):
            (docs / f"{number:02}.txt").rename(docs / f"z{number:02}.txt")
        write(docs / "z17.txt", "Something to embed late.", mtime=LONG_AGO + 1)
        ingest(docs, tmp_path / "whole", delete_missing=True)
        with pytest.raises(KeyboardInterrupt):
            ingest(docs, tmp_path / "torn", dies_after=0, delete_missing=True)
        report, texts = ingest(docs, tmp_path / "torn", delete_missing=True)
        assert texts == ["Something to embed late."]
        assert report.removed == 20
        whole, torn = everything(tmp_path / "whole"), everything(tmp_path / "torn")
        assert all(whole[table] == torn[table] for table in whole)

    def test_unchanged_files_cost_no_model_and_no_search_index(
        self, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ingest(docs, tmp_path / "i")
        before = everything(tmp_path / "i")
        monkeypatch.setattr("retrievers.faiss_dense.FaissDenseRetriever.open", lambda *_: pytest.fail("opened"))
        monkeypatch.setattr("rag.duplicates.sign", lambda *_: pytest.fail("signed"))
        monkeypatch.setattr("rag.store.store.Store.find_alike", lambda *_: pytest.fail("signatures were read"))
        report, texts = ingest(docs, tmp_path / "i")
        assert (report.skipped, report.documents, texts) == (20, 0, [])
        assert everything(tmp_path / "i") == before

    def test_a_killed_publication_is_made_up_for(
        self, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die(*_: object) -> None:
            raise KeyboardInterrupt

        from retrievers.faiss_dense import FaissDenseRetriever as Dense

        opened, real = [], Dense.open
        monkeypatch.setattr(Dense, "open", die)
        with pytest.raises(KeyboardInterrupt):
            ingest(docs, tmp_path / "i")
        monkeypatch.setattr(Dense, "open", lambda self, corpus: opened.append(1) or real(self, corpus))
        assert ingest(docs, tmp_path / "i")[0].skipped == 20
        assert opened == [1]
        ingest(docs, tmp_path / "i")
        assert opened == [1]


class TestRacyFiles:
    def test_an_edit_that_its_time_does_not_tell_is_seen(self, docs: Path, tmp_path: Path) -> None:
        now = time.time()
        write(docs / "hot.txt", "Version one.", mtime=now)
        write(docs / "future.txt", "Version one.", mtime=now + 3600)
        write(docs / "old.txt", "Version one.")
        ingest(docs, tmp_path / "i")
        for name, mtime in (("hot", now), ("future", now + 3600), ("old", LONG_AGO)):
            write(docs / f"{name}.txt", "Version two.", mtime=mtime)
        report, _ = ingest(docs, tmp_path / "i")
        assert report.documents == 2
        with Store.open(tmp_path / "i") as store:
            held = {name: store.find_document(f"docs/{name}.txt").text for name in ("hot", "future", "old")}
        assert held == {"hot": "Version two.", "future": "Version two.", "old": "Version one."}

    def test_a_file_that_has_cooled_is_noted_once(self, docs: Path, tmp_path: Path) -> None:
        write(docs / "hot.txt", "Words.", mtime=time.time())
        ingest(docs, tmp_path / "i")
        origin = str((docs / "hot.txt").resolve())
        with Store.open(tmp_path / "i") as store:
            assert store.files_at([origin])[origin].mtime_ns == 0
        os.utime(docs / "hot.txt", (LONG_AGO, LONG_AGO))
        assert ingest(docs, tmp_path / "i")[0].skipped == 21
        with Store.open(tmp_path / "i") as store:
            assert store.files_at([origin])[origin].mtime_ns == LONG_AGO * 10**9


class TestLimits:
    def test_a_raised_limit_tries_again_what_was_refused(self, docs: Path, tmp_path: Path) -> None:
        write(docs / "big.txt", "Words and words. " * 200)
        report, _ = ingest(docs, tmp_path / "i", limits={"max_characters": 2000})
        assert [failure.source for failure in report.failed] == ["docs/big.txt"]
        again, _ = ingest(docs, tmp_path / "i", limits={"max_characters": 2000})
        assert again.failed == report.failed
        raised, _ = ingest(docs, tmp_path / "i")
        assert (raised.documents, raised.skipped, raised.failed) == (1, 20, ())

    def test_how_to_run_is_no_part_of_an_index(self, docs: Path, tmp_path: Path) -> None:
        ingest(docs, tmp_path / "i", limits={"max_pages": 7}, executor="threads")
        with Store.open(tmp_path / "i") as store:
            config = store.manifest()["config"]
        assert not {"limits", "executor"} & config.keys()
        assert config["near_duplicates"] == "report"
        before = everything(tmp_path / "i")
        assert ingest(docs, tmp_path / "i", limits={"max_pages": 8})[0].skipped == 20
        assert everything(tmp_path / "i") == before


def with_twins(folder: Path) -> None:
    write(folder / "a.txt", PROSE)
    write(folder / "b.txt", PROSE + "One more sentence stands here.")
    write(folder / "c.txt", PROSE)
    write(folder / "d.txt", "Something else altogether is written in this file, with other words.")


class TestNearDuplicates:
    def test_they_are_reported(self, tmp_path: Path) -> None:
        with_twins(tmp_path / "docs")
        report, _ = ingest(tmp_path / "docs", tmp_path / "i", duplicate_threshold=0.6)
        pairs = [(one.source, one.of, one.similarity == 1) for one in report.near_duplicates]
        assert pairs == [("docs/b.txt", "docs/a.txt", False), ("docs/c.txt", "docs/a.txt", True)]
        assert (report.documents, report.left_out) == (4, 0)
        assert not ingest(tmp_path / "docs", tmp_path / "i", duplicate_threshold=0.6)[0].near_duplicates
        off, _ = ingest(tmp_path / "docs", tmp_path / "off", near_duplicates="off")
        assert not off.near_duplicates

    def test_they_are_left_out_and_come_in_when_the_twin_goes(self, tmp_path: Path) -> None:
        docs, into = tmp_path / "docs", tmp_path / "i"
        with_twins(docs)
        skip = {"near_duplicates": "skip", "duplicate_threshold": 0.6}
        report, _ = ingest(docs, into, **skip)
        assert (report.documents, report.left_out, report.failed) == (2, 2, ())
        before = everything(into)
        report, _ = ingest(docs, into, **skip)
        assert (report.documents, report.left_out, report.skipped, report.near_duplicates) == (0, 2, 2, ())
        assert everything(into) == before
        (docs / "a.txt").unlink()
        report, texts = ingest(docs, into, delete_missing=True, **skip)
        assert (report.documents, report.left_out, report.removed) == (1, 1, 1)
        assert not [text for text in texts if "pump" in text and "One more" not in text]
        assert [(one.source, one.of) for one in report.near_duplicates] == [("docs/c.txt", "docs/b.txt")]
        write(docs / "b.txt", "B has other words now, and is like nothing else here.", mtime=LONG_AGO + 1)
        report, _ = ingest(docs, into, **skip)
        assert (report.documents, report.left_out) == (2, 0)
        assert verify(into).ok

    def test_a_document_that_becomes_a_twin_goes(self, tmp_path: Path) -> None:
        docs, into = tmp_path / "docs", tmp_path / "i"
        with_twins(docs)
        write(docs / "c.txt", "Its own words at first, quite unlike the others.")
        ingest(docs, into, near_duplicates="skip")
        write(docs / "c.txt", PROSE, mtime=LONG_AGO + 1)
        report, _ = ingest(docs, into, near_duplicates="skip")
        assert report.left_out >= 1
        with Store.open(into) as store:
            assert "docs/c.txt" not in {info.source for info in store.documents()}

    def test_other_settings_bring_them_in(self, tmp_path: Path) -> None:
        with_twins(tmp_path / "docs")
        ingest(tmp_path / "docs", tmp_path / "i", near_duplicates="skip", duplicate_threshold=0.6)
        stricter, _ = ingest(tmp_path / "docs", tmp_path / "i", near_duplicates="skip", duplicate_threshold=1.0)
        assert (stricter.documents, stricter.left_out) == (1, 1)
        all_of_them, _ = ingest(tmp_path / "docs", tmp_path / "i")
        assert (all_of_them.documents, all_of_them.left_out) == (1, 0)

    def test_twins_that_are_all_cut_anew_do_not_push_each_other_out(self, tmp_path: Path) -> None:
        with_twins(tmp_path / "docs")
        ingest(tmp_path / "docs", tmp_path / "i", duplicate_threshold=0.6)
        report, _ = ingest(
            tmp_path / "docs", tmp_path / "i", near_duplicates="skip", duplicate_threshold=0.6, chunker="fixed"
        )
        assert (report.documents, report.left_out) == (2, 2)

    def test_a_moved_file_is_no_twin_of_itself(self, tmp_path: Path) -> None:
        with_twins(tmp_path / "docs")
        ingest(tmp_path / "docs", tmp_path / "i", near_duplicates="skip")
        (tmp_path / "docs" / "d.txt").rename(tmp_path / "docs" / "e.txt")
        report, texts = ingest(tmp_path / "docs", tmp_path / "i", near_duplicates="skip", delete_missing=True)
        assert (report.documents, texts) == (1, [])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every format, twice over, with files that fail in several ways."""
    folder = tmp_path_factory.mktemp("mixed") / "docs"
    for copy in ("one", "two"):
        shutil.copytree(sample.documents_dir(), folder / copy)
    (folder / "one" / "broken.pdf").write_bytes(b"%PDF-1.4 nothing more")
    (folder / "one" / "broken.docx").write_bytes(b"PK\x03\x04 no archive")
    (folder / "two" / "empty.md").write_text("")
    (folder / "two" / "large.txt").write_text("Many words. " * 2000)
    (folder / "two" / "latin.txt").write_bytes("Größe und Maß\n".encode("latin-1") * 20)
    for path in folder.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("near_duplicates", "more"), [("report", True), ("skip", False)])
def test_any_number_of_workers_gives_the_same_bytes(
    mixed: Path, tmp_path: Path, near_duplicates: str, more: bool
) -> None:
    executors: list[Any] = ["serial", {"use": "threads", "workers": 3}]
    executors += [{"use": "processes", "workers": workers} for workers in ((1, 2, 4) if more else (2,))]
    slots = {"embedder": "hashing", "retriever": "bm25", "limits": {"max_characters": 20_000}}
    files, reports = [], []
    for number, executor in enumerate(executors):
        config = PipelineConfig.from_dict({**slots, "executor": executor, "near_duplicates": near_duplicates})
        into = tmp_path / str(number)
        with Pipeline(config).index(mixed, into=into) as index:
            assert index.report is not None
            reports.append({**index.report.to_dict(), "seconds": 0})
        assert verify(into).ok
        assert everything(into) == everything(tmp_path / "0")
        files.append((into / "index.sqlite").read_bytes())
    assert len(reports[0]["failed"]) == 4
    assert reports[0]["near_duplicates"]
    assert all(report == reports[0] for report in reports)
    assert all(content == files[0] for content in files)


def peak_mb(pid: int | str = "self") -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
def test_a_pdf_of_a_thousand_pages_stays_small(tmp_path: Path) -> None:
    """In a process of its own, since a peak never goes back."""
    canvas = pytest.importorskip("reportlab.pdfgen.canvas").Canvas(str(tmp_path / "big.pdf"))
    for page in range(1000):
        for line in range(45):
            canvas.drawString(50, 800 - 16 * line, f"Page {page} line {line}: station {page * line % 97} was checked.")
        canvas.showPage()
    canvas.save()
    code = (
        "import resource, sys\n"
        "from rag import Pipeline, PipelineConfig\n"
        "from tests.unit.test_ingest import peak_mb\n"
        "config = PipelineConfig.from_dict({'embedder': 'hashing', 'retriever': 'bm25'})\n"
        "before = peak_mb()\n"
        "report = Pipeline(config).index(sys.argv[1], into=sys.argv[2]).report\n"
        "child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024\n"
        "print(report.chunks, peak_mb() - before, child)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "big.pdf"), str(tmp_path / "i")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=240)
    chunks, grown, child = (float(word) for word in done.stdout.split())
    assert chunks > 1000
    assert grown < 250
    assert child < 400
