"""Vectors that are part those of the sentences in and around a chunk: how they are named, made, and looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from chunkers.late import LateChunker
from chunkers.sentence import SentenceChunker
from rag.embedders._chunks import check_reads, embed_chunks
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError, InputError
from rag.text import sentence_spans
from rag.tokens import WordCounter
from rag.types import Chunk, Document, Span, surround_of
from rag.vectors import Vectors, as_unit
from tests.texts import plain

COUNTER = WordCounter(limit=254)


@dataclass(frozen=True, kw_only=True)
class Recorder(HashingEmbedder):
    """Notes the texts of every call."""

    seen: list[str] = field(default_factory=list)

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.seen.extend(texts)
        return super().embed(texts)


def make(alpha: float = 0.5, context_tokens: int = 24, max_tokens: int = 30) -> LateChunker:
    inner = SentenceChunker(counter=COUNTER, max_tokens=max_tokens)
    return LateChunker(counter=COUNTER, chunker=inner, reads="sentences", alpha=alpha, context_tokens=context_tokens)


DOCUMENT = Document(text=plain(40), source="x.txt")


def test_the_name_tells_the_kind_and_is_checked_against_the_text() -> None:
    text, span = "One is here. Two is there. Three.", Span(13, 27)
    name = surround_of(text, span, Span(0, 33), 50, sentences=True)
    assert name == surround_of(text, span, Span(0, 33), 50) + "-sentences"
    chunk = make(context_tokens=1, max_tokens=4).chunk(Document(text=text, source="x.txt"))[1]
    assert chunk.surround == name
    assert chunk.of_sentences
    assert chunk.late_percent == 50
    assert chunk.stretch == Span(0, 33)
    with pytest.raises(ValueError, match="not the one"):
        chunk.within(text.replace("One", "Six"))


def test_whole_sentences_that_reach_into_the_context_are_read() -> None:
    starts = [span.start for span in sentence_spans(DOCUMENT)]
    ends = [*starts[1:], len(DOCUMENT.text)]
    for tokens in (1, 12, 40):
        for chunk in make(context_tokens=tokens).chunk(DOCUMENT):
            stretch = chunk.stretch
            assert stretch.start in starts
            assert stretch.end in ends
            before, after = DOCUMENT.text[stretch.start : chunk.span.start], DOCUMENT.text[chunk.span.end : stretch.end]
            for side, whole in ((before, stretch.start == 0), (after, stretch.end == len(DOCUMENT.text))):
                assert whole or COUNTER.count(side) >= tokens


def test_the_vector_is_the_mix_of_chunk_sentences_and_surroundings() -> None:
    embedder = HashingEmbedder()
    text = "Red mill stands. Blue gate opens. Old book lies."
    document = Document(text=text, source="x.txt")
    start, end = text.index("Blue"), text.index("Old")
    named = surround_of(text, Span(start, end), Span(0, len(text)), 40, sentences=True)
    chunk = Chunk(
        doc_id=document.id, span=Span(start, end), text=text[start:end], token_count=3, chunker="x", surround=named
    )
    parts = ["Red mill stands. ", "Blue gate opens. ", "Old book lies."]
    rows, sizes = embedder.embed(parts), np.array([len(part) for part in parts])
    pooled = as_unit(rows[1] + as_unit(sizes @ rows))
    wanted = as_unit(0.4 * pooled + 0.6 * embedder.embed([text[start:end]])[0])
    found = embed_chunks(embedder, [chunk], {document.id: text}.__getitem__)[chunk.key]
    assert found == pytest.approx(wanted, abs=1e-6)


def test_every_sentence_is_embedded_once_in_a_batch() -> None:
    chunks, embedder = make(alpha=1.0).chunk(DOCUMENT), Recorder()
    vectors = embed_chunks(embedder, chunks, lambda _: DOCUMENT.text)
    assert len(embedder.seen) == len(set(embedder.seen))
    assert sum(map(len, embedder.seen)) <= 1.2 * len(DOCUMENT.text)
    assert all(np.linalg.norm(vector) == pytest.approx(1, abs=1e-5) for vector in vectors.values())


def test_cuts_are_those_of_the_chunker_inside() -> None:
    late, inner = make().chunk(DOCUMENT), make().chunker.chunk(DOCUMENT)
    assert [chunk.span for chunk in late] == [chunk.span for chunk in inner]
    assert {one.key for one in late}.isdisjoint(one.key for one in inner)


def test_any_embedder_will_do() -> None:
    check_reads(make(), HashingEmbedder())
    with pytest.raises(ConfigError, match="late chunking"):
        check_reads(replace(make(), reads="tokens"), HashingEmbedder())
    with pytest.raises(ConfigError, match="reads must be"):
        replace(make(), reads="words")  # type: ignore[arg-type]


def test_a_far_edit_leaves_keys_alone() -> None:
    before = make().chunk(DOCUMENT)
    after = make().chunk(Document(text=DOCUMENT.text + " One more at the end.", source="x.txt"))
    assert [chunk.key for chunk in before[:3]] == [chunk.key for chunk in after[:3]]
    assert len(before) > 6


def test_a_sentence_over_the_limit_is_read_in_parts() -> None:
    text = "word " * 700 + "end. Short one."
    chunks, embedder = make(max_tokens=100).chunk(Document(text=text, source="x.txt")), Recorder()
    found = embed_chunks(embedder, chunks, lambda _: text)
    assert len(found) == len({chunk.key for chunk in chunks})
    assert max(embedder.counter.count(one) for one in embedder.seen) <= (embedder.counter.limit or 0)


def test_a_changed_text_is_refused() -> None:
    chunks = make().chunk(DOCUMENT)
    with pytest.raises(InputError, match="rebuild"):
        embed_chunks(HashingEmbedder(), chunks, lambda _: DOCUMENT.text[::-1])
