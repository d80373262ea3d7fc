"""What every compressor promises, checked on every module of the room."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from rag.embedders.hashing import HashingEmbedder
from rag.protocols import Compressor
from rag.text import assemble
from rag.tokens import WordCounter
from rag.types import Bubble, CompressedContext, Hit, Span
from tests.corpora import MemoryCorpus, plugins_of, topic_corpus
from tests.fakes import FakeGenerator, tiny_classifier

COUNTER = WordCounter()
EMBEDDER = HashingEmbedder(buckets=128)
PLUGINS = plugins_of("compressors")


@pytest.fixture(scope="module", params=list(PLUGINS))
def compressor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = PLUGINS[request.param](embedder=EMBEDDER, counter=COUNTER, generator=FakeGenerator())
    if request.param != "classifier-prune":
        return made
    pytest.importorskip("transformers")
    return dataclasses.replace(made, model=str(tiny_classifier(tmp_path_factory.mktemp("tiny"))), window=64)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryCorpus]:
    yield (made := topic_corpus(tmp_path_factory.mktemp("compressor"), EMBEDDER))
    made.close()


def bubble_of(corpus: MemoryCorpus, rows: range) -> Bubble:
    hits = tuple(
        Hit(chunk=chunk, score=1.0 / rank, rank=rank, retriever="test")
        for rank, chunk in enumerate(corpus.chunks(rows), start=1)
    )
    tokens = COUNTER.count(assemble(hit.chunk.text for hit in hits))
    question = "How much may a hotel night cost?"
    return Bubble(question=question, hits=hits, token_count=tokens, budget=1000, decisions=())


def with_target(compressor: Compressor, target: int) -> Compressor | None:
    """The same compressor with another target; None when it has none."""
    names = {field.name for field in dataclasses.fields(compressor)}  # type: ignore[arg-type]
    return dataclasses.replace(compressor, target=target) if "target" in names else None  # type: ignore[type-var]


def check(context: CompressedContext, bubble: Bubble, corpus: MemoryCorpus, compressor: Compressor) -> None:
    assert context.question == bubble.question
    assert context.compressor == compressor_name(compressor)
    assert context.token_count == COUNTER.count(assemble(piece.text for piece in context.pieces))
    assert context.source_token_count == COUNTER.count(assemble(bubble.texts))
    chunks = {hit.chunk.id: hit.chunk for hit in bubble.hits}
    chosen = {hit.chunk.id: spans for hit, spans in zip(bubble.hits, bubble.spans, strict=True)}
    order = list(chunks)
    places = [order.index(piece.chunk_id) for piece in context.pieces]
    assert places == sorted(set(places)), "pieces keep the order of the bubble, one a chunk"
    for piece in context.pieces:
        chunk = chunks[piece.chunk_id]
        assert (piece.doc_id, piece.span) == (chunk.doc_id, chunk.span)
        assert all(any(span.contains(kept) for span in chosen[piece.chunk_id]) for kept in piece.kept)
        assert all(left.end <= right.start for left, right in pairwise(piece.kept))
        assert piece.verbatim or not compressor.verbatim
        if piece.verbatim:
            text = corpus.document(piece.doc_id).text
            assert piece.text == "".join(text[kept.start : kept.end] for kept in piece.kept)


def compressor_name(compressor: Compressor) -> str:
    return type(compressor).__module__.rpartition(".")[2].replace("_", "-")


@pytest.mark.parametrize("rows", [range(0), range(1), range(3, 9), range(25)])
@pytest.mark.parametrize("parts", [False, True])
def test_pieces_are_exact(compressor: Compressor, corpus: MemoryCorpus, rows: range, parts: bool) -> None:
    bubble = bubble_of(corpus, rows)
    if parts:
        bubble = with_parts(bubble)
    check(compressor.compress(bubble, corpus), bubble, corpus, compressor)


def with_parts(bubble: Bubble) -> Bubble:
    """Of every chunk its first third and its last fourth."""
    spans = [hit.chunk.span for hit in bubble.hits]
    kept = tuple((Span(one.start, one.start + len(one) // 3), Span(one.end - len(one) // 4, one.end)) for one in spans)
    made = dataclasses.replace(bubble, kept=kept)
    return dataclasses.replace(made, token_count=COUNTER.count(assemble(made.texts)))


@pytest.mark.parametrize("target", [1, 7, 30, 100, 250])
def test_the_target_is_kept(compressor: Compressor, corpus: MemoryCorpus, target: int) -> None:
    aimed = with_target(compressor, target)
    if aimed is None:
        pytest.skip("this compressor has no target")
    bubble = bubble_of(corpus, range(20))
    context = aimed.compress(bubble, corpus)
    assert context.token_count <= target
    check(context, bubble, corpus, aimed)


def test_enough_room_changes_nothing(compressor: Compressor, corpus: MemoryCorpus) -> None:
    bubble = bubble_of(corpus, range(20))
    context = (with_target(compressor, 100_000) or compressor).compress(bubble, corpus)
    assert [piece.text for piece in context.pieces] == [hit.chunk.text for hit in bubble.hits]
    assert [piece.kept for piece in context.pieces] == [(hit.chunk.span,) for hit in bubble.hits]
    assert context.keep_ratio == 1.0


def test_same_input_same_context(compressor: Compressor, corpus: MemoryCorpus) -> None:
    bubble = bubble_of(corpus, range(12))
    assert compressor.compress(bubble, corpus) == compressor.compress(bubble, corpus)
