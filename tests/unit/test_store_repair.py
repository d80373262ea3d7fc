"""repair cures whatever verify finds, keeps what is sound, and names what it could not keep."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from rag.errors import IndexDamagedError, IndexLockedError, UsageError
from rag.store import Store, verify
from rag.store.repair import RepairReport, repair
from rag.store.schema import FILE_NAME
from tests.crash.entries import FINGERPRINT, dump, failed_record, fill, make_entry, vector
from tests.unit.test_store_verify import execute

ENTRIES = [
    make_entry(f"document number {at} says this and that " * 30, f"{at}.md", meta={"year": at}, around=9 * (at < 3))
    for at in range(5)
]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    directory = tmp_path / "idx"
    fill(directory, *ENTRIES)
    return directory


def embed_missing(directory: Path) -> None:
    """What rag.upkeep does with a real embedder."""
    with Store.create_or_open(directory) as store:
        while chunks := store.chunks_without_vector(FINGERPRINT, 50):
            store.add_vectors(FINGERPRINT, {chunk.key: vector(chunk.key) for chunk in chunks})


def mended(directory: Path) -> RepairReport:
    """Repair, cut and embed again what needs it, and look that everything is sound then."""
    report = repair(directory)
    embed_missing(directory)
    assert verify(directory).problems == []
    return report


@pytest.mark.parametrize(
    ("sql", "lost"),
    [
        ("UPDATE chunks SET start = start + 1 WHERE id = 3", "chunks"),
        ("UPDATE chunks SET stop = 99999 WHERE id = 3", "chunks"),
        ("UPDATE chunks SET header = 'x' WHERE id = 3", "chunks"),
        ("UPDATE chunks SET token_count = 1 WHERE id = 3", "chunks"),
        ("UPDATE chunks SET surround = '' WHERE id = 3", "chunks"),
        ("UPDATE chunks SET surround = '9-9-100-0123456789abcdef' WHERE id = 3", "chunks"),
        ("UPDATE chunks SET section = '[\"x\"]' WHERE id = 3", "chunks"),
        ("DELETE FROM chunks WHERE id = 2", "chunks"),
        ("UPDATE document_texts SET text = replace(text, 'says', 'sagt') WHERE document = 1", "document"),
        ("UPDATE document_texts SET text = CAST(x'80ff' AS TEXT) WHERE document = 1", "document"),
        ("UPDATE documents SET blocks = '[[1' WHERE id = 1", "document"),
        ("UPDATE documents SET title = 'x' WHERE id = 1", "document"),
        ("UPDATE documents SET meta = '{}' WHERE id = 1", "document"),
        ("DELETE FROM documents WHERE id = 1", "document"),
        ("DELETE FROM document_texts WHERE document = 1", "document"),
        ("DELETE FROM document_meta WHERE document = 1", ""),
        ("UPDATE document_meta SET value = 7 WHERE document = 1", ""),
        ("DELETE FROM vectors WHERE id = 4", ""),
        ("UPDATE vectors SET vector = x'00' WHERE id = 4", ""),
        ("UPDATE vectors SET vector = zeroblob(16) WHERE id = 4", ""),
        ("UPDATE fingerprints SET dimension = 5", ""),
        ("INSERT INTO vectors(fingerprint, key, vector, crc) VALUES (1, x'00', zeroblob(16), 3972075264)", ""),
        ("DELETE FROM lexical_docsize WHERE id = 2", ""),
        ("INSERT INTO lexical(rowid, text, heading) VALUES (999, 'ghost', '')", ""),
        ("INSERT INTO lexical(lexical, rowid, text, heading) VALUES ('delete', 1, 'document', '')", ""),
        ("UPDATE lexical_data SET block = x'0000' WHERE id > 10", ""),
        ("DELETE FROM files WHERE document = 1", ""),
        ("UPDATE state SET value = '{' WHERE name = 'manifest'", ""),
        ("UPDATE state SET value = 'x' WHERE name = 'generation'", ""),
        ("DELETE FROM state", ""),
        ("INSERT INTO derived VALUES ('rows', 1, 'rows.1.abc', 'abc', 3)", ""),
        ("DROP TABLE vectors", ""),
        ("DROP TABLE lexical", ""),
        ("DROP TABLE document_meta", ""),
        ("DROP INDEX chunks_key", ""),
        ("DROP TABLE files", ""),
    ],
)
def test_every_kind_of_damage_is_cured(index: Path, sql: str, lost: str) -> None:
    before = dump(index)
    execute(index, sql)
    assert not verify(index).ok
    report = mended(index)
    assert report.fixed or report.removed or report.uncut or report.unembedded
    after = dump(index)
    with Store.open(index) as store:
        kept = {info.source for info in store.documents()}
        assert store.manifest()["fingerprint"] == FINGERPRINT
        if lost == "document":
            assert kept == {"1.md", "2.md", "3.md", "4.md"}
            assert "0.md" in report.removed[0].source
            assert "/docs/0.md" not in store.files(), "the next ingestion reads it again"
        else:
            assert report.removed == []
            assert kept == {entry.document.source for entry in ENTRIES}
        if lost == "chunks":
            assert report.uncut == [ENTRIES[0].document.id]
            assert store.files()["/docs/0.md"].recipe == ""
            assert store.document(ENTRIES[0].document.id) == ENTRIES[0].document
        if not lost:
            for table in ("documents", "document_texts", "document_meta", "chunks", "lexical"):
                assert after[table] == before[table], table
            assert sorted(row[2:] for row in after["vectors"]) == sorted(row[2:] for row in before["vectors"])
    assert repair(index) == RepairReport()


def test_a_repaired_index_takes_back_what_was_lost(index: Path) -> None:
    before = dump(index)
    execute(index, "UPDATE chunks SET token_count = 1 WHERE id = 3")
    execute(index, "UPDATE documents SET title = 'x' WHERE id = 4")
    report = mended(index)
    assert len(report.uncut) == len(report.removed) == 1
    with Store.create_or_open(index) as store:
        store.commit(entries=[ENTRIES[0], ENTRIES[3]])
        assert {info.id for info in store.documents()} == {entry.document.id for entry in ENTRIES}
        assert verify(store).problems == []
    assert len(dump(index)["chunks"]) == len(before["chunks"])


def test_a_last_good_version_that_is_gone_leaves_the_failure(index: Path) -> None:
    with Store.create_or_open(index) as store:
        store.commit(failed=[failed_record("1.md")])
    execute(index, "DELETE FROM documents WHERE source = '1.md'")
    report = mended(index)
    assert report.removed[0].why == "its last good version is gone"
    with Store.open(index) as store:
        assert store.files()["/docs/1.md"].error == "not a PDF"


def test_a_sound_index_is_left_alone(index: Path) -> None:
    with Store.create_or_open(index) as store, store.corpus() as corpus:
        corpus.publish("rows", lambda path: path.write_bytes(b"x"))
    before = dump(index)
    assert repair(index) == RepairReport()
    assert dump(index) == before
    with Store.open(index) as store, store.corpus() as corpus:
        assert corpus.derived("rows") is not None


def test_a_damaged_snapshot_is_put_aside(index: Path) -> None:
    with Store.open(index) as store:
        info = store.snapshot_create("first")
    info.path.write_bytes(b"x" + info.path.read_bytes()[1:])
    assert "snapshot first" in repair(index).fixed[0]
    assert verify(index).ok
    assert info.path.with_name(f"{info.path.name}.damaged").exists()


# -- files that SQLite cannot read ---------------------------------------------------------------------------


def flip(path: Path, page: int) -> None:
    data = bytearray(path.read_bytes())
    middle = page * 4096 + 2000
    data[middle : middle + 64] = bytes(byte ^ 0x5A for byte in data[middle : middle + 64])
    path.write_bytes(data)


def check_salvaged(index: Path, report: RepairReport) -> int:
    """Every document is either as it was, with its chunks, or named in the report; how many are as they were."""
    named = {item.source for item in report.removed}
    whole = 0
    with Store.open(index) as store:
        held = {info.source: info.id for info in store.documents()}
        for entry in ENTRIES:
            source = entry.document.source
            if source in held and held[source] not in report.uncut:
                assert store.document(entry.document.id) == entry.document
                assert tuple(store.chunks_of(entry.document.id)) == entry.chunks
                whole += 1
            elif source not in held:
                assert source in named or report.aside, source
    return whole


@pytest.mark.slow
def test_a_spoiled_page_costs_what_lay_on_it(index: Path, tmp_path: Path) -> None:
    path = index / FILE_NAME
    pages = path.stat().st_size // 4096
    whole = []
    for page in range(1, pages):
        copy = tmp_path / f"page{page}"
        shutil.copytree(index, copy)
        flip(copy / FILE_NAME, page)
        was_ok = verify(copy).ok
        report = mended(copy)
        assert was_ok == (report.fixed == [])
        whole.append(check_salvaged(copy, report))
        shutil.rmtree(copy)
    assert sum(count == len(ENTRIES) for count in whole) > len(whole) / 2
    assert sum(whole) > 0.7 * len(ENTRIES) * len(whole)


@pytest.mark.parametrize("keep", [0.5, 0.9, -1])
def test_a_truncated_file_is_salvaged_and_kept_aside(index: Path, keep: float) -> None:
    path = index / FILE_NAME
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep > 0 else -1])
    damaged = path.read_bytes()
    report = mended(index)
    assert report.aside == index / f"{FILE_NAME}.damaged-1"
    assert report.aside.read_bytes() == damaged
    check_salvaged(index, report)
    assert not (index / "salvage").exists()


@pytest.mark.parametrize("content", [b"", b"not a database " * 999, b"SQLite format 3\0" + b"\xff" * 9000])
def test_garbage_ends_as_an_empty_index_with_the_file_aside(index: Path, content: bytes) -> None:
    (index / FILE_NAME).write_bytes(content)
    report = mended(index)
    assert report.aside is not None
    assert report.aside.read_bytes() == content
    with Store.create_or_open(index) as store:
        store.commit(entries=ENTRIES)
        assert verify(store).ok


def test_row_ids_go_on_after_a_salvage(index: Path) -> None:
    with Store.create_or_open(index) as store:
        store.commit(entries=[make_entry("words that go again " * 50, "gone.md")])
        with store.corpus() as corpus:
            last = int(corpus.rows().max())
        store.commit(removed=["/docs/gone.md"])
    execute(index, "DROP TABLE derived")
    mended(index)
    with Store.create_or_open(index) as store:
        store.commit(entries=[make_entry("words of another " * 50, "new.md")])
        with store.corpus() as corpus:
            assert int(corpus.rows({"source": "new.md"}).min()) > last


def test_what_is_not_ours_to_repair(index: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rag ingest PATH"):
        repair(tmp_path / "absent")
    with Store.create_or_open(index), pytest.raises(IndexLockedError):
        repair(index)
    for pragma, word in (
        ("user_version=99", "Upgrade"),
        ("user_version=1", "rag migrate"),
        ("application_id=7", "another"),
    ):
        copy = tmp_path / pragma
        shutil.copytree(index, copy)
        execute(copy, f"PRAGMA {pragma}")
        before = (copy / FILE_NAME).read_bytes()
        with pytest.raises(IndexDamagedError, match=word):
            repair(copy)
        assert (copy / FILE_NAME).read_bytes() == before


def test_a_lost_mark_is_damage_when_the_tables_are_ours(index: Path) -> None:
    execute(index, "PRAGMA application_id=0")
    report = mended(index)
    assert report.aside is not None
    assert check_salvaged(index, report) == len(ENTRIES)


def test_commits_that_are_only_in_the_log_are_salvaged_too(index: Path, tmp_path: Path) -> None:
    with Store.create_or_open(index) as store:
        store.commit(entries=[make_entry("only in the log " * 20, "log.md")])
        shutil.copytree(index, tmp_path / "copy")
    copy = tmp_path / "copy"
    connection = sqlite3.connect(copy / FILE_NAME, isolation_level=None)
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("PRAGMA application_id=0")
    connection.execute("BEGIN")
    repaired = repair_in_child(copy)
    connection.close()
    assert "log.md" in repaired


def repair_in_child(directory: Path) -> set[str]:
    repair(directory)
    assert verify(directory).ok
    with Store.open(directory) as store:
        return {info.source for info in store.documents()}
