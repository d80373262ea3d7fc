"""Snapshots come back exactly, the swap is one step, and readers that are open never see it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from rag.errors import IndexDamagedError, RagError, UsageError
from rag.store import Store, swap, verify
from rag.store.schema import FILE_NAME, FORMAT
from rag.store.snapshots import SNAPSHOTS, check_snapshot, restore_snapshot
from tests.crash.entries import FINGERPRINT, dump, failed_record, fill, make_entry


@pytest.fixture
def index(tmp_path: Path) -> Path:
    directory = tmp_path / "idx"
    fill(directory, *(make_entry(f"document number {at} says this and that " * 30, f"{at}.md") for at in range(5)))
    return directory


def change(store: Store) -> None:
    """New, changed, removed and failed inputs, and another manifest."""
    entries = [make_entry("brand new words " * 40, "new.md"), make_entry("other words " * 20, "1.md")]
    store.commit(entries=entries, removed=["/docs/2.md"], failed=[failed_record("bad.pdf")])
    store.set_manifest({"fingerprint": FINGERPRINT, "dimension": 4, "more": 1})


def state(directory: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Everything but the counters, which never run backwards."""
    held = dump(directory)
    held.pop("sqlite_sequence", None)
    held["state"] = [row for row in held["state"] if row[0] != "generation"]
    return held


def test_a_round_trip_gives_the_old_state_back(index: Path) -> None:
    before = state(index)
    with Store.create_or_open(index) as store:
        old = store.stats()["generation"]
        info = store.snapshot_create("first")
        assert (info.name, info.documents, info.generation) == ("first", 5, old)
        change(store)
        store.snapshot_restore("first")
        assert store.stats()["generation"] > old + 1
        assert verify(store).problems == []
    assert state(index) == before
    assert not list(index.glob("*.tmp*"))


def test_an_open_reader_keeps_its_state_over_a_restore(index: Path) -> None:
    with Store.create_or_open(index) as store:
        store.snapshot_create("first")
        change(store)
        with Store.open(index) as reader, reader.corpus() as corpus:
            rows, matrix = corpus.vectors()
            texts = [chunk.text for chunk in corpus.chunks(rows)]
            store.snapshot_restore("first")
            again, same = corpus.vectors()
            assert (again == rows).all()
            assert (same == matrix).all()
            assert [chunk.text for chunk in corpus.chunks(rows)] == texts
            assert corpus.lexical(["brand"], 3)
            with reader.corpus() as fresh:
                assert not fresh.lexical(["brand"], 3)


def test_rows_never_stand_for_another_chunk(index: Path) -> None:
    with Store.create_or_open(index) as store:
        store.snapshot_create("first")
        store.commit(entries=[make_entry("brand new words " * 40, "new.md")])
        with store.corpus() as corpus:
            last = int(corpus.rows().max())
        store.snapshot_restore("first")
        store.commit(entries=[make_entry("words of another document " * 40, "later.md")])
        with store.corpus() as corpus:
            assert int(corpus.rows({"source": "later.md"}).min()) > last


def test_derived_files_of_before_go_with_a_restore(index: Path) -> None:
    with Store.create_or_open(index) as store:
        with store.corpus() as corpus:
            corpus.publish("rows", lambda path: path.write_bytes(b"x"))
        store.snapshot_create("first")
        store.snapshot_restore("first")
        with store.corpus() as corpus:
            assert corpus.derived("rows") is None
            assert corpus.derived_of_any("rows") is None
    assert list((index / "derived").iterdir()) == []


def test_a_snapshot_in_the_middle_of_writing_is_the_last_commit(index: Path) -> None:
    before = state(index)
    with Store.create_or_open(index) as store, Store.open(index) as reader:
        with store._db.writing():
            store._db.run("DELETE FROM files WHERE origin = '/docs/1.md'")
            reader.snapshot_create("meanwhile")
        store.snapshot_restore("meanwhile")
    assert state(index) == before


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../x", "a\\b", "x" * 99, ".hidden", "a..b", "a b", "ä", "a\x00"]
)
def test_names_stay_inside_the_folder(index: Path, name: str) -> None:
    with Store.create_or_open(index) as store:
        with pytest.raises(UsageError, match="no name for a snapshot"):
            store.snapshot_create(name)
        for act in (store.snapshot_restore, store.snapshot_delete):
            with pytest.raises(UsageError, match="no snapshot"):
                act(name)
    assert not (index / SNAPSHOTS).exists()


def test_list_and_delete(index: Path) -> None:
    with Store.create_or_open(index) as store:
        names = [store.snapshot_create(name).name for name in ("one", "two.1", None, None)]
        assert len(set(names)) == 4
        with pytest.raises(UsageError, match="already"):
            store.snapshot_create("one")
        assert {info.name for info in store.snapshots()} == set(names)
        store.snapshot_delete("one")
        with pytest.raises(UsageError, match=r"no snapshot 'one'.*two"):
            store.snapshot_delete("one")
        assert verify(store).checked["snapshots"] == 3


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_snapshot_is_found_and_refused(index: Path) -> None:
    with Store.create_or_open(index) as store:
        info = store.snapshot_create("first")
        change(store)
        before = dump(index)
        spoil(info.path)
        assert not check_snapshot(info.path)
        assert "snapshot first" in verify(store).problems[0]
        with pytest.raises(IndexDamagedError, match="'first' is damaged"):
            store.snapshot_restore("first")
        assert dump(index) == before
    assert not list(index.glob("*.tmp*"))


def test_a_snapshot_of_a_newer_format_is_refused(index: Path) -> None:
    connection = sqlite3.connect(index / FILE_NAME)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    path = index / SNAPSHOTS / "x.sqlite"
    path.parent.mkdir()
    connection = sqlite3.connect(index / FILE_NAME)
    connection.execute("VACUUM INTO ?", (str(path),))
    connection.execute(f"PRAGMA user_version={FORMAT}")
    connection.close()
    from rag.store.derived import checksum

    path.rename(path.with_name(f"newer.{checksum(path)[0]}.sqlite"))
    with Store.create_or_open(index) as store:
        with pytest.raises(IndexDamagedError, match=r"format 99.*Upgrade"):
            store.snapshot_restore("newer")
        assert verify(store).ok


@pytest.mark.parametrize("damage", ["garbage", "gone"])
def test_restoring_over_a_damaged_or_lost_index(index: Path, damage: str) -> None:
    before = state(index)
    with Store.open(index) as store:
        store.snapshot_create("first")
    if damage == "garbage":
        (index / FILE_NAME).write_bytes(b"no database at all " * 999)
    else:
        (index / FILE_NAME).unlink()
    restore_snapshot(index, "first")
    assert state(index) == before
    assert verify(index).ok
    assert (index / f"{FILE_NAME}.damaged-1").exists() == (damage == "garbage")


def test_somebody_elses_file_is_not_overwritten(index: Path) -> None:
    with Store.open(index) as store:
        store.snapshot_create("first")
    (index / FILE_NAME).unlink()
    connection = sqlite3.connect(index / FILE_NAME)
    connection.execute("PRAGMA application_id=7")
    connection.execute("CREATE TABLE precious(x)")
    connection.close()
    with pytest.raises(IndexDamagedError, match="another application"):
        restore_snapshot(index, "first")


def test_a_full_disk_is_said_before_anything_is_done(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    with Store.create_or_open(index) as store:
        store.snapshot_create("first")
        before = dump(index)
        monkeypatch.setattr(swap.shutil, "disk_usage", lambda path: Usage)
        for act in (lambda: store.snapshot_create("second"), lambda: store.snapshot_restore("first")):
            with pytest.raises(RagError, match=r"needs .* MB of free disk"):
                act()
        assert dump(index) == before
