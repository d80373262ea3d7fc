"""The default compressor: whole sentences, what leans on what, the target, words alone where there is no embedder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from compressors._prune import header_rows, openers_lean
from compressors.sentence_prune import SentencePruneCompressor
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError
from rag.spans.protected import survival
from rag.spans.units import units_of_bubble
from rag.text import assemble
from rag.tokens import WordCounter
from rag.types import Block, Bubble, Chunk, Document, Hit, Span
from tests.corpora import MemoryCorpus

COUNTER = WordCounter()
EMBEDDER = HashingEmbedder(buckets=256)
BRIDGE = (
    "The valley had a market on Mondays. The bridge over the Tay fell in 1879 during a storm. It had stood for 19 "
    "months. Sheep were sold there for 12 shillings. An inquiry blamed the cross bracing of the bridge. The weather in "
    "May was mild. Farmers came from as far as Perth."
)
OVENS = "Ovens are lit at 4:30 every morning. Bread is sold until noon. The baker never opens on Sundays."


def bubble_of(directory: Path, texts: list[str], question: str) -> tuple[Bubble, MemoryCorpus]:
    documents = [Document(text=text, source=f"{at}.md") for at, text in enumerate(texts)]
    chunks = [Chunk.cut(one, 0, len(one.text), counter=COUNTER, chunker="whole") for one in documents]
    hits = tuple(Hit(chunk=c, score=1.0 / at, rank=at, retriever="test") for at, c in enumerate(chunks, start=1))
    tokens = COUNTER.count(assemble(texts))
    bubble = Bubble(question=question, hits=hits, token_count=tokens, budget=10_000, decisions=())
    return bubble, MemoryCorpus(directory, documents, chunks, embedder=EMBEDDER)


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[tuple[Bubble, MemoryCorpus]]:
    bubble, corpus = bubble_of(tmp_path, [BRIDGE, OVENS], "When did the bridge over the Tay fall?")
    yield bubble, corpus
    corpus.close()


def pruner(**options: object) -> SentencePruneCompressor:
    return SentencePruneCompressor(counter=COUNTER, embedder=EMBEDDER, **options)  # type: ignore[arg-type]


def test_the_answer_stays_and_a_reference_keeps_what_it_refers_to(bridge: tuple[Bubble, MemoryCorpus]) -> None:
    bubble, corpus = bridge
    alone = pruner(target=14).compress(bubble, corpus)
    assert [piece.text.strip() for piece in alone.pieces] == ["The bridge over the Tay fell in 1879 during a storm."]
    asked = replace(bubble, question="How many months had it stood?")
    texts = [piece.text for piece in pruner(target=20).compress(asked, corpus).pieces]
    assert texts == ["The bridge over the Tay fell in 1879 during a storm. It had stood for 19 months. "]
    texts = [piece.text for piece in pruner(target=10, repair=False).compress(asked, corpus).pieces]
    assert texts == ["It had stood for 19 months. "]


@pytest.mark.parametrize("rate", [0.2, 0.35, 0.5, 0.8])
def test_sentences_stay_whole_and_the_ledger_tells(bridge: tuple[Bubble, MemoryCorpus], rate: float) -> None:
    bubble, corpus = bridge
    context = pruner(rate=rate).compress(bubble, corpus)
    sentences = {(unit.owner, unit.span) for unit in units_of_bubble(bubble, corpus, 600).units}
    kept = {hit.chunk.id: place for place, hit in enumerate(bubble.hits)}
    told = {(kept[one.chunk_id], one.span): one.action for one in context.decisions}
    assert set(told) == sentences
    for (place, span), action in told.items():
        spans = [s for piece in context.pieces if kept[piece.chunk_id] == place for s in piece.kept]
        inside = any(one.contains(span) for one in spans)
        assert span is not None
        assert inside == (action == "keep")
        assert inside or not any(one.start < span.end and span.start < one.end for one in spans)
    assert all(found == whole for found, whole, _ in survival(bubble, context, corpus).values())


def test_a_repeated_sentence_is_kept_once(tmp_path: Path) -> None:
    bubble, corpus = bubble_of(tmp_path, [BRIDGE, f"{OVENS} {BRIDGE}"], "When did the bridge over the Tay fall?")
    context = pruner(rate=0.5).compress(bubble, corpus)
    assert assemble(piece.text for piece in context.pieces).count("fell in 1879") == 1
    assert any("earlier sentence" in one.reason for one in context.decisions)
    corpus.close()


def test_words_alone_decide_without_an_embedder(bridge: tuple[Bubble, MemoryCorpus]) -> None:
    bubble, corpus = bridge
    context = replace(pruner(target=14), embedder=None).compress(bubble, corpus)
    assert "1879" in assemble(piece.text for piece in context.pieces)


def test_the_target_is_met_by_an_exchange(tmp_path: Path) -> None:
    text = " ".join(["Bees are kept in hives of wood and straw here."] + [f"Word {at} is said." for at in range(30)])
    bubble, corpus = bubble_of(tmp_path, [text], "How are bees kept in hives?")
    for target in range(20, 80, 7):
        context = pruner(target=target).compress(bubble, corpus)
        assert target - 5 < context.token_count <= target, "sentences of 5 and 11 tokens fill any target so far"
    corpus.close()


def test_what_leans_on_what(tmp_path: Path) -> None:
    text = "| name | price |\n| mill | 12 |\n| saw | 7 |\n\nThe mill is old. It stands."
    blocks = (
        Block(span=Span(0, 44), kind="table"), Block(span=Span(0, 17), kind="row"),
        Block(span=Span(17, 31), kind="row"), Block(span=Span(31, 44), kind="row"),
    )  # fmt: skip
    document = Document(text=text, source="t.md", blocks=blocks)
    chunk = Chunk.cut(document, 0, len(text), counter=COUNTER, chunker="whole")
    hits = (Hit(chunk=chunk, score=1.0, rank=1, retriever="test"),)
    bubble = Bubble(question="What does the saw cost?", hits=hits, token_count=0, budget=99, decisions=())
    corpus = MemoryCorpus(tmp_path, [document], [chunk], embedder=EMBEDDER)
    units = units_of_bubble(bubble, corpus, 600)
    starts = [unit.span.start for unit in units.units]
    header, saw = starts.index(0), starts.index(31)
    assert header_rows(units, corpus) == {starts.index(17): header, saw: header}
    assert openers_lean(units) == {len(starts) - 1: len(starts) - 2}
    context = pruner(target=12).compress(bubble, corpus)
    assert [piece.text for piece in context.pieces] == ["| name | price |\n| saw | 7 |\n\n"]
    corpus.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": (1.0,)}, "6 numbers"), ({"kappa": 2.0}, "kappa"), ({"rate": 0.0}, "rate"),
        ({"target": 0}, "target"), ({"unit_chars": 3}, "unit_chars"),
    ],
)  # fmt: skip
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pruner(**options)
