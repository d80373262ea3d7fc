"""compact gives room back and changes nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rag.errors import RagError
from rag.store import Store, swap, verify
from rag.store.compact import compact
from tests.crash.entries import dump, fill, make_entry


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Many documents written, most of them removed, vectors of another embedder left over."""
    entries = [make_entry(f"document number {at} says this and that " * 60, f"{at}.md") for at in range(60)]
    fill(tmp_path, *entries)
    with Store.create_or_open(tmp_path) as store:
        store.commit(entries=[replace(entries[0], fingerprint="other")])
        store.commit(removed=[entry.file.origin for entry in entries[3:]])
        with store.corpus() as corpus:
            corpus.publish("rows", lambda path: path.write_bytes(b"x"))
    return tmp_path


def test_room_is_given_back_and_nothing_else_changes(index: Path) -> None:
    before = dump(index)
    with Store.create_or_open(index) as store:
        generation = store.stats()["generation"]
        report = compact(store)
        assert report.bytes_after < report.bytes_before / 2
        assert report.vectors_pruned > 0
        assert store.stats()["generation"] == generation
        assert verify(store).problems == []
        with store.corpus() as corpus:
            assert corpus.derived("rows") is not None
            assert corpus.lexical(["document"], 5)
        again = compact(store)
        assert (again.bytes_before, again.vectors_pruned) == (report.bytes_after, 0)
    after = dump(index)
    for tables in (before, after):
        tables["vectors"] = [row for row in tables["vectors"] if row[1] == 1]
        tables["fingerprints"] = [row for row in tables["fingerprints"] if row[0] == 1]
    assert after == before
    assert not list(index.glob("*.tmp*"))


def test_an_open_reader_keeps_its_state(index: Path) -> None:
    with Store.create_or_open(index) as store, Store.open(index) as reader, reader.corpus() as corpus:
        rows, matrix = corpus.vectors()
        hits = corpus.lexical(["document"], 5)
        compact(store)
        again, same = corpus.vectors()
        assert (again == rows).all()
        assert (same == matrix).all()
        assert corpus.lexical(["document"], 5) == hits


def test_a_disk_without_room_is_said_first(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    before = dump(index)
    monkeypatch.setattr(swap.shutil, "disk_usage", lambda path: Usage)
    with Store.create_or_open(index) as store, pytest.raises(RagError, match=r"Compacting.*MB of free disk"):
        compact(store)
    assert dump(index) == before
