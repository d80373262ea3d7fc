"""The words of a question that full-text search looks up."""

from __future__ import annotations

from rag.text import lexical_words

__all__ = ["query_words"]

# The stop set of Lucene's EnglishAnalyzer, then the question words and auxiliaries that frame a question: those are
# rare in documents, so that BM25 would take them for telling words.
_STOP_WORDS = frozenset(
    lexical_words(
        "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
        "this to was will with "
        "am can could did do does had has have how i me my our should us we were what when where which who whom whose "
        "why would you your"
    )
)


def query_words(question: str) -> list[str]:
    """Distinct words in order, without stop words when others remain."""
    words = list(dict.fromkeys(lexical_words(question)))
    return [word for word in words if word not in _STOP_WORDS] or words
