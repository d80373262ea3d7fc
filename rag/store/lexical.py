# ruff: noqa: S608 (only constants and question marks are put into SQL; values travel as parameters)
"""BM25 over the full-text index, with the same hits whether frequent words are followed or not.

FTS5 scores every chunk that holds any word of a question, so that one word of half the chunks costs more than all the
others. A chunk that holds frequent words alone often cannot reach the best k (the idea of MaxScore: Turtle and Flood,
"Query evaluation: strategies and optimizations", 1995). A word adds less than 2.2 * idf to a score. So:

1. the rare words alone give k chunks, and their worst score is one that the k-th best chunk has at least;
2. the most frequent words are optional while their 2.2 * idf together stay below that score: a chunk without any other
   word cannot be among the best k;
3. `(others) AND (others OR optional OR optional)` visits only chunks with one of the others. Every word stands in it
   twice, so that its score is twice the BM25 of all words.

Measured on 1,000,000 chunks with public questions: mean CPU time 118 -> 78 ms, 95 of 100 below 285 -> 205 ms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rag.store.database import Database

__all__ = ["LexicalIndex"]

_MOST = 2.2
"""k1 + 1 of FTS5's bm25: what one word adds stays below this times its idf."""
_RARE = 0.01
"""Share of the chunks up to which a word is rare."""
_COUNTED_WORDS = 10_000
_DIGITS = 9
"""Sums in another order differ in the last bits, and ties are to stay ties."""


class LexicalIndex:
    """The full-text index of one snapshot. Below `prune_from` chunks every word is followed at once."""

    def __init__(self, db: Database, chunks: int, *, prune_from: int = 50_000) -> None:
        self._db = db
        self._chunks = chunks
        self._prune = chunks >= prune_from
        self._counts: dict[str, int] = {}

    def search(self, words: Sequence[str], k: int, allowed: str, values: Sequence[Any]) -> list[tuple[int, float]]:
        """The best k (row, score) for any of `words`, best first, ties by row.

        `words` are distinct and none holds a quotation mark; `allowed` is a query of the rows that may be found, with
        its `values`, or "" for all.
        """
        condition = f"+lexical.rowid IN ({allowed})" if allowed else "1"  # plus: not one search per allowed row
        optional = self._optional(words, k, condition, values) if self._prune else []
        if not optional:
            return self._best(_any(words), 1, k, condition, values)
        others = [word for word in words if word not in optional]
        match = f"({_any(others)}) AND ({_any([*others, *optional, *optional])})"
        return self._best(match, 2, k, condition, values)

    def _optional(self, words: Sequence[str], k: int, condition: str, values: Sequence[Any]) -> list[str]:
        """The most frequent words, as many as cannot bring a chunk among the best k by themselves."""
        rare = [word for word in words if self._count(word) <= _RARE * self._chunks]
        if not rare or len(rare) == len(words):
            return []
        found = self._best(_any(rare), 1, k, condition, values)
        room = found[-1][1] if len(found) == k else 0.0
        optional: list[str] = []
        for word in sorted(set(words).difference(rare), key=lambda word: (-self._count(word), word)):
            room -= _MOST * self._idf(word)
            if room <= 0:
                break
            optional.append(word)
        return optional

    def _best(self, match: str, times: int, k: int, condition: str, values: Sequence[Any]) -> list[tuple[int, float]]:
        rows = self._db.rows(
            f"SELECT lexical.rowid, round(-bm25(lexical) / ?, {_DIGITS}) AS score FROM lexical "
            f"WHERE lexical MATCH ? AND {condition} ORDER BY score DESC, lexical.rowid LIMIT ?",
            (times, match, *values, k),
        )
        return [(int(row), float(score)) for row, score in rows]

    def _count(self, word: str) -> int:
        """How many chunks hold the word."""
        if word not in self._counts:
            if len(self._counts) >= _COUNTED_WORDS:
                self._counts.clear()
            sql = "SELECT count(*) FROM lexical WHERE lexical MATCH ?"
            self._counts[word] = int(self._db.value(sql, (_any([word]),)))
        return self._counts[word]

    def _idf(self, word: str) -> float:
        """As FTS5's bm25 has it: never below 1e-6."""
        count = self._count(word)
        return max(1e-6, math.log((self._chunks - count + 0.5) / (count + 0.5)))


def _any(words: Sequence[str]) -> str:
    return " OR ".join(f'"{word}"' for word in words)
