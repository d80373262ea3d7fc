"""The verbs about single documents: list, remove."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rag.errors import UsageError
from rag.index import Index
from rag.removal import remove
from rag.store import Store, verify
from tests.crash.verbs import pipeline
from tests.e2e.conftest import Run

Rag = Callable[..., Run]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Five documents, two of them with one text, and a file that is none."""
    docs = tmp_path / "docs"
    (docs / "drafts").mkdir(parents=True)
    for name in ("one.txt", "two.txt", "drafts/three.txt", "drafts/four.txt"):
        (docs / name).write_text(f"The file {name} says this and that.\n" * 12)
    (docs / "twin.txt").write_text((docs / "one.txt").read_text())
    (docs / "broken.pdf").write_bytes(b"no PDF")
    pipeline(40).index(docs, tmp_path / "idx").close()
    return tmp_path / "idx"


def sources(directory: Path) -> list[str]:
    with Store.open(directory) as store:
        return sorted(file.source for file in store.files().values())


def test_list_names_every_document_and_every_failed_file(rag: Rag, home: Path) -> None:
    (home / "docs" / "broken.pdf").write_bytes(b"no PDF")
    assert rag("ingest", "docs", "--index", "idx", "--json").code == 4
    told = rag("list", "--index", "idx", "--json").json
    assert [one["source"] for one in told["failed"]] == ["docs/broken.pdf"]
    assert {one["source"] for one in told["documents"]} >= {"docs/handbook.md", "docs/notes/minutes.txt"}
    assert all(one["chunks"] and one["characters"] and one["id"] and one["files"] for one in told["documents"])
    lines = rag("list", "docs/notes/*", "--index", "idx").out.splitlines()
    assert [line.split()[-1] for line in lines] == ["docs/notes/minutes.txt"]


def test_what_is_removed_is_found_no_more_and_the_rest_is_sound(index: Path) -> None:
    before = sources(index)
    report = remove(index, ["docs/two.txt", "docs/drafts/*"], pipeline=pipeline(40))
    gone = ("docs/drafts/four.txt", "docs/drafts/three.txt", "docs/two.txt")
    assert (report.sources, report.present, report.documents) == (gone, gone, 3)
    assert report.chunks >= 3
    assert sources(index) == sorted(set(before) - set(gone))
    assert verify(index).problems == []
    with Index.open(index) as left:
        found = {left.document(hit.chunk.doc_id).source for hit in pipeline(40).search("file says this", left, k=50)}
    assert found == {"docs/one.txt", "docs/twin.txt"}


def test_a_document_id_or_its_beginning_is_a_name(index: Path) -> None:
    with Store.open(index) as store:
        named = store.find_document("docs/one.txt")
    report = remove(index, [named.id[:8]], pipeline=pipeline(40))
    assert (report.sources, report.documents) == (("docs/one.txt",), 1)


def test_a_failed_file_can_be_forgotten(index: Path) -> None:
    assert remove(index, ["docs/broken.pdf"], pipeline=pipeline(40)).documents == 0
    assert "docs/broken.pdf" not in sources(index)


@pytest.mark.parametrize("name", ["nothing.txt", "nothing/*", "ffffffffffff"])
def test_a_name_for_nothing_changes_nothing(index: Path, name: str) -> None:
    before = sources(index)
    with pytest.raises(UsageError, match=name.replace("*", ".")):
        remove(index, ["docs/one.txt", name], pipeline=pipeline(40))
    assert sources(index) == before


def test_the_command_says_what_goes_and_that_a_file_may_come_back(rag: Rag, home: Path) -> None:
    rag("ingest", "docs", "--index", "idx")
    before = sources(home / "idx")
    tried = rag("remove", "docs/notes/*", "--dry-run", "--index", "idx")
    assert "would remove  docs/notes/minutes.txt" in tried.out
    assert sources(home / "idx") == before
    done = rag("remove", "docs/notes/*", "--index", "idx")
    assert (done.code, done.out) == (0, "removed  docs/notes/minutes.txt\n")
    assert "1 of these files are still there" in done.err
    assert "minutes.txt" not in rag("search", "the Leipzig office closes", "--index", "idx").out
    assert rag("remove", "docs/notes/*", "--index", "idx").code == 2
    assert rag("remove", "one.txt", "--index", "none").code == 2
