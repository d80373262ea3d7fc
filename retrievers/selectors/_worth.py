"""What a set of chunks is worth by a reranker that reads their texts as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rag.text import SEPARATOR, lexical_words
from rag.types import Chunk, Span
from retrievers._rerank import Scorer

__all__ = ["Reranked", "copies_question"]

_NGRAM, _LEAST_WORDS, _COPY = 3, 6, 0.8


class Reranked:
    """f(S) = the reranker's score of the texts of S in their order, joined; a black box that may fall with more text.

    Scaled by question: the worst text alone is 0, the best alone 1, and so is the empty set 0. Texts that copy the
    question are left out of what is read, so that they raise no set; a set of nothing else is worth 0. `calls` counts
    the texts that were scored; a set that is known already, or has the text of one, is free. The first `limit` texts
    alone are scored at once, which are the first calls.
    """

    most = math.inf

    def __init__(self, question: str, texts: Sequence[str], scorer: Scorer, limit: int) -> None:
        self.calls = 0
        self._question, self._texts, self._scorer = question, texts, scorer
        self._quiet = frozenset(at for at, text in enumerate(texts) if copies_question(question, text))
        self._raw: dict[frozenset[int], float] = {}
        loud = [at for at in range(len(texts)) if at not in self._quiet]
        alone = [self._scored(frozenset({at})) for at in loud[:limit]]
        self._low = min(alone, default=0.0)
        self._size = (max(alone, default=0.0) - self._low) or 1.0

    def knows(self, items: frozenset[int]) -> bool:
        heard = items - self._quiet
        return not heard or heard in self._raw

    def __call__(self, items: frozenset[int]) -> float:
        heard = items - self._quiet
        return round((self._scored(heard) - self._low) / self._size, 6) if heard else 0.0

    def _scored(self, items: frozenset[int]) -> float:
        if items not in self._raw:
            self.calls += 1
            text = SEPARATOR.join(self._texts[at] for at in sorted(items))
            whole = Chunk(doc_id="set", span=Span(0, len(text)), text=text, token_count=0)
            score = self._scorer(self._question, [whole])[0][0]
            self._raw[items] = score if math.isfinite(score) else min(self._raw.values(), default=0.0)
        return self._raw[items]


def copies_question(question: str, text: str) -> bool:
    """Whether `text` holds over .8 of the 3-grams of a question of at least 6 words."""
    asked, words = lexical_words(question), lexical_words(text)
    if len(asked) < _LEAST_WORDS:
        return False
    grams = set(zip(*(asked[at:] for at in range(_NGRAM)), strict=False))
    held = set(zip(*(words[at:] for at in range(_NGRAM)), strict=False))
    return len(grams & held) > _COPY * len(grams)
