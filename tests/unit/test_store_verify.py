"""verify finds every kind of damage, and never falls over it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from rag.errors import IndexDamagedError, RagError
from rag.store import Store, verify
from rag.store.schema import FILE_NAME
from tests.crash.entries import FINGERPRINT, fill, make_entry


@pytest.fixture
def index(tmp_path: Path) -> Path:
    fill(tmp_path, *(make_entry(f"document number {at} says this and that " * 30, f"{at}.md") for at in range(5)))
    return tmp_path


def execute(directory: Path, sql: str) -> None:
    connection = sqlite3.connect(directory / FILE_NAME)
    with connection:
        connection.execute(sql)
    connection.close()


def test_a_sound_index_has_no_problems(index: Path) -> None:
    report = verify(index)
    assert report.to_dict()["ok"] is True
    assert report.problems == []
    with Store.open(index) as store:
        stats = store.stats()
    assert {name: report.checked[name] for name in ("documents", "chunks", "vectors", "lexical", "files")} == {
        "documents": 5,
        "chunks": stats["chunks"],
        "vectors": stats["vectors"],
        "lexical": stats["chunks"],
        "files": 5,
    }


@pytest.mark.parametrize(
    ("sql", "word"),
    [
        ("UPDATE chunks SET start = start + 1 WHERE id = 3", "not the text that was chunked"),
        ("UPDATE chunks SET stop = 99999 WHERE id = 3", "outside"),
        ("UPDATE chunks SET header = 'x' WHERE id = 3", "not the text that was chunked"),
        ("UPDATE document_texts SET text = replace(text, 'says', 'sagt') WHERE document = 2", "not the one"),
        ("UPDATE document_texts SET text = CAST(x'80ff' AS TEXT) WHERE document = 2", "cannot be read"),
        ("UPDATE documents SET blocks = '[[1' WHERE id = 2", "cannot be read"),
        ("DELETE FROM vectors WHERE id = 4", f"has no vector of '{FINGERPRINT}'"),
        ("UPDATE vectors SET vector = x'00' WHERE id = 4", "1 bytes instead of 16"),
        (
            "INSERT INTO vectors(fingerprint, key, vector, crc) VALUES (1, x'00', zeroblob(16), 0)",
            "belongs to no chunk",
        ),
        ("DELETE FROM lexical_docsize WHERE id = 2", "missing in the full-text index"),
        ("INSERT INTO lexical(rowid, text, heading) VALUES (999, 'ghost', '')", "ghost"),
        (
            "INSERT INTO lexical(lexical, rowid, text, heading) VALUES ('delete', 1, 'document', '')",
            "'document' has wrong",
        ),
        ("DELETE FROM chunks WHERE id = 2", "belongs to no chunk"),
        ("DELETE FROM files WHERE document = 2", "belongs to no file"),
        ("DELETE FROM documents WHERE id = 2", "missing row"),
        ("UPDATE state SET value = '{' WHERE name = 'manifest'", "vectors:"),
        ("DROP TABLE vectors", "vectors"),
    ],
)
def test_damage_is_found(index: Path, sql: str, word: str) -> None:
    execute(index, sql)
    report = verify(index)
    assert not report.ok
    assert any(word in problem for problem in report.problems), report.problems


def test_many_problems_of_a_kind_are_counted_not_listed(index: Path) -> None:
    execute(index, "DELETE FROM vectors")
    problems = verify(index).problems
    assert len(problems) < 30
    assert "more of this kind" in problems[-1]


@pytest.mark.parametrize("keep", [0, 50, 100, 4096, 0.5, 0.9, -1])
def test_a_truncated_file_is_reported(index: Path, keep: float) -> None:
    path = index / FILE_NAME
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    report = verify(index)
    assert not report.ok
    assert all(isinstance(problem, str) and problem for problem in report.problems)


def test_no_flipped_page_goes_unreported_or_crashes(index: Path) -> None:
    """Every page of the file, spoiled in its middle: verify reports, or the bytes were free space."""
    path = index / FILE_NAME
    data = path.read_bytes()
    for page in range(len(data) // 4096):
        spoiled = bytearray(data)
        middle = page * 4096 + 2000
        spoiled[middle : middle + 64] = bytes(byte ^ 0x5A for byte in spoiled[middle : middle + 64])
        path.write_bytes(spoiled)
        report = verify(index)
        if any(data[middle : middle + 64]):
            assert not report.ok, f"page {page} of {len(data) // 4096}"


def test_garbage_is_reported_and_refused(index: Path) -> None:
    (index / FILE_NAME).write_bytes(b"this is no database at all, not even close " * 200)
    assert "damaged" in verify(index).problems[0]
    with pytest.raises(IndexDamagedError, match="restore a copy"):
        Store.open(index)
    with pytest.raises(IndexDamagedError):
        Store.create_or_open(index)


def test_reading_a_damaged_index_is_our_error(index: Path) -> None:
    path = index / FILE_NAME
    path.write_bytes(path.read_bytes()[: 4096 * 6])
    calls: list[Callable[[Store], object]] = [
        Store.documents,
        Store.stats,
        lambda store: [store.chunks_of(info.id) for info in store.documents()],
        lambda store: store.corpus().vectors(),
    ]
    for call in calls:
        with pytest.raises(RagError), Store.open(index) as store:
            call(store)


def test_the_missing_index_is_a_report_too(tmp_path: Path) -> None:
    (problem,) = verify(tmp_path / "nothing").problems
    assert "rag ingest" in problem


def test_the_full_text_index_can_be_repaired(index: Path) -> None:
    execute(index, "DELETE FROM lexical_docsize WHERE id = 2")
    with Store.create_or_open(index) as store:
        assert store.rebuild_lexical() == store.stats()["chunks"]
        assert verify(store).ok
