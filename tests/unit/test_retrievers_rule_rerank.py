"""Reranking by rules: coverage, proximity, phrases, and the caps against stuffed chunks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag.errors import ConfigError
from rag.protocols import Corpus
from rag.types import Hit
from retrievers import rule_rerank
from retrievers.bm25 import Bm25Retriever
from retrievers.rule_rerank import RuleRerankRetriever
from tests.unit.test_retrievers_rerank import Fixed, corpus_of, found, rows


def rules_of(corpus: Corpus, hits: Sequence[Hit], rule: str) -> dict[int, float]:
    return {row: hit.parts[f"rule-rerank{rule}"] for row, hit in zip(rows(corpus, hits), hits, strict=True)}


def test_rules_prefer_words_near_each_other_and_in_order(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    hits = found(RuleRerankRetriever(retriever=Fixed([1.0] * 4), weight=1.0, max_lead=1.0), corpus)
    assert rows(corpus, hits) == [1, 2, 3, 0] or rows(corpus, hits) == [1, 2, 0, 3]
    assert rules_of(corpus, hits, ".coverage")[1] == rules_of(corpus, hits, ".coverage")[2] == pytest.approx(1.0)
    proximity = rules_of(corpus, hits, ".proximity")
    assert proximity[1] == pytest.approx(3 / 5)  # copper price of the mill
    assert proximity[0] == 0.0 < proximity[2] < proximity[1]
    assert rules_of(corpus, hits, ".phrase")[1] == pytest.approx(1.0)
    assert rules_of(corpus, hits, ".phrase")[2] < 1.0
    assert all(0 <= hit.parts["rule-rerank"] <= 1 for hit in hits)


def test_rare_words_count_more(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ("The price is up.", "The price is down.", "Copper is up.", "The price is set."))
    hits = found(RuleRerankRetriever(retriever=Fixed([1.0] * 4), weight=1.0), corpus, question="copper price")
    assert rows(corpus, hits)[0] == 2


def test_a_chunk_that_copies_the_question_gains_nothing(tmp_path: Path) -> None:
    question = "How much did the copper price of the mill rise in March of that year?"
    texts = (
        "The copper price of the mill rose by nine crowns in March.",
        "The village had a school.",
        f"{question} {question} Buy our potion.",
    )
    corpus = corpus_of(tmp_path, texts)
    hits = found(RuleRerankRetriever(retriever=Fixed([1.0] * 3), weight=1.0, max_lead=1.0), corpus, question=question)
    scores = rules_of(corpus, hits, "")
    assert rules_of(corpus, hits, ".copied") == {0: pytest.approx(4 / 13), 1: 0.0, 2: 1.0}
    assert rules_of(corpus, hits, ".coverage")[2] > rules_of(corpus, hits, ".coverage")[0]
    assert scores[2] == scores[0] > scores[1]
    assert rows(corpus, hits)[0] == 0
    short = found(RuleRerankRetriever(retriever=Fixed([1.0] * 3)), corpus, question="copper price of the mill")
    assert max(rules_of(corpus, short, ".copied").values()) == 0.0  # a short question is not stuffing


@pytest.mark.parametrize(
    ("scores", "copies", "expected"),
    [
        ([0.9, 0.2, 0.1], [False, False, False], [0.5, 0.2, 0.1]),
        ([0.9, 0.8, 0.1], [False, False, False], [0.9, 0.8, 0.1]),
        ([0.9, 0.4], [True, False], [0.4, 0.4]),
        ([0.9, 0.7], [True, True], [0.9, 0.7]),
        ([0.9], [True], [0.9]),
        ([], [], []),
    ],
)
def test_caps(scores: list[float], copies: list[bool], expected: list[float]) -> None:
    assert rule_rerank._capped(scores, copies, 0.3) == pytest.approx(expected)


def test_the_smallest_window_is_the_smallest() -> None:
    random = np.random.default_rng(3)
    for _ in range(300):
        words = [str(word) for word in random.choice(list("abcdxyz"), size=int(random.integers(2, 14)))]
        wanted = sorted(set(words) & set("abc"))
        if wanted:
            every = range(len(words))
            brute = min(e - s + 1 for s in every for e in every if e >= s and set(wanted) <= set(words[s : e + 1]))
            assert rule_rerank._smallest_window(words, wanted) == brute


def test_the_longest_phrase_is_the_longest() -> None:
    random = np.random.default_rng(4)
    for _ in range(300):
        asked = [str(word) for word in random.choice(list("abcd"), size=6)]
        words = [str(word) for word in random.choice(list("abcd"), size=12)]
        text, idf = f" {' '.join(words)} ", {"a": 1.0, "b": 0.5, "c": 2.0}
        runs = [asked[s:e] for s in range(6) for e in range(s + 2, 7) if f" {' '.join(asked[s:e])} " in text]
        brute = max((sum(idf.get(word, 0.0) for word in set(run)) for run in runs), default=0.0)
        assert rule_rerank._phrase(asked, idf, words) == pytest.approx(brute)


def test_rules_that_cannot_be(tmp_path: Path) -> None:
    refused: list[dict[str, Any]] = [{"coverage": -0.1}, {"coverage": 0, "proximity": 0, "phrase": 0}, {"max_lead": 0}]
    for bad in refused:
        with pytest.raises(ConfigError, match="rule-rerank"):
            RuleRerankRetriever(retriever=Bm25Retriever(), **bad)
    hits = found(RuleRerankRetriever(retriever=Fixed([2.0, 1.0])), corpus_of(tmp_path), question="...")
    assert [hit.parts["rule-rerank"] for hit in hits] == [0.0, 0.0]
