"""The store gives back what it was given, once, and nothing that nobody holds any more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag.errors import InputError, RagError, UsageError
from rag.store import Store, verify
from rag.store.schema import PART_CHARS
from rag.types import Block, Page, Span
from tests.crash.entries import FINGERPRINT, dump, failed_record, fill, make_entry, vector

NASTY = [
    "plain words and more of them. " * 9,
    "a\x00b\x00\x00 NUL inside\x00",
    "line one\r\nline two\r\n\r\nline four\r\n" * 4,
    "👩‍👩‍👧‍👦 family 🇩🇪 flags 👍🏽 tones é cafe\u0301 \U0001f9d1\u200d\U0001f52c" * 5,
    "שלום עולם \u202eabc\u202c مرحبا بالعالم" * 6,
    "北京市東京都千代田区丸の内" * 20,
    "\ufeff\u2028\u2029\x85\x0b\x0c\t \u00a0",
    "x" * (3 * PART_CHARS + 1),
    "😀" * (PART_CHARS + 7),
]


@pytest.fixture
def store(tmp_path: Path):
    with Store.create_or_open(tmp_path / "idx") as opened:
        opened.set_manifest({"fingerprint": FINGERPRINT})
        yield opened


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_documents_and_chunks_come_back_equal(store: Store, text: str) -> None:
    entry = make_entry(text, "näme\x00😀.md", title="T\x00itel", window=37, overlap=5, header="Kopf > Ünter")
    store.commit(entries=[entry])
    assert store.document(entry.document.id) == entry.document
    assert tuple(store.chunks_of(entry.document.id)) == entry.chunks
    with store.corpus() as corpus:
        assert tuple(corpus.chunks(corpus.rows())) == entry.chunks
        rows, matrix = corpus.vectors()
        assert rows.tolist() == corpus.rows().tolist()
        assert np.array_equal(matrix, np.stack([vector(chunk.key) for chunk in entry.chunks]))
    assert verify(store).problems == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300), window=st.integers(2, 60))
def test_any_text_round_trips(store: Store, text: str, window: int) -> None:
    entry = make_entry(text, window=window)
    store.commit(entries=[entry])
    assert store.document(entry.document.id) == entry.document
    assert tuple(store.chunks_of(entry.document.id)) == entry.chunks
    assert store.stats()["documents"] == 1


def test_all_fields_come_back(store: Store) -> None:
    entry = make_entry(
        "# Head\nbody text of the section\n" * 3,
        title="Titel",
        blocks=(Block(span=Span(0, 6), kind="heading", level=1), Block(span=Span(7, 31), kind="paragraph")),
        pages=(Page(number=1, span=Span(0, 31)), Page(number=2, span=Span(31, 60))),
        meta={"year": 2024, "share": 0.1, "draft": True, "who": "Ü\x00", "big": 2**70},
    )
    parent = replace(entry, chunks=tuple(replace(chunk, parent=Span(0, 60)) for chunk in entry.chunks))
    store.commit(entries=[parent])
    assert store.document(entry.document.id) == entry.document
    assert tuple(store.chunks_of(entry.document.id)) == parent.chunks
    assert store.chunk(parent.chunks[1].id) == parent.chunks[1]
    assert store.files() == {entry.file.origin: entry.file}
    (info,) = store.documents()
    assert (info.id, info.origins, info.chunks) == (entry.document.id, (entry.file.origin,), len(entry.chunks))
    assert info.decision == entry.decision
    assert info.chars == len(entry.document.text)


def test_the_same_commit_twice_changes_no_row(store: Store) -> None:
    entries = [make_entry(text, f"{at}.md") for at, text in enumerate(NASTY)]
    store.commit(entries=entries, failed=[failed_record("bad.pdf")])
    before = dump(store.directory)
    store.commit(entries=entries, failed=[failed_record("bad.pdf")])
    assert dump(store.directory) == before
    without_vectors = [replace(entry, vectors={}) for entry in entries]  # as a pipeline sends what is known already
    store.commit(entries=without_vectors)
    assert dump(store.directory) == before


def test_batches_do_not_change_the_rows(tmp_path: Path) -> None:
    entries = [make_entry(f"text number {at} " * 20, f"{at}.md") for at in range(6)]
    for name, size in (("one", 6), ("two", 2)):
        with Store.create_or_open(tmp_path / name) as store:
            for at in range(0, 6, size):
                store.commit(entries=entries[at : at + size])
    one, two = dump(tmp_path / "one"), dump(tmp_path / "two")
    assert one.pop("state") != two.pop("state")  # the generation counts commits
    assert one == two


def test_replacing_leaves_nothing_behind(tmp_path: Path) -> None:
    old, new = make_entry("alpha beta gamma " * 30, header="old"), make_entry("alpha delta " * 9)
    fill(tmp_path / "fresh", new)
    fill(tmp_path / "used", old)
    with Store.create_or_open(tmp_path / "used") as store:
        store.commit(entries=[new])
        assert verify(store).ok
        with store.corpus() as corpus:
            assert corpus.lexical(["gamma"], 10) == []
            assert corpus.lexical(["delta"], 10)
    fresh, used = dump(tmp_path / "fresh"), dump(tmp_path / "used")
    assert len(used["documents"]) == 1
    for table in ("documents", "chunks", "vectors", "document_texts", "document_meta"):
        assert len(fresh[table]) == len(used[table]), table
    assert [place[0] for place in fresh["lexical"]] == [place[0] for place in used["lexical"]]


def test_a_file_that_turns_bad_keeps_its_last_good_version(store: Store) -> None:
    entry = make_entry("alpha beta " * 40)
    store.commit(entries=[entry])
    before = dump(store.directory)
    store.commit(failed=[failed_record()])
    after = dump(store.directory)
    assert {table: rows for table, rows in after.items() if table != "files"} == {
        table: rows for table, rows in before.items() if table != "files"
    }
    record = store.files()[entry.file.origin]
    assert (record.error, record.doc_id) == ("not a PDF", entry.document.id)
    better = make_entry("gamma delta " * 40)
    store.commit(entries=[better])
    assert [info.id for info in store.documents()] == [better.document.id]
    assert store.files()[entry.file.origin].error is None
    assert verify(store).ok


def test_nothing_is_left_when_the_only_file_goes(store: Store) -> None:
    entry = make_entry("alpha beta " * 40, meta={"year": 1})
    store.commit(entries=[entry])
    store.commit(removed=[entry.file.origin])
    rows = dump(store.directory)
    for table in ("documents", "document_texts", "document_meta", "chunks", "vectors", "lexical"):
        assert rows[table] == [], table
    assert store.files() == {}
    assert verify(store).ok


def test_a_document_under_two_origins_is_stored_once_and_goes_with_the_last(store: Store) -> None:
    here, there = make_entry("same text " * 20, origin="/a/x.md"), make_entry("same text " * 20, origin="/b/x.md")
    store.commit(entries=[here, there])
    stats = store.stats()
    assert (stats["documents"], stats["chunks"], stats["files"]) == (1, len(here.chunks), 2)
    assert store.documents()[0].origins == ("/a/x.md", "/b/x.md")
    store.commit(removed=["/a/x.md"])
    assert store.stats()["chunks"] == len(here.chunks)
    store.commit(removed=["/b/x.md", "/never/there.md"])
    assert store.stats()["chunks"] == store.stats()["vectors"] == 0
    assert verify(store).ok


def test_rechunking_a_shared_document_keeps_both_origins(store: Store) -> None:
    store.commit(entries=[make_entry("same text " * 20, origin=f"/{name}/x.md") for name in "ab"])
    store.commit(entries=[make_entry("other " * 20, "y.md")])
    fine = make_entry("same text " * 20, origin="/a/x.md", window=20)
    store.commit(entries=[fine])
    assert tuple(store.chunks_of(fine.document.id)) == fine.chunks
    assert {origin for info in store.documents() for origin in info.origins} == {"/a/x.md", "/b/x.md", "/docs/y.md"}
    assert verify(store).ok


def test_vectors_are_shared_by_equal_chunks_and_kept_while_one_is_left(store: Store) -> None:
    line = "exactly forty characters of repeated txt"
    one, two = make_entry(line * 3, "one.md"), make_entry(line, "two.md")
    store.commit(entries=[one, two])
    assert store.stats()["vectors"] == 1
    assert store.stats()["embedded"] == 4
    store.commit(removed=[one.file.origin])
    key = two.chunks[0].key
    assert store.known_vectors(FINGERPRINT, [key, "00" * 16]).keys() == {key}
    assert store.known_vectors("other", [key]) == {}
    assert np.array_equal(store.known_vectors(FINGERPRINT, [key])[key], vector(key))


def test_an_edit_may_rely_on_vectors_that_the_same_commit_would_drop(store: Store) -> None:
    old = make_entry("shared words of forty characters, truly. tail that goes away")
    new = make_entry("shared words of forty characters, truly. fresh tail")
    store.commit(entries=[old])
    kept = set(store.known_vectors(FINGERPRINT, [chunk.key for chunk in new.chunks]))
    assert kept
    store.commit(entries=[replace(new, vectors={k: v for k, v in new.vectors.items() if k not in kept})])
    assert verify(store).ok


def test_generation_grows_only_when_chunks_change(store: Store) -> None:
    def generation() -> int:
        return int(store.stats()["generation"])

    entry = make_entry("some text " * 20)
    before = generation()
    store.commit(entries=[entry])
    assert generation() == before + 1
    store.commit(entries=[entry])
    store.commit(touched=[replace(entry.file, mtime_ns=99)])
    assert store.files()[entry.file.origin] == replace(entry.file, mtime_ns=99)
    store.commit(entries=[replace(entry, decision={"chunker": "other"})])
    store.commit(failed=[failed_record("bad.pdf")], removed=["/docs/unknown"])
    assert generation() == before + 1
    store.commit(removed=[entry.file.origin])
    assert generation() == before + 2


def test_changed_title_or_meta_reaches_search_and_filter(store: Store) -> None:
    store.commit(entries=[make_entry("body " * 20, title="Old", meta={"year": 1})])
    store.commit(entries=[make_entry("body " * 20, title="Novel", meta={"year": 2})])
    with store.corpus() as corpus:
        assert corpus.lexical(["old"], 5) == []
        assert corpus.lexical(["novel"], 5, {"meta.year": 2})
        assert corpus.rows({"meta.year": 1}).tolist() == []
    assert verify(store).ok


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda e: replace(e, document=replace(e.document, title="\ud800")), "surrogate"),
        (lambda e: replace(e, file=replace(e.file, origin="/docs/\udcff")), "surrogate"),
        (lambda e: replace(e, chunks=(replace(e.chunks[0], text="other"),)), "slice"),
        (lambda e: replace(e, chunks=(e.chunks[0], e.chunks[0])), "twice"),
        (lambda e: replace(e, vectors={}), "no vector"),
        (lambda e: replace(e, vectors={k: v * np.nan for k, v in e.vectors.items()}), "NaN"),
        (lambda e: replace(e, vectors={**e.vectors, "ff": np.ones(7, np.float32)}), "shape"),
        (lambda e: replace(e, vectors={k: np.ones(5, np.float32) for k in e.vectors}), "dimensions"),
        (lambda e: replace(e, file=replace(e.file, doc_id="0" * 16)), "doc_id"),
        (lambda e: replace(e, document=replace(e.document, meta={"x": float("inf")})), "meta"),
        (lambda e: replace(e, decision={"x": object()}), "JSON"),
    ],
)
def test_a_bad_entry_is_refused_and_its_whole_commit_undone(store: Store, spoil, word: str) -> None:
    store.commit(entries=[make_entry("first document, good", "first.md")])
    before = dump(store.directory)
    with pytest.raises(InputError, match=word):
        store.commit(entries=[make_entry("also good", "good.md"), spoil(make_entry("the bad one"))])
    assert dump(store.directory) == before


def test_a_text_with_a_lone_surrogate_is_refused_with_its_place(store: Store) -> None:
    entry = make_entry("abc def", "bad.md", fingerprint=None)
    document = replace(entry.document, text="abc\ud83d def")
    bad = replace(entry, document=document, file=replace(entry.file, doc_id=document.id))
    with pytest.raises(InputError, match=r"bad\.md.*U\+D83D.*character 3"):
        store.commit(entries=[bad])


def test_find_document(store: Store) -> None:
    entries = [make_entry(f"text {at}", "same.md", origin=f"/{at}/same.md") for at in range(2)]
    store.commit(entries=[*entries, make_entry("x", "other.md")])
    one = entries[0].document
    assert store.find_document(one.id) == store.find_document(one.id[:9]) == store.find_document("/0/same.md") == one
    assert store.find_document("other.md").text == "x"
    with pytest.raises(UsageError, match="several"):
        store.find_document("same.md")
    for unknown in ("nothing.md", one.id[:3], "", "%", "\udcff", "a\x00"):
        with pytest.raises(UsageError, match="no document"):
            store.find_document(unknown)
    for unknown in ("no", one.id, f"{one.id}:0-999"):
        with pytest.raises(KeyError):
            store.chunk(unknown)
    with pytest.raises(KeyError):
        store.document("no")


def test_old_vectors_go_when_the_embedder_has_been_changed(store: Store) -> None:
    entry = make_entry("text of one document")
    store.commit(entries=[entry])
    store.commit(entries=[replace(entry, fingerprint="new")])
    assert store.stats()["vectors"] == 2 * len(entry.chunks)
    store.set_manifest({"fingerprint": "new"})
    assert store.prune_vectors() == len(entry.chunks)
    assert verify(store).ok


def test_runs_are_kept_without_the_writer_lock(store: Store, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("rag.store.runs.KEPT_RUNS", 5)
    with Store.open(store.directory) as reader:
        ids = [reader.add_run({"question": f"q{at} \ud800 \x00", "n": [at]}) for at in range(8)]
        assert len(set(ids)) == 8
        assert all(0 < len(run_id) <= 8 for run_id in ids)
        assert [run["n"] for run in reader.runs(3)] == [[7], [6], [5]]
        assert store.run(ids[-1]) == {"question": "q7 \ud800 \x00", "n": [7], "run_id": ids[-1]}
        assert len(reader.runs(99)) == 5
        with pytest.raises(UsageError, match="no run"):
            reader.run(ids[0])


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    fill(tmp_path, make_entry("text"))
    with Store.open(tmp_path) as reader:
        for act in (lambda: reader.commit(removed=["x"]), lambda: reader.set_manifest({}), reader.prune_vectors):
            with pytest.raises(UsageError, match="reading only"):
                act()


def test_a_full_text_index_of_other_rules_is_built_anew(tmp_path: Path) -> None:
    fill(tmp_path, make_entry("alpha beta " * 30))
    before = dump(tmp_path)
    with Store.create_or_open(tmp_path) as store:
        with store._db.writing():
            store._db.run("UPDATE state SET value = '\"old\"' WHERE name = 'lexical'")
            store._db.run("INSERT INTO lexical(lexical) VALUES ('delete-all')")
        assert not verify(store).ok
    with Store.create_or_open(tmp_path) as store:
        assert verify(store).ok
    assert dump(tmp_path) == before


def test_a_failing_disk_undoes_the_commit(store: Store, monkeypatch) -> None:
    store.commit(entries=[make_entry("first", "first.md")])
    before = dump(store.directory)
    pages = store._db.value("PRAGMA page_count")
    store._db.value(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(RagError, match="full"):
        store.commit(entries=[make_entry("long text " * 9000, "second.md")])
    assert dump(store.directory) == before
    store._db.value("PRAGMA max_page_count=1000000")
    store.commit(entries=[make_entry("long text " * 9000, "second.md")])
    assert verify(store).ok


def test_the_cost_of_a_replacement_does_not_grow_with_the_index(store: Store) -> None:
    def steps() -> int:
        """SQLite instructions, in hundreds, to replace one document of four chunks and back again."""
        count = 0

        def tick() -> int:
            nonlocal count
            count += 1
            return 0

        store._db._connection.set_progress_handler(tick, 100)
        for text in ("another text " * 12, "the first text " * 10):
            store.commit(entries=[make_entry(text, "one.md")])
        store._db._connection.set_progress_handler(None, 0)
        return count

    store.commit(entries=[make_entry("the first text " * 10, "one.md")])
    small = steps()
    store.commit(entries=[make_entry(f"filler {at} " * 30, f"{at}.txt") for at in range(200)])
    assert steps() < 3 * small + 10
