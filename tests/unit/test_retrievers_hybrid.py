"""Fusion against sums worked out by hand, and the words that BM25 looks up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rag.errors import ConfigError
from rag.protocols import Corpus, Filter, Retriever, Searcher
from rag.types import Hit
from retrievers._words import query_words
from retrievers.bm25 import Bm25Retriever
from retrievers.hybrid import HybridRetriever
from tests.corpora import MemoryCorpus, topic_corpus


@dataclass(frozen=True, kw_only=True)
class ListRetriever(Retriever):
    """Always the same (row, score) list, whatever the question."""

    name: str
    found: tuple[tuple[int, float], ...]
    k: int = 10

    def open(self, corpus: Corpus) -> Searcher:
        return ListSearcher(self, corpus)


class ListSearcher(Searcher):
    def __init__(self, retriever: ListRetriever, corpus: Corpus) -> None:
        self.retriever, self.corpus, self.closed = retriever, corpus, 0

    def search(self, question: str, k: int, where: Filter | None = None) -> list[Hit]:
        found = self.retriever.found[:k]
        chunks = self.corpus.chunks([row for row, _ in found])
        return [
            Hit(chunk=chunk, score=score, rank=rank, retriever=self.retriever.name)
            for rank, (chunk, (_, score)) in enumerate(zip(chunks, found, strict=True), start=1)
        ]

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def corpus(tmp_path: Path) -> MemoryCorpus:
    return topic_corpus(tmp_path, None)


A = ListRetriever(name="a", found=((3, 0.9), (1, 0.5), (2, 0.1)))
B = ListRetriever(name="b", found=((1, 12.0), (5, 7.0), (3, 2.0)))


def fused(corpus: MemoryCorpus, k: int = 10, **options: Any) -> list[tuple[int, float]]:
    hits = HybridRetriever(**{"parts": (A, B), **options}).open(corpus).search("?", k)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    return list(zip(corpus.rows_of([hit.chunk.id for hit in hits]), [hit.score for hit in hits], strict=True))


def agree(found: list[tuple[int, float]], expected: list[tuple[int, float]]) -> None:
    assert [row for row, _ in found] == [row for row, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-12)


def test_reciprocal_rank_fusion_by_hand(corpus: MemoryCorpus) -> None:
    expected = [(1, 1 / 62 + 1 / 61), (3, 1 / 61 + 1 / 63), (5, 1 / 62), (2, 1 / 63)]
    agree(fused(corpus, fusion="rrf"), expected)


def test_weights_and_rrf_k_by_hand(corpus: MemoryCorpus) -> None:
    expected = [(3, 3 / 2 + 1 / 4), (1, 3 / 3 + 1 / 2), (2, 3 / 4), (5, 1 / 3)]
    agree(fused(corpus, fusion="rrf", weights=(3.0, 1.0), rrf_k=1), expected)


def test_weighted_sum_by_hand(corpus: MemoryCorpus) -> None:
    """Scaled a: 1, .5, 0; scaled b: 1, .5, 0; weights .75 and .25."""
    expected = [(3, 0.75), (1, 0.75 * 0.5 + 0.25), (5, 0.125), (2, 0.0)]
    agree(fused(corpus, fusion="weighted", weights=(3.0, 1.0)), expected)


def test_ties_go_by_row(corpus: MemoryCorpus) -> None:
    left = ListRetriever(name="a", found=((9, 1.0), (4, 0.5)))
    right = ListRetriever(name="b", found=((4, 1.0), (9, 0.5)))
    assert [row for row, _ in fused(corpus, parts=(left, right))] == [4, 9]
    third = ListRetriever(name="c", found=((2, 1.0),))
    alone = ListRetriever(name="d", found=((1, 1.0),))
    assert [row for row, _ in fused(corpus, parts=(third, alone))] == [1, 2]


def test_parts_tell_every_score_and_rank(corpus: MemoryCorpus) -> None:
    hits = HybridRetriever(parts=(B, A), minima=(0.0, 0.0)).open(corpus).search("?", 10)
    assert hits[0].parts == {"a": 0.5, "a.rank": 2.0, "b": 12.0, "b.rank": 1.0, "convex": hits[0].score}
    assert set(hits[2].parts) == {"b", "b.rank", "convex"}
    assert {hit.retriever for hit in hits} == {"hybrid"}


def test_two_parts_of_one_name_are_told_apart(corpus: MemoryCorpus) -> None:
    hits = HybridRetriever(parts=(A, A)).open(corpus).search("?", 1)
    assert set(hits[0].parts) == {"a", "a.rank", "a#2", "a#2.rank", "convex"}


def test_check_asks_every_part(corpus: MemoryCorpus) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Sick(ListRetriever):
        def check(self, corpus: Corpus) -> list[str]:
            return [f"{self.name} is damaged"]

    sick = (Sick(name="x", found=()), A, Sick(name="y", found=()))
    assert HybridRetriever(parts=sick).check(corpus) == ["x is damaged", "y is damaged"]
    assert HybridRetriever(parts=(A, B)).check(corpus) == []


def test_an_empty_part_changes_nothing(corpus: MemoryCorpus) -> None:
    silent = ListRetriever(name="s", found=())
    for fusion in ("convex", "weighted", "rrf"):
        assert fused(corpus, parts=(A, silent), fusion=fusion) == fused(corpus, parts=(A,), fusion=fusion)


def test_the_pool_bounds_what_parts_are_asked_for(corpus: MemoryCorpus) -> None:
    assert [row for row, _ in fused(corpus, k=1, pool=1)] == [1]  # rows 3 and 1 tie at rank 1
    assert [row for row, _ in fused(corpus, k=1, pool=3)] == [1]
    assert len(fused(corpus, k=3, pool=1)) == 3  # never fewer than k


def test_vectors_are_used_when_a_part_uses_them() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Dense(ListRetriever):
        needs_vectors = True

    assert not HybridRetriever(parts=(A, B)).uses_vectors
    assert HybridRetriever(parts=(A, Dense(name="d", found=()))).uses_vectors
    assert HybridRetriever(parts=(HybridRetriever(parts=(Dense(name="d", found=()),)), A)).uses_vectors


def test_a_part_that_cannot_open_closes_the_others(corpus: MemoryCorpus) -> None:
    opened: list[ListSearcher] = []

    @dataclass(frozen=True, kw_only=True)
    class Watched(ListRetriever):
        def open(self, corpus: Corpus) -> Searcher:
            opened.append(ListSearcher(self, corpus))
            return opened[-1]

    @dataclass(frozen=True, kw_only=True)
    class Broken(ListRetriever):
        def open(self, corpus: Corpus) -> Searcher:
            raise ConfigError("no vectors here")

    with pytest.raises(ConfigError, match="no vectors"):
        HybridRetriever(parts=(Watched(name="w", found=()), Broken(name="x", found=()))).open(corpus)
    assert [searcher.closed for searcher in opened] == [1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"parts": ()},
        {"parts": ("bm25",)},
        {"fusion": "max"},
        {"alpha": 1.1},
        {"alpha": -0.1},
        {"alpha": float("nan")},
        {"minima": (0.0,)},
        {"minima": (0.0, float("-inf"))},
        {"weights": (1.0,)},
        {"weights": (0.0, 0.0)},
        {"weights": (-1.0, 2.0)},
        {"rrf_k": -1},
        {"pool": -1},
        {"k": 0},
    ],
)
def test_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        HybridRetriever(**{"parts": (A, B), **wrong})


def test_question_words() -> None:
    assert query_words("Who approves the travel, and the TRAVEL of whom?") == ["approves", "travel"]
    assert query_words("Who is it?") == ["who", "is", "it"]  # nothing else is left
    assert query_words("?!") == []


def test_stop_words_do_not_pull_chunks_in(corpus: MemoryCorpus) -> None:
    searcher = Bm25Retriever().open(corpus)
    assert {hit.chunk.section for hit in searcher.search("what is a lahar", 10)} == {()}
    assert len(searcher.search("what is a lahar", 10)) == 1


def test_at_most_max_words_are_looked_up(corpus: MemoryCorpus) -> None:
    asked: list[int] = []

    def lexical(words: Sequence[str], k: int, where: Filter | None = None) -> list[tuple[int, float]]:
        asked.append(len(words))
        return []

    corpus.lexical = lexical  # type: ignore[method-assign]
    question = " ".join(f"word{at}" for at in range(500))
    Bm25Retriever().open(corpus).search(question, 5)
    Bm25Retriever(max_words=3).open(corpus).search(question, 5)
    assert asked == [64, 3]
