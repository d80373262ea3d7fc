"""Opening: what is no index, what is too new, what cannot be written."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from rag.errors import IndexDamagedError, UsageError
from rag.store import Store, database, verify
from rag.store.schema import FILE_NAME, FORMAT
from tests.crash.entries import dump, fill, make_entry


def pragma(directory: Path, name: str, value: int | None = None) -> int:
    connection = sqlite3.connect(directory / FILE_NAME)
    if value is not None:
        connection.execute(f"PRAGMA {name} = {value}")
    (found,) = connection.execute(f"PRAGMA {name}").fetchone()
    connection.close()
    return found


def test_the_settings_of_a_new_index(tmp_path: Path) -> None:
    with Store.create_or_open(tmp_path / "deep" / "er") as store:
        assert store.writable
        assert store._db.value("PRAGMA journal_mode") == "wal"
        assert store._db.value("PRAGMA synchronous") == 2
        assert store._db.value("PRAGMA foreign_keys") == 1
        assert store.manifest() == {}
        assert verify(store).ok
    assert pragma(store.directory, "application_id") == 0x43485731
    assert pragma(store.directory, "user_version") == FORMAT
    assert sorted(path.name for path in store.directory.iterdir()) == [FILE_NAME, "writer.lock"]


@pytest.mark.parametrize("opening", [Store.open, Store.create_or_open])
def test_other_applications_and_newer_formats_are_refused(tmp_path: Path, opening) -> None:
    fill(tmp_path, make_entry("text"))
    pragma(tmp_path, "user_version", FORMAT + 1)
    with pytest.raises(IndexDamagedError, match=rf"format {FORMAT + 1}.*reads format {FORMAT}.*Upgrade"):
        opening(tmp_path)
    pragma(tmp_path, "application_id", 7)
    with pytest.raises(IndexDamagedError, match=r"another application.*rag ingest"):
        opening(tmp_path)
    assert not verify(tmp_path).ok
    pragma(tmp_path, "application_id", 0x43485731)
    pragma(tmp_path, "user_version", FORMAT)
    opening(tmp_path).close()


def test_reading_a_directory_without_an_index_names_the_command(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match=f"rag ingest PATH --index {directory}"):
            Store.open(directory)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "idx").write_text("x")
    with pytest.raises(UsageError, match="cannot be an index directory"):
        Store.create_or_open(tmp_path / "idx")


def test_leftovers_of_an_older_index_do_not_leak_into_a_new_one(tmp_path: Path) -> None:
    fill(tmp_path / "new")
    fill(tmp_path / "old", make_entry("old text"))
    with Store.create_or_open(tmp_path / "old") as store:
        store.commit(entries=[make_entry("in the log", "log.md")])
        log = (tmp_path / "old" / f"{FILE_NAME}-wal").read_bytes()
    (tmp_path / "old" / FILE_NAME).unlink()
    (tmp_path / "old" / f"{FILE_NAME}-wal").write_bytes(log)
    (tmp_path / "old" / f"{FILE_NAME}.new").write_bytes(b"half made")
    fill(tmp_path / "old")
    assert dump(tmp_path / "old") == dump(tmp_path / "new")


def test_names_that_need_quoting(tmp_path: Path) -> None:
    directory = tmp_path / "a b?c#d%20é😀"
    fill(directory, make_entry("text"))
    assert verify(directory).ok


def test_a_copy_with_an_unfinished_log_is_complete(tmp_path: Path) -> None:
    """What a backup of a live index, or a dead writer, leaves behind: database and log, no shared memory."""
    with Store.create_or_open(tmp_path / "live") as store:
        store.commit(entries=[make_entry("only in the log")])
        (tmp_path / "copy").mkdir()
        for name in (FILE_NAME, f"{FILE_NAME}-wal"):
            shutil.copy(tmp_path / "live" / name, tmp_path / "copy" / name)
    with Store.open(tmp_path / "copy") as reader:
        assert reader.stats()["documents"] == 1


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that SQLite may not write. Root may write everywhere, so there the refusal is acted out."""
    fill(tmp_path, make_entry("text on a read-only medium"))
    if os.geteuid():
        tmp_path.chmod(0o555)
        return tmp_path
    opened, may = database._open, os.access

    def refuse(path: Path, options: str, busy_seconds: float) -> sqlite3.Connection:
        if "immutable" not in options:
            raise sqlite3.OperationalError("unable to open database file")
        return opened(path, options, busy_seconds)

    monkeypatch.setattr(database, "_open", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and may(path, mode))
    return tmp_path


def test_a_read_only_directory_can_be_searched(read_only: Path) -> None:
    with Store.open(read_only) as reader, reader.corpus() as corpus:
        assert corpus.lexical(["medium"], 5)
        assert len(corpus.vectors()[0]) == len(corpus)
        assert reader.add_run({"question": "q"}) == ""
        assert verify(reader).ok


def test_a_read_only_directory_with_an_unfinished_log_is_refused(read_only: Path) -> None:
    if os.geteuid():
        read_only.chmod(0o755)
    (read_only / f"{FILE_NAME}-wal").write_bytes(b"unfinished")
    if os.geteuid():
        read_only.chmod(0o555)
    with pytest.raises(UsageError, match="unfinished log"):
        Store.open(read_only)
