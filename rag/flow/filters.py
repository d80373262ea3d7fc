"""A metadata filter out of the words of a question: years and source names that the corpus really has.

Conservative: a filter that is wrong hides the answer, one that is missing only ranks it lower. So a value counts only
behind a word that says it is one ("in 2023", "according to the employee handbook"), and only if chunks have it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rag.protocols import Corpus, Filter

__all__ = ["extract_filter"]

_YEAR = re.compile(r"\b(in|of|during|for|since|from|after|before|until)\s+(?:the\s+year\s+)?((?:19|20)\d\d)\b", re.I)
_OPERATORS = {"since": "ge", "from": "ge", "after": "gt", "before": "lt", "until": "le"}
_FILE = re.compile(r"(?<![\w./-])[\w-][\w.-]*\.(?:md|txt|pdf|docx|pptx|xlsx|html?|csv|jsonl?|py)\b", re.IGNORECASE)
_CUE = re.compile(r"\b(?:according to|as stated in|stated in|says? in|written in|as per)\s+(?:the\s+|our\s+)?", re.I)
_NAME_WORDS = 5


def extract_filter(question: str, corpus: Corpus) -> tuple[Filter | None, dict[str, Any]]:
    """(filter, what it was taken from); (None, {}) when the question names nothing that the corpus can be asked for."""
    if not len(corpus):
        return None, {}
    found: dict[str, Any] = {}
    parts: list[dict[str, Any]] = []
    for words, condition in (*_years(question, corpus), *_sources(question, corpus)):
        if words not in found:
            found[words] = condition
            parts.append(condition)
    if not parts:
        return None, {}
    where: dict[str, Any] = parts[0] if len(parts) == 1 else {"and": parts}
    rows = len(corpus.rows(where))
    if not rows:  # each holds somewhere, together they hold nowhere
        return None, {"dropped": found}
    return where, {"from": found, "chunks": rows}


def _years(question: str, corpus: Corpus) -> Iterator[tuple[str, dict[str, Any]]]:
    for one in _YEAR.finditer(question):
        operator = _OPERATORS.get(one[1].casefold(), "eq")
        for value in (int(one[2]), one[2]) if operator == "eq" else (int(one[2]),):
            condition = {"meta.year": {operator: value}}
            if len(corpus.rows(condition)):
                yield one[0], condition
                break


def _sources(question: str, corpus: Corpus) -> Iterator[tuple[str, dict[str, Any]]]:
    """A file by its name, or what follows a cue when it names the source or title of one document only."""
    for one in _FILE.finditer(question):
        for operator in ("eq", "contains"):
            condition: dict[str, Any] = {"source": {operator: one[0]}}
            if _documents(condition, corpus) == 1:
                yield one[0], condition
                break
    for cue in _CUE.finditer(question):
        words = re.findall(r"[\w'-]+", re.split(r"[,;:?!]", question[cue.end() :])[0])[:_NAME_WORDS]
        for count in range(len(words), 1, -1):
            named = _named(words[:count], corpus)
            if named:
                yield cue[0] + " ".join(words[:count]), named
                break


def _named(words: list[str], corpus: Corpus) -> dict[str, Any] | None:
    lower, plain = [word.lower() for word in words], " ".join(words)
    names = [("source", "-".join(lower)), ("source", "_".join(lower)), ("source", plain), ("title", plain)]
    conditions: list[dict[str, Any]] = [{field: {"contains": name}} for field, name in names]
    return next((condition for condition in conditions if _documents(condition, corpus) == 1), None)


def _documents(condition: Filter, corpus: Corpus) -> int:
    """How many documents have chunks that match; 2 stands for more."""
    rows = [int(row) for row in corpus.rows(condition)]
    if not rows:
        return 0
    doc_id = corpus.chunks(rows[:1])[0].doc_id
    return 1 if len(corpus.rows({"and": [condition, {"doc_id": doc_id}]})) == len(rows) else 2
