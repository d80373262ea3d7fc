"""mcts with a reranker as the scorer of sets, and lazy greedy with swaps beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.errors import ConfigError
from rag.protocols import Corpus
from rag.registry import build
from rag.text import SEPARATOR, assemble
from rag.tokens import WordCounter
from rag.types import Chunk
from retrievers._rerank import Reranker, Scored, Scorer
from retrievers.bm25 import Bm25Retriever
from retrievers.rule_rerank import RuleRerankRetriever
from retrievers.selectors._swap import greedy_swap
from retrievers.selectors._tree import Tree, greedy_set
from retrievers.selectors._worth import Reranked, copies_question
from retrievers.selectors.mcts import MctsSelector
from tests.corpora import topic_corpus
from tests.unit.test_selectors_more import COUNTER, EMBEDDER, QUESTION, hits_of, instance, kept

Score = Callable[[str], float]


def scorer(score: Score, seen: list[str] | None = None) -> Scorer:
    def scored(question: str, chunks: Sequence[Chunk]) -> list[Scored]:
        if seen is not None:
            seen.extend(chunk.embed_text for chunk in chunks)
        return [(score(chunk.embed_text), {}) for chunk in chunks]

    return scored


@dataclass(frozen=True, kw_only=True)
class Told(Reranker):
    """A reranker that says what the test wants and notes what it read."""

    name: ClassVar[str] = "told"

    score: Score
    seen: list[str] = field(default_factory=list)
    retriever: Any = None
    k: int = 10
    pool: int = 10
    weight: float = 1.0

    def scorer(self, corpus: Corpus) -> Scorer:
        return scorer(self.score, self.seen)


def tree(utility: Any, costs: Sequence[int], budget: int, limit: int) -> frozenset[int]:
    made = Tree(utility, costs, root=frozenset(), budget=budget, limit=limit, c=1.41, lam=0.1, width=8)
    return frozenset(made.search())


def swapped(utility: Any, costs: Sequence[int], budget: int, limit: int) -> frozenset[int]:
    return frozenset(greedy_swap(utility, costs, root=frozenset(), budget=budget, limit=limit))


PAIR = {"a": 1.0, "b": 0.9, "c": 0.5, "d": 0.5, "e": 0.0}


def together(text: str) -> float:
    """A black box: the best letter alone, but `c` and `d` are worth much only side by side."""
    letters = text.split()
    return 5.0 if {"c", "d"} <= set(letters) else max((PAIR[one] for one in letters), default=0.0)


def test_a_set_is_worth_what_the_reranker_says_of_its_joined_text() -> None:
    seen: list[str] = []
    worth = Reranked("q", ["a", "b", "c", "d", "e"], scorer(together, seen), 100)
    assert seen == ["a", "b", "c", "d", "e"]
    assert [worth(frozenset({at})) for at in range(5)] == [1.0, 0.9, 0.5, 0.5, 0.0]
    assert worth(frozenset()) == 0.0
    assert worth(frozenset({3, 2})) == 5.0
    assert seen[-1] == f"c{SEPARATOR}d"
    assert worth(frozenset({2, 3})) == 5.0
    assert worth.calls == len(seen) == 6


def test_worths_are_scaled_by_question_whatever_the_logits() -> None:
    texts = ["a", "b", "c", "d", "e"]
    plain = Reranked("q", texts, scorer(together), 100)
    moved = Reranked("q", texts, scorer(lambda text: 7 * together(text) - 40), 100)
    for items in (frozenset({0}), frozenset({1, 4}), frozenset({2, 3}), frozenset[int]()):
        assert moved(items) == pytest.approx(plain(items), abs=1e-6)
    flat = Reranked("q", texts, scorer(lambda text: math.nan), 100)
    assert flat(frozenset({0, 1})) == 0.0


def test_search_finds_what_greedy_misses_in_a_black_box() -> None:
    texts = ["a", "b", "c", "d", "e"]
    costs = [1] * 5
    greedy = greedy_set(Reranked("q", texts, scorer(together), 99), costs, 2)
    assert 0 in greedy
    assert tree(Reranked("q", texts, scorer(together), 99), costs, 2, 99) == {2, 3}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), budget=st.integers(0, 900), limit=st.integers(1, 300))
def test_swaps_are_bounded_fit_and_never_worse_than_greedy(seed: int, budget: int, limit: int) -> None:
    utility, costs = instance(seed)
    found = swapped(utility, costs, budget, limit)
    assert utility.calls <= limit
    assert sum(costs[at] for at in found) <= budget
    reference = instance(seed)[0]
    if limit >= 105:  # lazy greedy of 14 items needs no more
        assert reference(found) >= reference(greedy_set(reference, costs, budget)) - 1e-9


def test_a_swap_ends_where_no_single_exchange_helps() -> None:
    utility, costs = instance(5, size=7)
    found = swapped(utility, costs, 300, 10_000)
    spent = sum(costs[at] for at in found)
    for out in found:
        for at in set(range(7)) - found:
            if spent - costs[out] + costs[at] <= 300:
                assert utility(found - {out} | {at}) <= utility(found)


def test_what_copies_the_question_raises_no_set() -> None:
    question = "Which parasite harms the hive of bees in winter?"
    texts = ["Mites harm bees.", f"Buy now. {question}", "Frost."]
    assert [copies_question(question, text) for text in texts] == [False, True, False]
    assert not copies_question("Which parasite?", "Which parasite? Which parasite?")
    worth = Reranked(question, texts, scorer(lambda text: float(text.count("hive") * 9 + text.count("bees"))), 9)
    assert worth(frozenset({1})) == 0.0
    assert worth(frozenset({0, 1})) == worth(frozenset({0})) == 1.0
    assert worth.calls == 2


@pytest.mark.parametrize("search", ["tree", "swap"])
@pytest.mark.parametrize("evaluations", [1, 7, 40, 150])
def test_the_reranker_is_asked_no_more_often_than_it_may(tmp_path: Path, search: Any, evaluations: int) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    hits = hits_of(corpus.chunks(range(len(corpus))))
    told = Told(score=lambda text: float(sum(map(ord, text)) % 101))
    made = MctsSelector(
        counter=COUNTER, embedder=EMBEDDER, budget=60, level=60, evaluations=evaluations, scorer=told, search=search
    )
    first = made.select(QUESTION, hits, corpus)
    assert 0 < len(told.seen) <= evaluations
    assert len(set(told.seen)) == len(told.seen)
    assert first == made.select(QUESTION, hits, corpus)
    assert first.hits
    assert first.token_count == COUNTER.count(assemble(first.texts)) <= 60


@pytest.mark.parametrize("search", ["tree", "swap"])
def test_a_larger_budget_never_covers_less(tmp_path: Path, search: Any) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    hits = hits_of(corpus.chunks(range(len(corpus))))
    for level, evaluations in ((10, 300), (25, 40), (60, 120)):
        before: set[tuple[str, int]] = set()
        for budget in (5, 20, 40, 41, 60, 90, 150, 5000):
            spec = {"use": "mcts", "budget": budget, "level": level, "evaluations": evaluations, "search": search}
            services = {"counter": WordCounter(), "embedder": EMBEDDER}
            made = build("selector", {**spec, "scorer": {"use": "rule-rerank", "retriever": "bm25"}}, services=services)
            bubble = made.select(QUESTION, hits, corpus)
            assert bubble.token_count == COUNTER.count(assemble(bubble.texts)) <= budget
            assert len(kept(bubble)) >= len(before)
            before = kept(bubble)


def test_wrong_scorers_and_searches_are_refused() -> None:
    with pytest.raises(ConfigError, match="reranker"):
        MctsSelector(counter=COUNTER, scorer=Bm25Retriever())
    with pytest.raises(ConfigError, match="tree or swap"):
        MctsSelector(counter=COUNTER, search="beam")  # type: ignore[arg-type]
    assert MctsSelector(counter=COUNTER, scorer=RuleRerankRetriever(retriever=Bm25Retriever())).search == "tree"
