"""The verbs that keep an index, through the command and through Python."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rag.errors import IndexDamagedError, InputError, UsageError
from rag.store import Store, verify
from rag.store.schema import FILE_NAME
from rag.upkeep import rebuild
from tests.crash.verbs import pipeline
from tests.e2e.conftest import FILES, Run
from tests.unit.test_store_verify import execute

Rag = Callable[..., Run]
WHERE = ("--index", "idx")


@pytest.fixture
def index(rag: Rag, home: Path) -> Path:
    assert rag("ingest", "docs", *WHERE, "--json").code == 0
    return home / "idx"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """An index made through Python, with a broken file and two that are the same text."""
    docs = tmp_path / "plain"
    docs.mkdir()
    for at in range(5):
        (docs / f"{at}.txt").write_text(f"document {at} says this and that.\n" * 12)
    (docs / "broken.pdf").write_bytes(b"no PDF")
    pipeline(40).index(docs, tmp_path / "idx").close()
    return tmp_path / "idx"


def texts(directory: Path) -> dict[str, list[str]]:
    with Store.open(directory) as store:
        return {info.source: [chunk.text for chunk in store.chunks_of(info.id)] for info in store.documents()}


# -- rebuild -------------------------------------------------------------------------------------------------


def test_a_rebuild_equals_a_fresh_index_and_the_next_ingestion_skips_all(plain: Path, tmp_path: Path) -> None:
    docs = tmp_path / "plain"
    with Store.open(plain) as store:
        before, failed = store.files(), store.failed_files()
    steps: list[int] = []
    report = rebuild(plain, pipeline(12), on_progress=lambda progress: steps.append(progress.done))
    assert (report.documents, report.kept, steps[-1]) == (5, 0, 5)
    assert verify(plain).problems == []
    pipeline(12).index(docs, tmp_path / "fresh").close()
    assert texts(plain) == texts(tmp_path / "fresh")
    with Store.open(plain) as store, Store.open(tmp_path / "fresh") as fresh:
        assert store.files().keys() == before.keys()
        assert [record.error for record in store.failed_files()] == [record.error for record in failed]
        ids = [info.id for info in fresh.documents()]
        assert [store.signature(name) for name in ids] == [fresh.signature(name) for name in ids]
        assert all(fresh.signature(name) for name in ids)
        assert {key: value for key, value in store.manifest().items() if key != "ready"} == {
            key: value for key, value in fresh.manifest().items() if key != "ready"
        }
    with pipeline(12).index(docs, plain) as opened:
        assert opened.report is not None
        assert (opened.report.skipped, opened.report.documents, opened.report.embedded) == (5, 0, 0)
    assert not (plain / "rebuild").exists()


def test_sources_are_not_needed_and_vectors_are_reused(plain: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "plain")
    report = rebuild(plain, pipeline(40))
    assert report.embedded == 0
    assert report.reused > 0
    assert rebuild(plain, pipeline(12)).embedded > 0
    assert verify(plain).ok


def test_a_damaged_vector_is_not_carried_over(plain: Path) -> None:
    execute(plain, "UPDATE vectors SET vector = zeroblob(length(vector)) WHERE id = 2")
    assert not verify(plain).ok
    assert rebuild(plain, pipeline(40)).embedded == 1
    assert verify(plain).ok


def test_a_damaged_document_is_not_carried_over(plain: Path) -> None:
    execute(plain, "UPDATE documents SET title = 'x' WHERE id = 2")
    with pytest.raises(IndexDamagedError, match=r"not as committed.*rag repair"):
        rebuild(plain, pipeline(12))
    assert len(verify(plain).problems) > 0


def test_readers_see_no_rebuild_and_row_ids_are_not_used_twice(plain: Path) -> None:
    with Store.open(plain) as reader, reader.corpus() as corpus:
        rows = corpus.rows()
        before = [chunk.id for chunk in corpus.chunks(rows)]
        rebuild(plain, pipeline(12))
        assert [chunk.id for chunk in corpus.chunks(rows)] == before
        assert corpus.lexical(["document"], 3)
        with reader.corpus() as fresh:
            assert int(fresh.rows().min()) > int(rows.max())
            assert fresh.generation > corpus.generation


class Interrupted(Exception):  # noqa: N818  stands for a death
    """Raised in the middle of a rebuild."""


def test_an_interrupted_rebuild_goes_on_and_takes_up_what_has_changed(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag.upkeep.BATCH_DOCUMENTS", 2)

    def stop(_: Any) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        rebuild(plain, pipeline(12), on_progress=stop)
    assert texts(plain) == texts(plain)
    docs = tmp_path / "plain"
    (docs / "0.txt").unlink()
    (docs / "1.txt").write_text("another text in the place of the first.\n" * 9)
    (docs / "new.txt").write_text("a new text.\n" * 9)
    pipeline(40).index(docs, plain, delete_missing=True).close()
    with Store.open(plain) as store, store.corpus() as corpus:
        rows = set(corpus.rows().tolist())
    report = rebuild(plain, pipeline(12))
    assert report.kept == 0
    assert verify(plain).problems == []
    pipeline(12).index(docs, tmp_path / "fresh").close()
    assert texts(plain) == texts(tmp_path / "fresh")
    with Store.open(plain) as store, store.corpus() as corpus:
        assert not rows & set(corpus.rows().tolist())


def test_what_an_interrupted_rebuild_has_is_kept(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag.upkeep.BATCH_DOCUMENTS", 2)
    seen: list[int] = []

    def stop(progress: Any) -> None:
        seen.append(progress.done)
        if len(seen) == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        rebuild(plain, pipeline(12), on_progress=stop)
    assert rebuild(plain, pipeline(12)).kept == 4
    assert verify(plain).ok


def test_a_document_that_cannot_be_cut_stops_the_rebuild(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = texts(plain)
    line = pipeline(12)
    cut = line.chunker.chunk

    def chunk(document: Any) -> Any:
        if document.source.endswith("3.txt"):
            raise InputError(f"{document.source}: too hard")
        return cut(document)

    monkeypatch.setattr(type(line.chunker), "chunk", lambda self, document: chunk(document))
    with pytest.raises(InputError, match=r"1 documents cannot be cut.*too hard"):
        rebuild(plain, line)
    monkeypatch.undo()
    assert texts(plain) == before
    assert verify(plain).ok


def test_rebuild_on_the_command_line(rag: Rag, index: Path) -> None:
    before = len(rag("search", "the", *WHERE, "--json", "-k", "100").json["hits"])
    done = rag("rebuild", *WHERE, "--set", "chunker.max_tokens=8", "--set", "chunker.min_tokens=1", "--json")
    assert done.code == 0, done.err
    assert done.json["documents"] == len(FILES)
    assert len(rag("search", "the", *WHERE, "--json", "-k", "100").json["hits"]) >= before
    assert rag("verify", *WHERE, "--json").json["ok"]
    again = rag("ingest", "docs", *WHERE, "--json").json
    assert (again["skipped"], again["embedded"]) == (len(FILES), 0)
    assert rag("rebuild", *WHERE, "--set", "max_tokens=8").code == 2
    assert rag("rebuild", *WHERE, "--chunker", "nonsense").code == 3
    assert rag("rebuild", "--index", "absent").code == 2


def test_python_says_when_there_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rag ingest PATH"):
        rebuild(tmp_path / "absent", pipeline(12))
    assert not (tmp_path / "absent").exists()


# -- verify and repair ---------------------------------------------------------------------------------------


def test_verify_compares_with_the_embedder_and_the_mirror(rag: Rag, index: Path) -> None:
    report = rag("verify", *WHERE, "--sample", "3", "--json").json
    assert report["ok"]
    assert report["checked"]["embedded again"] == 3
    connection_sql = "UPDATE vectors SET vector = zeroblob(length(vector)), crc = 0"
    execute(index, connection_sql)
    bad = rag("verify", *WHERE, "--sample", "2", "--json")
    assert bad.code == 5
    assert any("cosine" in problem for problem in bad.json["problems"])


def test_a_config_that_cannot_be_built_is_no_damage(rag: Rag, index: Path) -> None:
    with Store.create_or_open(index) as store:
        manifest = store.manifest()
        store.set_manifest({**manifest, "config": {**manifest["config"], "retriever": "gone"}})
    report = rag("verify", *WHERE, "--json")
    assert report.code == 0
    assert "not checked" in report.json["notes"][0]


def test_repair_cuts_and_embeds_again(rag: Rag, index: Path) -> None:
    before = texts(index)
    execute(index, "UPDATE chunks SET token_count = 1 WHERE id = 1")
    execute(index, "DELETE FROM vectors WHERE id = 3")
    assert rag("verify", *WHERE).code == 5
    done = rag("repair", *WHERE, "--json")
    assert done.code == 0, done.err
    assert done.json["recut"] == 1
    assert done.json["verify"]["ok"]
    assert texts(index) == before
    assert rag("repair", *WHERE).code == 0
    again = rag("ingest", "docs", *WHERE, "--json").json
    assert again["failed"] == []


def test_repair_names_what_is_gone_and_ingest_brings_it_back(rag: Rag, index: Path) -> None:
    before = texts(index)
    execute(index, "UPDATE document_texts SET text = 'x' || text WHERE document = 2")
    done = rag("repair", *WHERE)
    assert done.code == 0
    (line,) = [line for line in done.err.splitlines() if line.startswith("removed")]
    (source,) = before.keys() - texts(index).keys()
    assert source in line
    assert rag("ingest", "docs", *WHERE, "--json").json["documents"] == 1
    assert texts(index) == before


def test_an_unreadable_file_is_salvaged(rag: Rag, index: Path) -> None:
    path = index / FILE_NAME
    path.write_bytes(path.read_bytes()[:-100])
    assert rag("verify", *WHERE).code == 5
    done = rag("repair", *WHERE, "--json")
    assert done.code == 0, done.err
    assert done.json["aside"].endswith("damaged-1")
    assert rag("verify", *WHERE).code == 0


# -- snapshot, compact, migrate, cache -----------------------------------------------------------------------


def test_snapshots_on_the_command_line(rag: Rag, index: Path, home: Path) -> None:
    before = texts(index)
    assert rag("snapshot", "create", "first", *WHERE, "--json").json["documents"] == len(FILES)
    assert rag("snapshot", "create", "first", *WHERE).code == 2
    (home / "docs" / "prices.csv").unlink()
    rag("ingest", "docs", *WHERE, "--delete-missing")
    assert texts(index) != before
    listed = rag("snapshot", "list", *WHERE, "--json").json["snapshots"]
    assert [info["name"] for info in listed] == ["first"]
    assert rag("snapshot", "restore", "first", *WHERE, "--json").json["documents"] == len(FILES)
    assert texts(index) == before
    assert rag("search", "Alpha balance", *WHERE, "--json").json["hits"]
    (index / FILE_NAME).write_bytes(b"garbage" * 999)
    assert rag("snapshot", "restore", "first", *WHERE).code == 0
    assert texts(index) == before
    assert rag("snapshot", "delete", "first", *WHERE).code == 0
    assert rag("snapshot", "restore", "first", *WHERE).code == 2


def test_compact_and_migrate_on_the_command_line(rag: Rag, index: Path) -> None:
    report = rag("compact", *WHERE, "--json").json
    assert report["bytes_after"] <= report["bytes_before"]
    assert rag("migrate", *WHERE, "--json").json["snapshot"] is None
    for verb in ("compact", "migrate", "repair", "verify"):
        assert rag(verb, "--index", "absent").code == 2
    with Store.create_or_open(index):
        for verb in ("compact", "migrate", "repair", "rebuild"):
            assert rag(verb, *WHERE).code == 7


def test_the_cache_is_counted_cleared_and_made_again(
    rag: Rag, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHUNKWISE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "models" / "m").mkdir(parents=True)
    (tmp_path / "cache" / "models" / "m" / "x").write_bytes(b"123")
    assert rag("cache", "stats", "--json").json["cache"]["models"]["bytes"] == 3
    with Store.create_or_open(index) as store, store.corpus() as corpus:
        corpus.publish("rows", lambda path: path.write_bytes(b"12345"))
        assert store.manifest()["ready"]
    (index / "chroma").mkdir(exist_ok=True)
    (index / "chroma" / "x").write_bytes(b"1")
    assert rag("cache", "clear", "--kind", "derived").code == 2
    assert rag("cache", "clear", "--kind", "nonsense").code == 2
    held = rag("cache", "stats", *WHERE, "--json").json["cache"]
    assert held["derived"]["bytes"] >= 5
    freed = rag("cache", "clear", "--kind", "derived", "--kind", "mirror", *WHERE, "--json").json["freed"]
    assert freed == {"derived": held["derived"]["bytes"], "mirror": 1}
    assert rag("cache", "stats", *WHERE, "--json").json["cache"]["derived"]["bytes"] == 0
    assert (tmp_path / "cache" / "models" / "m" / "x").exists()
    assert rag("verify", *WHERE).code == 0
    with Store.open(index) as store:
        assert "ready" not in store.manifest(), "the next ingestion lets the retriever publish again"
    assert rag("search", "travel", *WHERE, "--json").json["hits"]
    assert rag("cache", "clear", "-q").code == 0
    assert not (tmp_path / "cache" / "models").exists()
