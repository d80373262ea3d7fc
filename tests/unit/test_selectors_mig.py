"""Marginal information gain: lazy evaluation chooses as the plain one does, with fewer gains computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError
from rag.spans.choice import SpanChoice
from rag.spans.features import pool_of
from rag.spans.filling import Filling, Gain, Take, lazy_greedy
from rag.spans.units import units_of
from rag.text import assemble
from rag.tokens import WordCounter
from rag.types import Bubble, Chunk, Document, Hit
from retrievers.selectors.mig import MigSelector
from tests.corpora import MemoryCorpus, topic_corpus

COUNTER = WordCounter()
EMBEDDER = HashingEmbedder(buckets=256)
QUESTION = "Which parasite harms the hive in winter?"


def plain_greedy(size: int, gain: Gain, take: Take) -> int:
    """The reference: every gain anew in every step."""
    calls, left = 0, list(range(size))
    while left:
        gains = [gain(at) for at in left]
        calls += len(left)
        best = max(range(len(left)), key=lambda at: (gains[at], -left[at]))
        if take(left.pop(best), gains[best]) is None:
            break
    return calls


def hits_of(chunks: Sequence[Chunk]) -> list[Hit]:
    return [Hit(chunk=c, score=1.0 / at, rank=at, retriever="test") for at, c in enumerate(chunks, start=1)]


def made(**options: Any) -> MigSelector:
    return MigSelector(**{"counter": COUNTER, "embedder": EMBEDDER, **options})


def places(bubble: Bubble) -> list[tuple[str, int]]:
    pairs = zip(bubble.hits, bubble.spans, strict=True)
    return [(hit.chunk.doc_id, at) for hit, spans in pairs for span in spans for at in range(span.start, span.end)]


def choice_of(directory: Path, budget: int) -> SpanChoice:
    corpus = topic_corpus(directory, EMBEDDER)
    units = units_of(hits_of(corpus.chunks(range(len(corpus)))), corpus, 600)
    weights = (1.0, 1.0, 0.0, 0.5, 0.5, 0.0)
    pool = pool_of(QUESTION, units, corpus, EMBEDDER, weights, 160)
    filling = Filling(units, pool.numbers, COUNTER, budget)
    return SpanChoice(units, pool, pool.parts @ np.array(weights), filling, lam=0.6, coverage=0.3)


@pytest.mark.parametrize("budget", [5, 30, 100, 250])
def test_lazy_is_plain_with_fewer_gains(tmp_path: Path, budget: int) -> None:
    lazy, plain = choice_of(tmp_path / "a", budget), choice_of(tmp_path / "b", budget)
    one, other = lazy.run(QUESTION, lazy_greedy), plain.run(QUESTION, plain_greedy)
    assert one.hits == other.hits
    assert [d for d in one.decisions if d.action == "take"] == [d for d in other.decisions if d.action == "take"]
    assert lazy.calls < plain.calls


@given(
    values=st.lists(st.integers(0, 12), min_size=1, max_size=12),
    seed=st.integers(0, 99),
    ends=st.integers(1, 12),
)
def test_lazy_is_plain_on_any_falling_gains(values: list[int], seed: int, ends: int) -> None:
    """Ties, refusals and an early end included."""
    similarity = np.random.default_rng(seed).integers(0, 4, (len(values), len(values)))

    def outcome(greedy: Any) -> tuple[list[int], int]:
        chosen: list[int] = []
        offered: list[int] = []

        def gain(at: int) -> float:
            return float(values[at] - max((similarity[at, other] for other in chosen), default=0))

        def take(at: int, found: float) -> bool | None:
            assert found == gain(at)
            offered.append(at)
            if len(offered) > ends:
                return None
            if at % 3 == 2:
                return False
            chosen.append(at)
            return True

        return offered, greedy(len(values), gain, take)

    (lazy, fewer), (plain, more) = outcome(lazy_greedy), outcome(plain_greedy)
    assert lazy == plain
    assert fewer <= more


@pytest.mark.parametrize("unit", ["sentence", "chunk"])
def test_first_choice_is_the_most_relevant(tmp_path: Path, unit: Any) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    bubble = made(unit=unit, coverage=0.0).select(QUESTION, hits_of(corpus.chunks(range(len(corpus)))), corpus)
    taken = [d for d in bubble.decisions if d.action == "take"]
    assert taken[0].relevance == max(d.relevance for d in bubble.decisions)
    gains = [d.gain for d in taken]
    assert gains == sorted(gains, reverse=True)
    assert all(d.gain == pytest.approx(d.relevance - 0.6 * d.redundancy, abs=2e-6) for d in taken)


def test_chunks_come_with_the_vectors_of_the_index(tmp_path: Path) -> None:
    """Nothing but the question is embedded."""

    embedded: list[str] = []

    class Counting(HashingEmbedder):
        def embed(self, texts: Sequence[str]) -> Any:
            embedded.extend(texts)
            return super().embed(texts)

    corpus = topic_corpus(tmp_path, EMBEDDER)
    embedder = Counting(buckets=256)
    bubble = made(unit="chunk", embedder=embedder).select(QUESTION, hits_of(corpus.chunks(range(9))), corpus)
    assert embedded == [QUESTION]
    assert len(bubble.hits) == 9
    assert all(len(spans) == 1 for spans in bubble.spans)


@pytest.mark.parametrize("unit", ["sentence", "chunk"])
def test_overlapping_chunks_are_paid_for_once(tmp_path: Path, unit: Any) -> None:
    text = " ".join(f"Fact {n} is about parasite number {n} of the hive." for n in range(12))
    document = Document(text=text, source="a.md")
    edges = [(at, min(at + 150, len(text))) for at in range(0, len(text) - 100, 50)]
    chunks = [Chunk.cut(document, a, b, counter=COUNTER, chunker="window") for a, b in edges]
    corpus = MemoryCorpus(tmp_path, [document], chunks, embedder=EMBEDDER)
    bubble = made(unit=unit, budget=10_000).select(QUESTION, hits_of(chunks), corpus)
    assert len(places(bubble)) == len(set(places(bubble))) == edges[-1][1]


@pytest.mark.parametrize("unit", ["sentence", "chunk"])
def test_budget_and_coverage_grow_together(tmp_path: Path, unit: Any) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    hits = hits_of(corpus.chunks(range(len(corpus))))
    sizes = []
    for budget in range(1, 300, 7):
        bubble = made(unit=unit, budget=budget).select(QUESTION, hits, corpus)
        assert bubble.token_count == COUNTER.count(assemble(bubble.texts)) <= budget
        sizes.append(len(places(bubble)))
    assert sizes == sorted(sizes)
    assert sizes[0] == 0
    assert sizes[-1] > 500


@pytest.mark.parametrize("unit", ["sentence", "chunk"])
def test_without_vectors_words_decide(tmp_path: Path, unit: Any) -> None:
    corpus = topic_corpus(tmp_path, None)
    hits = hits_of(corpus.chunks(range(20)))
    bubble = made(unit=unit, embedder=None, budget=40).select(QUESTION, hits, corpus)
    assert "parasite" in assemble(bubble.texts)


@pytest.mark.parametrize(
    "wrong", [{"unit": "word"}, {"budget": 0}, {"pool": 0}, {"unit_chars": 1}, {"lam": -0.1}, {"coverage": -1.0}]
)
def test_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        made(**wrong)
