"""Vectors that depend on the text around a chunk: keys, ingestion, rebuild, mend and the comparison with the store."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag import Pipeline, PipelineConfig
from rag.embedders._chunks import embed_chunks
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError, InputError
from rag.executors._frames import outcome_frame, to_outcome
from rag.ingest import IngestReport
from rag.jobs import Outcome
from rag.store import Store, verify
from rag.tokens import WordCounter
from rag.types import Chunk, Document, Span, content_key, surround_of
from rag.upkeep import compare_vectors, mend, rebuild
from rag.vectors import Vectors
from tests.fakes import WithinEmbedder

LATE = {"use": "late", "max_tokens": 20, "context_tokens": 20, "alpha": 1}
PLAIN = {"use": "sentence", "max_tokens": 20}
SHARED = "The pump is checked every week by two people and a dog. "
TEXT = "Alpha rules hold in winter for all of the boats. Beta rules hold in summer for none of them. "


def line(chunker: Any = LATE, embedder: HashingEmbedder | None = None) -> Pipeline:
    slots = {"embedder": "hashing", "retriever": "faiss-dense", "chunker": chunker}
    pipeline = Pipeline(PipelineConfig.from_dict(slots))
    pipeline.__dict__["embedder"] = embedder or WithinEmbedder()
    return pipeline


def ingest(docs: Path, into: Path, **options: Any) -> tuple[IngestReport, WithinEmbedder]:
    pipeline = line(**options)
    with pipeline.index(docs, into=into) as index:
        assert index.report is not None
        return index.report, pipeline.embedder  # type: ignore[return-value]


def count(into: Path, sql: str) -> int:
    with sqlite3.connect(into / "index.sqlite") as db:
        return int(db.execute(sql).fetchone()[0])


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT + SHARED + TEXT)
    (folder / "b.txt").write_text(
        f"Something else altogether comes before this one here. {SHARED}A quiet end comes after it for all of us."
    )
    return folder


def chunk_of(text: str, start: int, end: int, reach: int, header: str = "") -> Chunk:
    stretch = Span(max(0, start - reach), min(len(text), end + reach))
    document = Document(text=text, source="x")
    return Chunk.cut(document, start, end, counter=WordCounter(), chunker="t", header=header, stretch=stretch)


class TestKeys:
    def test_keys_of_chunks_without_a_surround_are_what_they_were(self) -> None:
        assert content_key("", "The pump is checked.") == "6bc6e87a37555225b9ed240e75977bf9"
        assert content_key("Pumps > Care", "The pump is checked.") == "3f000677a473b621ecd5ce5adc6fb6e6"
        chunk = chunk_of("The pump is checked.", 0, 20, 0, "Pumps > Care")
        assert chunk.surround == ""
        assert chunk.key == "3f000677a473b621ecd5ce5adc6fb6e6"
        assert (chunk.stretch, chunk.late_percent) == (chunk.span, 0)

    def test_a_key_names_header_text_and_what_stands_around(self) -> None:
        chunks = [
            chunk_of("one two three four", 4, 7, 0),
            chunk_of("one two three four", 4, 7, 3),
            chunk_of("one two three four", 4, 7, 5),
            chunk_of("one two THREE four", 4, 7, 5),
            chunk_of("one two three four", 4, 7, 5, "h"),
        ]
        assert len({chunk.key for chunk in chunks}) == len(chunks)
        assert chunk_of("one two three four", 4, 7, 2).key == chunk_of("XXe two tXX", 4, 7, 2).key

    def test_what_the_encoder_reads(self) -> None:
        text = "one two three four"
        chunk = chunk_of(text, 4, 7, 4, "Numbers")
        read, start, end = chunk.within(text)
        assert read == "Numbers\none two thr"
        assert read[start:end] == "two"

    @pytest.mark.parametrize("text", ["one two THREE four", "one two", "", "one  two three"])
    def test_another_text_around_is_noticed(self, text: str) -> None:
        with pytest.raises(ValueError, match="is not the one"):
            chunk_of("one two three four", 4, 7, 5).within(text)

    @pytest.mark.parametrize(
        "surround", ["x", "1-2", "0-0-100-0123456789abcdef", "9-0-100-0123456789abcdef", "1-1-0-" + "0" * 16]
    )
    def test_a_surround_that_names_nothing_is_refused(self, surround: str) -> None:
        chunk = replace(chunk_of("one two three four", 4, 7, 0), surround=surround)
        with pytest.raises(ValueError, match="names no text around it"):
            _ = chunk.stretch

    def test_a_stretch_must_hold_the_chunk(self) -> None:
        for stretch in (Span(5, 9), Span(0, 6), Span(0, 99)):
            with pytest.raises(ValueError, match="does not hold"):
                surround_of("one two three four", Span(4, 7), stretch)

    def test_a_worker_sends_it(self) -> None:
        chunk = chunk_of("one two three four", 4, 7, 5)
        document = Document(text="one two three four", source="x")
        sent = Outcome(content_hash="h", document=document, chunks=(chunk,))
        assert to_outcome(*outcome_frame(sent)).chunks == (chunk,)


def test_the_same_text_in_two_documents_has_two_late_vectors_and_one_plain(docs: Path, tmp_path: Path) -> None:
    late, plain = tmp_path / "late", tmp_path / "plain"
    ingest(docs, late)
    ingest(docs, plain, chunker=PLAIN)
    for into, many in ((late, 2), (plain, 1)):
        with Store.open(into) as store:
            chunks = [chunk for info in store.documents() for chunk in store.chunks_of(info.id)]
        assert [chunk.text for chunk in chunks].count(SHARED) == 2
        assert len({chunk.key for chunk in chunks if chunk.text == SHARED}) == many
        assert count(into, "SELECT count(*) FROM vectors") == count(into, "SELECT count(DISTINCT key) FROM chunks")
        assert verify(into).problems == []


def test_chunks_come_back_with_their_surround_and_vectors_are_made_through_the_document(
    docs: Path, tmp_path: Path
) -> None:
    _, embedder = ingest(docs, tmp_path / "idx")
    with Store.open(tmp_path / "idx") as store:
        documents = {info.id: store.document(info.id) for info in store.documents()}
        chunks = [chunk for doc_id in documents for chunk in store.chunks_of(doc_id)]
        assert chunks == [chunk for document in documents.values() for chunk in line().chunker.chunk(document)]
        pieces = {chunk.within(documents[chunk.doc_id].text) for chunk in chunks if chunk.surround}
        assert pieces == set(embedder.within)
        assert compare_vectors(store, WithinEmbedder(), 99) == (len(chunks), [])
        assert compare_vectors(store, line(PLAIN, Shifted()).embedder, 99)[1]


class Shifted(WithinEmbedder):
    """Reads the text around and nothing else."""

    def embed_within(self, pieces: Sequence[tuple[str, int, int]]) -> Vectors:
        return self.embed([text[end:] or text for text, _, end in pieces])


def test_a_second_run_embeds_nothing_and_an_edit_what_it_touches(docs: Path, tmp_path: Path) -> None:
    into = tmp_path / "idx"
    # each paragraph is one chunk, so that an edit moves no cut
    paragraphs = [f"Paragraph number {at} tells of one thing and another, at some length. " for at in range(40)]
    (docs / "long.txt").write_text("\n\n".join(paragraphs))
    ingest(docs, into)
    report, embedder = ingest(docs, into)
    assert (report.embedded, embedder.within, embedder.alone) == (0, [], [])
    paragraphs[20] = "Paragraph number 20 tells of another thing altogether, at some length. "
    (docs / "long.txt").write_text("\n\n".join(paragraphs))
    report, embedder = ingest(docs, into)
    assert 3 <= report.embedded <= 5
    assert verify(into).problems == []
    fresh = tmp_path / "fresh"
    ingest(docs, fresh)
    assert vectors_of(into) == vectors_of(fresh)


def vectors_of(into: Path) -> list[Any]:
    with sqlite3.connect(into / "index.sqlite") as db:
        return db.execute("SELECT key, vector FROM vectors ORDER BY key").fetchall()


def test_rebuild_from_plain_to_late_and_back(docs: Path, tmp_path: Path) -> None:
    into, late = tmp_path / "idx", tmp_path / "late"
    ingest(docs, into, chunker=PLAIN)
    ingest(docs, late)
    before = vectors_of(into)
    report = rebuild(into, line())
    assert report.embedded > 0
    assert vectors_of(into) == vectors_of(late)
    again = rebuild(into, line())
    assert (again.embedded, again.reused) == (0, report.embedded)
    rebuild(into, line(PLAIN))
    assert vectors_of(into) == before


def test_lost_vectors_and_damaged_chunks_are_mended_through_the_document(docs: Path, tmp_path: Path) -> None:
    into = tmp_path / "idx"
    ingest(docs, into)
    before = vectors_of(into)
    for sql in (
        "DELETE FROM vectors WHERE id % 2",
        "UPDATE chunks SET surround = '' WHERE id = (SELECT max(id) FROM chunks)",
        "UPDATE chunks SET token_count = 99 WHERE id = (SELECT min(id) FROM chunks)",
    ):
        with sqlite3.connect(into / "index.sqlite") as db:
            db.execute(sql)
        assert not verify(into).ok
        report = mend(into, lambda manifest: line())
        assert report.left == []
        assert vectors_of(into) == before
        assert verify(into).problems == []


def test_a_mixed_vector_lies_between_both(docs: Path) -> None:
    document = Document(text=(docs / "a.txt").read_text(), source="a")
    pure, mixed = (line({**LATE, "alpha": alpha}).chunker.chunk(document) for alpha in (1, 0.25))
    embedder = WithinEmbedder()
    late = embed_chunks(embedder, pure, lambda _: document.text)
    both = embed_chunks(embedder, mixed, lambda _: document.text)
    alone = embedder.embed([chunk.embed_text for chunk in pure])
    for row, (one, other) in enumerate(zip(pure, mixed, strict=True)):
        vector = 0.25 * late[one.key] + 0.75 * alone[row]
        assert both[other.key] == pytest.approx(vector / np.linalg.norm(vector), abs=1e-6)


class TestRefused:
    def test_no_token_vectors_no_ingestion(self, docs: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"late chunking.*set embedder: minilm"):
            ingest(docs, tmp_path / "idx", embedder=HashingEmbedder())
        ingest(docs, tmp_path / "plain", chunker=PLAIN)
        with pytest.raises(ConfigError, match="single tokens"):
            rebuild(tmp_path / "plain", line(LATE, HashingEmbedder()))
        assert verify(tmp_path / "plain").problems == []

    def test_nobody_embeds_late_chunks_as_if_they_were_plain(self) -> None:
        text = "one two three four"
        with pytest.raises(ConfigError, match="'hashing-512' gives no vectors of single tokens"):
            embed_chunks(HashingEmbedder(), [chunk_of(text, 4, 7, 5)], lambda _: text)
        with pytest.raises(InputError, match="rag rebuild"):
            embed_chunks(WithinEmbedder(), [chunk_of(text, 4, 7, 5)], lambda _: text.upper())

    def test_an_entry_whose_surround_is_not_its_documents(self, tmp_path: Path) -> None:
        from tests.crash.entries import FINGERPRINT, make_entry

        entry = make_entry("a text of some length " * 9, around=5)
        wrong = tuple(replace(chunk, surround="1-1-100-0123456789abcdef") for chunk in entry.chunks[1:2])
        with Store.create_or_open(tmp_path) as store, pytest.raises(InputError, match=r"Chunk\.cut"):
            store.commit(entries=[replace(entry, chunks=wrong, vectors={}, fingerprint=FINGERPRINT)])
