"""Derived files: whole, checksummed, of one generation, swept away when superseded."""

from __future__ import annotations

from pathlib import Path

import pytest

from rag.errors import ConfigError
from rag.store import Store, verify
from tests.crash.entries import fill, make_entry


@pytest.fixture
def store(tmp_path: Path):
    fill(tmp_path, make_entry("text " * 30))
    with Store.create_or_open(tmp_path) as opened:
        yield opened


def publish(store: Store, data: bytes, name: str = "x.index") -> Path | None:
    with store.corpus() as corpus:
        return corpus.publish(name, lambda path: path.write_bytes(data))


def find(store: Store, name: str = "x.index") -> Path | None:
    with store.corpus() as corpus:
        return corpus.derived(name)


def test_a_published_file_is_found_by_readers(store: Store) -> None:
    assert find(store) is None
    path = publish(store, b"abc" * 1000)
    assert path is not None
    assert path.read_bytes() == b"abc" * 1000
    with Store.open(store.directory) as reader:
        assert find(reader) == path
        assert find(reader, "y.index") is None
    assert verify(store).checked["derived"] == 1


def test_the_open_view_that_published_finds_its_file(store: Store) -> None:
    with store.corpus() as corpus:
        path = corpus.publish("x", lambda path: path.touch())
        assert path is not None
        assert corpus.derived("x") == path


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_file_is_not_used_but_reported_and_published_anew(store: Store, damage: str) -> None:
    path = publish(store, bytes(range(256)) * 40)
    assert path is not None
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    {"flip": lambda: path.write_bytes(data), "cut": lambda: path.write_bytes(data[:-1]), "gone": path.unlink}[damage]()
    assert find(store) is None
    (problem,) = verify(store).problems
    assert "x.index" in problem
    assert publish(store, b"new") is not None
    assert verify(store).ok


def test_another_generation_needs_another_file(store: Store) -> None:
    old = publish(store, b"old")
    keep = publish(store, b"other", "y.index")
    assert old is not None
    assert keep is not None
    store.commit(entries=[make_entry("more", "b.md")])
    assert find(store) is None
    new = publish(store, b"new")
    assert new is not None
    assert find(store) == new
    assert not old.exists()
    assert keep.exists(), "publishing one name leaves the others alone"


def test_a_view_that_is_behind_publishes_nothing(store: Store) -> None:
    with store.corpus() as corpus:
        store.commit(entries=[make_entry("more", "b.md")])
        assert corpus.publish("x.index", lambda path: path.touch()) is None
    assert list((store.directory / "derived").iterdir()) == []


def test_readers_publish_nothing(store: Store) -> None:
    store.close()
    with Store.open(store.directory) as reader, reader.corpus() as corpus:
        assert corpus.publish("x.index", lambda path: path.touch()) is None
    assert not (store.directory / "derived").exists()


def test_a_write_that_fails_leaves_no_file(store: Store) -> None:
    def broken(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("no")

    with store.corpus() as corpus, pytest.raises(RuntimeError):
        corpus.publish("x.index", broken)
    assert list((store.directory / "derived").iterdir()) == []


def test_files_of_a_dead_publication_are_swept_by_the_next_writer(store: Store) -> None:
    path = publish(store, b"good")
    assert path is not None
    (path.parent / "x.index.0123.tmp").write_bytes(b"half")
    (path.parent / "x.index.1.feedfeedfeed").write_bytes(b"renamed, never recorded")
    store.close()
    with Store.create_or_open(store.directory):
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 101, "ü"])
def test_names_are_checked(store: Store, name: str) -> None:
    with pytest.raises(ConfigError, match="derived file"):
        publish(store, b"x", name)
