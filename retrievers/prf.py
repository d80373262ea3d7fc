"""Pseudo-relevance feedback: a light RM3 (Lavrenko & Croft, SIGIR 2001; Abdul-Jaleel et al., TREC 2004)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rag.errors import ConfigError
from rag.protocols import Corpus, Filter, Searcher, nested
from rag.text import lexical_words
from rag.types import Hit
from retrievers._variants import keywords
from retrievers._wrapped import WrappedSearcher, Wrapper, merged, pool_of

_LOOKED_UP = 30
"""Candidates whose rarity is asked of the index: those that most feedback hits say, most often."""
_COMMON = 1000
"""A word in more chunks than this counts as if in this many: counting further costs time and tells no more."""


@dataclass(frozen=True, kw_only=True)
class PrfRetriever(Wrapper):
    """Searches, takes the most telling words of the best hits, searches for them, and adds the two scores.

    score = score(question) + weight * score(words): the weighted query itself for scores that add up over words
    (BM25) or are linear in the query (cosines), and a weighted fusion for those of `hybrid`. A telling word is in many
    of the first `feedback_hits` hits, and in few chunks: sum over the hits of ln(1 + count), times its IDF.

    Measured over `bm25` on development halves, whole chunks (2026-11-22): recall in 800 tokens, hotpotqa_200 .843 to
    .871 (95 % interval of the gain .007 to .054), chroma_chunking .827 to .848 (-.006 to .048). In 200 tokens it costs
    .05 and .03, so it is for wide pools. Over `hybrid` nothing is gained: .900 to .875 and .828 to .824.

    Deviations: RM3 interpolates a relevance model, with document likelihoods as weights, over 50 or more words of 10
    documents; here the hits weigh alike, and `terms` words of `feedback_hits` hits are added with one weight.
    """

    retriever: Any = nested("retriever", "bm25")
    k: int = 40
    feedback_hits: int = 3
    terms: int = 5
    weight: float = 0.3
    pool: int = 0

    def __post_init__(self) -> None:
        if min(self.k, self.feedback_hits, self.terms) < 1 or self.pool < 0 or not 0 < self.weight <= 1:
            raise ConfigError(
                "prf: k, feedback_hits and terms must be >= 1, pool >= 0, 0 < weight <= 1, not "
                f"k={self.k}, feedback_hits={self.feedback_hits}, terms={self.terms}, pool={self.pool}, "
                f"weight={self.weight}"
            )

    def open(self, corpus: Corpus) -> Searcher:
        return _PrfSearcher(self, corpus)


class _PrfSearcher(WrappedSearcher):
    def __init__(self, retriever: PrfRetriever, corpus: Corpus) -> None:
        super().__init__(corpus, retriever.retriever.open(corpus))
        self._retriever = retriever

    def search(self, question: str, k: int, where: Filter | None = None) -> list[Hit]:
        if k < 1:
            return []
        one, pool = self._retriever, pool_of(self._retriever.pool, k)
        first = self._inner.search(question, pool, where)
        words = telling_words(question, first[: one.feedback_hits], self._corpus, one.terms)
        second = self._inner.search(" ".join(words), pool, where) if words else []
        lists = {"question": first, "feedback": second}
        ids = [hit.chunk.id for hit in (*first, *second)]
        values = {
            "question": _filled(first, ids, pool, 1.0),
            "feedback": _filled(second, ids, pool, one.weight),
        }
        return merged(self._corpus, lists, values, "prf", k)


def _filled(hits: Sequence[Hit], ids: Sequence[str], pool: int, weight: float) -> Mapping[str, float]:
    """weight * score of every id; what a full list does not name scores at most as its last, a short one 0."""
    absent = hits[-1].score if len(hits) >= pool else 0.0
    scores = {hit.chunk.id: hit.score for hit in hits}
    return {one: weight * scores.get(one, absent) for one in ids}


def telling_words(question: str, hits: Sequence[Hit], corpus: Corpus, count: int) -> list[str]:
    """At most `count` words of the hits that the question does not say, the most telling first, ties by alphabet."""
    asked = set(lexical_words(question))
    bags = [Counter(lexical_words(keywords(hit.chunk.embed_text))) for hit in hits]
    shares: dict[str, float] = {}
    for bag in bags:
        for word, times in bag.items():
            if word not in asked and len(word) > 1:
                shares[word] = shares.get(word, 0.0) + math.log1p(times)
    shortlist = sorted(shares, key=lambda word: (-round(shares[word], 6), word))[:_LOOKED_UP]
    size = len(corpus)
    telling = {}
    for word in shortlist:
        holding = len(corpus.lexical([word], _COMMON))
        telling[word] = round(shares[word] * math.log(1 + (size - holding + 0.5) / (holding + 0.5)), 6)
    return sorted(telling, key=lambda word: (-telling[word], word))[:count]
