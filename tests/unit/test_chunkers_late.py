"""late: the chunks of another chunker, each with a stretch of whole sentences that depends on nothing far away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from chunkers.late import LateChunker
from rag.embedders._chunks import check_reads
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError
from rag.protocols import Chunker
from rag.registry import build
from rag.text import sentence_spans
from rag.tokens import WordCounter
from rag.types import Chunk, Document
from tests.texts import markdown_document, plain

COUNTER = WordCounter(limit=254)
PROSE = Document(text=plain(60), source="prose")


def late(document: Document = PROSE, **parameters: Any) -> list[Chunk]:
    return built(**parameters).chunk(document)


def built(**parameters: Any) -> LateChunker:
    services = {"counter": COUNTER, "embedder": HashingEmbedder()}
    chunker: LateChunker = build("chunker", {"use": "late", **parameters}, services=services)
    return chunker


@pytest.mark.parametrize("inner", ["sentence", "recursive", "markdown", "parent-child"])
def test_the_chunks_are_those_of_the_chunker_inside(inner: str) -> None:
    document = markdown_document()
    plain_chunker: Chunker = build("chunker", {"use": inner, "max_tokens": 40}, services={"counter": COUNTER})
    chunks = late(document, chunker={"use": inner, "max_tokens": 40})
    assert [replace(chunk, surround="", chunker=inner) for chunk in chunks] == plain_chunker.chunk(document)
    assert {chunk.chunker for chunk in chunks} == {"late"}


def test_its_limits_go_to_a_chunker_without_its_own() -> None:
    assert max(chunk.token_count for chunk in late(max_tokens=30)) <= 30
    assert max(len(chunk.text) for chunk in late(max_chars=150)) <= 150
    own = late(max_tokens=30, chunker={"use": "sentence", "max_tokens": 60})
    assert max(chunk.token_count for chunk in own) > 30


@pytest.mark.parametrize("context", [8, 30, 90])
def test_a_stretch_adds_whole_sentences_on_both_sides(context: int) -> None:
    edges = {0, *(span.end for span in sentence_spans(PROSE))}
    chunks = late(max_tokens=50, context_tokens=context)
    assert len(chunks) > 5
    for chunk in chunks[1:-1]:
        stretch = chunk.stretch
        assert stretch.contains(chunk.span)
        assert COUNTER.count(PROSE.text[stretch.start : chunk.span.start]) <= context
        assert COUNTER.count(PROSE.text[chunk.span.end : stretch.end]) <= context
        if context >= 30:
            assert stretch.start < chunk.span.start
            assert stretch.end > chunk.span.end
            assert {stretch.start, stretch.end} <= edges
    assert chunks[0].stretch.start == 0
    assert chunks[-1].stretch.end == len(PROSE.text)


def test_without_a_sentence_that_fits_the_context_is_whole_words() -> None:
    text = " ".join(f"word{at}" for at in range(300))
    for chunk in late(Document(text=text, source="words"), max_tokens=40, context_tokens=10)[1:-1]:
        before = text[chunk.stretch.start : chunk.span.start]
        after = text[chunk.span.end : chunk.stretch.end]
        assert 0 < COUNTER.count(before) <= 10
        assert 0 < COUNTER.count(after) <= 10
        assert {text[chunk.stretch.start - 1], text[chunk.stretch.end]} == {" "}


def test_the_encoder_reads_a_stretch_at_once_where_half_the_context_is_room_enough() -> None:
    for chunk in late(max_tokens=150, context_tokens=90):
        assert COUNTER.count(PROSE.text[chunk.stretch.start : chunk.stretch.end]) <= 254


def test_a_chunk_that_is_its_document_has_no_surround() -> None:
    (chunk,) = late(Document(text="One short text.", source="short"))
    assert chunk.surround == ""


def test_what_is_far_away_changes_no_surround() -> None:
    parts = [f"## Part {at}\n\n{plain(12)}\n\n" for at in range(12)]
    before = Document(text="".join(parts), source="a")
    parts[5] = parts[5].replace("\n\n", "\n\nSomething quite new stands here. ", 1)
    after = Document(text="".join(parts), source="b")
    cut = {"use": "recursive", "max_tokens": 60}
    old = [chunk.key for chunk in late(before, chunker=cut)]
    new = [chunk.key for chunk in late(after, chunker=cut)]
    plain_old = {chunk.text for chunk in late(before, chunker=cut)}
    plain_new = {chunk.text for chunk in late(after, chunker=cut)}
    changed = len(plain_new - plain_old)
    assert 0 < len(set(new) - set(old)) <= changed + 4
    assert len(new) > 30


def test_the_weight_of_the_late_vector_is_part_of_the_key() -> None:
    pure, mixed = late(max_tokens=50, alpha=1), late(max_tokens=50, alpha=0.75)
    assert [chunk.stretch for chunk in pure] == [chunk.stretch for chunk in mixed]
    assert {chunk.late_percent for chunk in mixed} == {75}
    assert not {chunk.key for chunk in pure} & {chunk.key for chunk in mixed}


def test_bad_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="context_tokens must be >= 1, not 0"):
        late(context_tokens=0)
    for alpha in (0.0, 1.1, float("nan")):
        with pytest.raises(ConfigError, match=f"alpha must be 0.01 to 1, not {alpha}"):
            late(alpha=alpha)
    with pytest.raises(ConfigError, match="must be a built chunker"):
        LateChunker(counter=COUNTER, chunker="sentence")


def test_an_embedder_without_token_vectors_is_refused_however_deep_the_chunker_lies() -> None:
    embedder = HashingEmbedder()
    check_reads(build("chunker", {"use": "sentence"}, services={"counter": COUNTER}), embedder)
    selected = {"use": "metric-selected", "candidates": ["sentence", {"use": "late", "chunker": "recursive"}]}
    services = {"counter": COUNTER, "embedder": embedder}
    for chunker in (built(), build("chunker", selected, services=services)):
        with pytest.raises(ConfigError, match=r"'hashing-512' gives no vectors of single tokens: set embedder: minilm"):
            check_reads(chunker, embedder)
