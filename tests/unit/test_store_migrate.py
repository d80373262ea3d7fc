"""An index of an older format is brought up to date in place: nothing lost, nothing between, nothing surprising."""

from __future__ import annotations

import gzip
import sqlite3
from pathlib import Path

import pytest

from rag.errors import IndexDamagedError, IndexLockedError, UsageError
from rag.store import Store, verify
from rag.store.migrate import migrate
from rag.store.repair import repair
from rag.store.schema import FILE_NAME, FORMAT
from rag.store.snapshots import restore_snapshot
from tests.crash.entries import FINGERPRINT, fill, make_entry

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
CHUNKS = "id, document, start, stop, parent_start, parent_stop, token_count, key, header, section, chunker"


def unpacked(number: int, directory: Path) -> Path:
    """An index directory of that format: three documents, one failed file, a derived file that is gone."""
    data = (FIXTURES / f"index-format-{number}.sqlite.gz").read_bytes()
    (directory / FILE_NAME).write_bytes(gzip.decompress(data))
    return directory


@pytest.fixture(params=range(1, FORMAT))
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An index of every older format."""
    return unpacked(request.param, tmp_path)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """An index of format 1, whose traces of runs lie in the same file."""
    return unpacked(1, tmp_path)


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """What format 1 holds and later formats must keep."""
    connection = sqlite3.connect(path)
    queries = {
        "documents": "SELECT id, doc_id, source, title, chars, decision, meta, blocks, pages FROM documents",
        "chunks": f"SELECT {CHUNKS} FROM chunks",
        "vectors": "SELECT fingerprint, key, vector FROM vectors",
        "files": "SELECT * FROM files",
        "texts": "SELECT * FROM document_texts",
        "state": "SELECT * FROM state",
        "numbers": "SELECT * FROM sqlite_sequence WHERE name <> 'runs'",
    }
    held = {name: connection.execute(sql).fetchall() for name, sql in queries.items()}
    connection.close()
    return held


def test_an_old_index_names_the_cure(old: Path) -> None:
    for opening in (Store.open, Store.create_or_open):
        with pytest.raises(IndexDamagedError, match=rf"format {format_of(old)}.*rag migrate --index {old}"):
            opening(old)
    assert "rag migrate" in verify(old).problems[0]


def test_everything_is_kept(old: Path) -> None:
    before, number = rows(old / FILE_NAME), format_of(old)
    report = migrate(old)
    assert report.to_dict() == {"before": number, "after": FORMAT, "snapshot": f"before-format-{FORMAT}"}
    assert rows(old / FILE_NAME) == before
    with Store.open(old) as store:
        assert [info.source for info in store.documents()] == ["travel.md", "odd.md", "third.md"]
        assert store.files()["/docs/broken.pdf"].error == "not a PDF"
        assert store.manifest()["fingerprint"] == FINGERPRINT
        (problem,) = verify(store).problems
        assert "derived file rows" in problem, "the fixture comes without its derived file"
    assert migrate(old).to_dict() == {"before": FORMAT, "after": FORMAT, "snapshot": None}


def test_traces_move_to_their_own_file(first: Path) -> None:
    migrate(first)
    with Store.open(first) as store:
        assert store.runs(5)[0]["question"] == "Who approves travel?"


def test_chunks_of_older_formats_are_read_alone(old: Path) -> None:
    migrate(old)
    with Store.open(old) as store:
        chunks = [chunk for info in store.documents() for chunk in store.chunks_of(info.id)]
        assert len(chunks) > 9
        assert {chunk.surround for chunk in chunks} == {""}


def test_a_migrated_index_has_the_tables_of_a_new_one(old: Path, tmp_path: Path) -> None:
    migrate(old, keep_old=False)
    assert not (old / "snapshots").exists()
    Store.create_or_open(tmp_path / "new").close()

    def columns(directory: Path) -> set[tuple[object, ...]]:
        connection = sqlite3.connect(directory / FILE_NAME)
        sql = (
            'SELECT m.type, m.name, c.name, c.type, c."notnull", c.pk FROM sqlite_master m '
            "LEFT JOIN pragma_table_info(m.name) c WHERE m.name NOT LIKE 'sqlite_%'"
        )
        found = set(connection.execute(sql).fetchall())
        connection.close()
        return found

    assert columns(old) == columns(tmp_path / "new")


def test_a_damaged_index_of_the_format_before_is_salvaged_into_this_one(tmp_path: Path) -> None:
    index = unpacked(FORMAT - 1, tmp_path)
    before = rows(index / FILE_NAME)
    with (index / FILE_NAME).open("ab") as file:
        file.write(b"x" * 100)
    report = repair(index)
    assert "ends inside a page" in report.fixed[0]
    assert format_of(index) == FORMAT
    assert rows(index / FILE_NAME)["chunks"] == before["chunks"]
    assert verify(index).problems == []


def test_writing_goes_on_after_a_migration(old: Path) -> None:
    migrate(old)
    with Store.create_or_open(old) as store:
        store.commit(entries=[make_entry("a fourth document " * 9, "fourth.md")], removed=["/docs/odd.md"])
        with store.corpus() as corpus:
            corpus.publish("rows", lambda path: path.write_bytes(b"x"))
        assert verify(store).problems == []


def test_the_snapshot_of_the_old_state_can_be_restored_by_this_version(old: Path) -> None:
    before = rows(old / FILE_NAME)
    report = migrate(old)
    with Store.create_or_open(old) as store:
        store.commit(removed=["/docs/odd.md", "/docs/travel.md"])
        traces = store.runs(9)
        store.snapshot_restore(str(report.snapshot))
        assert store.runs(9) == traces
        assert verify(store).problems == []
    after = rows(old / FILE_NAME)
    for name in ("documents", "chunks", "vectors", "files", "texts"):
        assert after[name] == before[name]
    restore_snapshot(old, str(report.snapshot))


def test_an_open_reader_of_the_old_format_sees_no_change(old: Path) -> None:
    reader = sqlite3.connect(f"file:{old / FILE_NAME}?mode=ro", uri=True, isolation_level=None)
    reader.execute("BEGIN")
    before = reader.execute("SELECT * FROM vectors").fetchall()
    migrate(old)
    assert reader.execute("SELECT * FROM vectors").fetchall() == before
    reader.close()


def test_newer_and_foreign_files_and_no_file_are_refused(old: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rag ingest PATH"):
        migrate(tmp_path / "absent")
    connection = sqlite3.connect(old / FILE_NAME)
    connection.execute("PRAGMA user_version=99")
    with pytest.raises(IndexDamagedError, match=r"format 99.*Upgrade Chunkwise"):
        migrate(old)
    connection.execute("PRAGMA application_id=7")
    connection.close()
    with pytest.raises(IndexDamagedError, match="another application"):
        migrate(old)


def test_a_writer_is_not_disturbed(tmp_path: Path) -> None:
    fill(tmp_path, make_entry("text"))
    with Store.create_or_open(tmp_path), pytest.raises(IndexLockedError):
        migrate(tmp_path)


def test_an_unreadable_file_of_traces_stops_a_migration_before_it_begins(first: Path) -> None:
    (first / "runs.sqlite").write_bytes(b"something else " * 100)
    with pytest.raises(IndexDamagedError, match="rag repair"):
        migrate(first)
    assert format_of(first) == 1


def format_of(directory: Path) -> int:
    connection = sqlite3.connect(directory / FILE_NAME)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    return int(version)
