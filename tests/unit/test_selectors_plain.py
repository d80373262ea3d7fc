"""top-k and MMR on selections that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError
from rag.text import assemble
from rag.tokens import WordCounter
from rag.types import Bubble, Chunk, Document, Hit
from retrievers.selectors.mmr import MmrSelector
from retrievers.selectors.top_k import TopKSelector
from tests.corpora import MemoryCorpus

COUNTER = WordCounter()
EMBEDDER = HashingEmbedder(buckets=2048)

TEXTS = (
    "red apples grow here",
    "red apples grow there",
    "blue whales swim far away in cold seas",
    "green",
)


def corpus_of(directory: Path, texts: Sequence[str] = TEXTS, embedder: Any = EMBEDDER) -> MemoryCorpus:
    documents = [Document(text=text, source=f"{at}.md") for at, text in enumerate(texts)]
    chunks = [Chunk.cut(d, 0, len(d.text), counter=COUNTER, chunker="whole") for d in documents]
    return MemoryCorpus(directory, documents, chunks, embedder=embedder)


def hits_of(chunks: Sequence[Chunk], scores: Sequence[float]) -> list[Hit]:
    return [
        Hit(chunk=chunk, score=score, rank=rank, retriever="test")
        for rank, (chunk, score) in enumerate(zip(chunks, scores, strict=True), start=1)
    ]


def actions(bubble: Bubble) -> list[str]:
    return [decision.action for decision in bubble.decisions]


def test_top_k_stops_where_the_budget_ends(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    hits = hits_of(corpus.chunks(range(4)), (4.0, 3.0, 2.0, 1.0))
    bubble = TopKSelector(counter=COUNTER, budget=9).select("?", hits, corpus)
    assert [hit.rank for hit in bubble.hits] == [1, 2]
    assert actions(bubble) == ["take", "take", "skip-budget", "skip-budget"]
    assert [decision.tokens for decision in bubble.decisions] == [4, 4, 8, 0]
    assert "16 of 9" in bubble.decisions[2].reason


def test_top_k_takes_at_most_k(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    hits = hits_of(corpus.chunks(range(4)), (4.0, 3.0, 2.0, 1.0))
    assert actions(TopKSelector(counter=COUNTER, k=1).select("?", hits, corpus)) == ["take", *["skip-rank"] * 3]


class CountingCounter(WordCounter):
    """Notes what it counts."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def count(self, text: str) -> int:
        self.seen.append(text)
        return super().count(text)


@pytest.mark.parametrize("plugin", [TopKSelector, MmrSelector])
def test_what_comes_after_the_budget_is_not_tokenised(plugin: Any, tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, [f"text {'word ' * 8}number {at}" for at in range(200)])
    counter = CountingCounter()
    hits = hits_of(corpus.chunks(range(200)), [1.0 - at / 300 for at in range(200)])
    bubble = plugin(counter=counter, budget=50).select("?", hits, corpus)
    assert len(bubble.decisions) == 200
    assert sum(map(len, counter.seen)) < 20 * len(assemble(bubble.texts))
    assert not any("number 199" in text for text in counter.seen)


def test_the_budget_is_counted_on_the_assembled_text(tmp_path: Path) -> None:
    """A counter that sees the seams: the pieces alone would fit, the text that is sent would not."""

    class CharacterCounter(WordCounter):
        additive = False

        def count(self, text: str) -> int:
            return len(text)

    counter = CharacterCounter()
    corpus = corpus_of(tmp_path, ("aaaa", "bbbb"))
    hits = hits_of(corpus.chunks(range(2)), (2.0, 1.0))
    for budget, chosen in ((8, 1), (9, 1), (10, 2)):
        bubble = TopKSelector(counter=counter, budget=budget).select("?", hits, corpus)
        assert len(bubble.hits) == chosen
        assert bubble.token_count == len(assemble(hit.chunk.text for hit in bubble.hits))


def test_a_span_around_chosen_ones_takes_their_place(tmp_path: Path) -> None:
    document = Document(text="one two three four five", source="a.md")
    spans = [(0, 7), (14, 18), (0, 23)]
    chunks = [Chunk.cut(document, a, b, counter=COUNTER, chunker="x") for a, b in spans]
    corpus = MemoryCorpus(tmp_path, [document], chunks)
    bubble = TopKSelector(counter=COUNTER, budget=5).select("?", hits_of(chunks, (3.0, 2.0, 1.0)), corpus)
    assert [hit.chunk for hit in bubble.hits] == [chunks[2]]
    assert actions(bubble) == ["skip-duplicate", "skip-duplicate", "take"]
    assert chunks[2].id in bubble.decisions[0].reason


def test_reading_order_is_by_best_document_then_place(tmp_path: Path) -> None:
    first = Document(text="alpha beta gamma", source="a.md")
    second = Document(text="delta epsilon", source="b.md")
    chunks = [
        Chunk.cut(first, 11, 16, counter=COUNTER, chunker="x"),
        Chunk.cut(second, 0, 5, counter=COUNTER, chunker="x"),
        Chunk.cut(first, 0, 5, counter=COUNTER, chunker="x"),
    ]
    corpus = MemoryCorpus(tmp_path, [first, second], chunks)
    bubble = TopKSelector(counter=COUNTER).select("?", hits_of(chunks, (3.0, 2.0, 1.0)), corpus)
    assert [hit.chunk.text for hit in bubble.hits] == ["alpha", "gamma", "delta"]


def test_mmr_puts_the_near_copy_behind(tmp_path: Path) -> None:
    """cos(0, 1) = 3/4; scaled relevance 1, .9, .5, 0. With lam .5: row 2 (.25) before row 1 (.45 - .375)."""
    corpus = corpus_of(tmp_path)
    hits = hits_of(corpus.chunks(range(4)), (1.0, 0.9, 0.5, 0.0))
    bubble = MmrSelector(counter=COUNTER, lam=0.5).select("?", hits, corpus)
    assert [corpus.rows_of([d.chunk_id])[0] for d in bubble.decisions] == [0, 2, 1, 3]
    assert [d.gain for d in bubble.decisions] == pytest.approx([0.5, 0.25, 0.075, 0.0], abs=1e-6)
    assert [d.redundancy for d in bubble.decisions] == pytest.approx([0.0, 0.0, 0.75, 0.0], abs=1e-6)
    assert [d.relevance for d in bubble.decisions] == [1.0, 0.5, 0.9, 0.0]


def test_mmr_without_vectors_compares_words(tmp_path: Path) -> None:
    """Jaccard of rows 0 and 1: three shared words of five."""
    corpus = corpus_of(tmp_path, embedder=None)
    hits = hits_of(corpus.chunks(range(4)), (1.0, 0.9, 0.5, 0.0))
    bubble = MmrSelector(counter=COUNTER, lam=0.5).select("?", hits, corpus)
    assert [d.redundancy for d in bubble.decisions] == pytest.approx([0.0, 0.0, 0.6, 0.0], abs=1e-6)


def test_mmr_of_relevance_alone_is_top_k(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    hits = hits_of(corpus.chunks(range(4)), (1.0, 0.9, 0.5, 0.0))
    for budget in (1, 5, 9, 17, 30):
        plain = TopKSelector(counter=COUNTER, budget=budget).select("?", hits, corpus)
        assert MmrSelector(counter=COUNTER, budget=budget, lam=1.0).select("?", hits, corpus).hits == plain.hits


def test_mmr_decides_on_what_lies_outside_of_the_pool(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    hits = hits_of(corpus.chunks(range(4)), (1.0, 0.9, 0.5, 0.0))
    assert actions(MmrSelector(counter=COUNTER, pool=2).select("?", hits, corpus)) == ["take"] * 2 + ["skip-rank"] * 2


@pytest.mark.parametrize(
    ("selector", "wrong"),
    [
        (TopKSelector, {"budget": 0}),
        (TopKSelector, {"k": -1}),
        (MmrSelector, {"budget": 0}),
        (MmrSelector, {"lam": 1.1}),
        (MmrSelector, {"pool": 0}),
    ],
)
def test_ranges(selector: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        selector(counter=COUNTER, **wrong)
