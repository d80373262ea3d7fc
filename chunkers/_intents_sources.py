"""Where intents come from: sources of texts, functions (atoms, count) -> at most `count` texts, that see no vector."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from chunkers._segment import Atoms
from rag.errors import ConfigError
from rag.protocols import TextModel
from rag.text import lexical_words

__all__ = ["ModelQuestions", "QueryLog", "Source", "evenly", "headings", "heuristic"]

Source = Callable[[Atoms, int], list[str]]

_EVERY = 4
_WORDS = 6
_WORD_CHARS = range(4, 31)
"""Shorter words say little, longer ones are no words."""
_WINDOW_TOKENS = 200
_PER_WINDOW = 3
_ANSWER_TOKENS = 96
_PROMPT = """Write {count} short questions that a reader of the text below may ask and that the text answers.
Write one question per line and nothing else.

Text:
{text}

Questions:
"""
_NUMBERING = re.compile(r"^(?:Q\s*\d*\s*[:.)]|\d+\s*[:.)]|[-*\u2022])\s*", re.IGNORECASE)

_T = TypeVar("_T")


def headings(atoms: Atoms, count: int) -> list[str]:
    """Every heading below the one above it, such as "Travel: Limits"."""
    document = atoms.document
    starts = [block.span.start for block in document.blocks if block.kind == "heading"]
    paths = (document.section_at(start)[-2:] for start in starts)
    names = (": ".join(" ".join(part.strip("# ").split()) for part in path) for path in paths)
    return evenly(list(dict.fromkeys(name for name in names if name.strip())), count)


def heuristic(atoms: Atoms, count: int) -> list[str]:
    """A question per every fourth sentence, of its six rarest words in their order.

    Rare is what few sentences have; of equally rare words the longer ones are taken.
    """
    words = [[word for word in lexical_words(text) if _is_telling(word)] for text in atoms.texts]
    frequency = Counter(word for sentence in words for word in set(sentence))
    asked: dict[str, None] = {}
    for sentence in words[::_EVERY]:
        rarest = set(sorted(dict.fromkeys(sentence), key=lambda word: (frequency[word], -len(word)))[:_WORDS])
        if rarest:
            asked[f"What about {' '.join(word for word in dict.fromkeys(sentence) if word in rarest)}?"] = None
    return evenly(list(asked), count)


def _is_telling(word: str) -> bool:
    return len(word) in _WORD_CHARS and not any(char.isdigit() or char == "_" for char in word)


class QueryLog:
    """Past questions of readers, a source: a document gets those of whose words it has the most.

    It must have two words of a question, and half of them.
    A `.jsonl` file has an object a line with `text`, `question` or `query`; any other file has a question a line.
    """

    def __init__(self, path: Path) -> None:
        questions = _questions_in(path)
        self._questions = [(text, frozenset(filter(_is_telling, lexical_words(text)))) for text in questions]
        self.digest = hashlib.blake2b("\n".join(questions).encode(), digest_size=8).hexdigest()

    def __call__(self, atoms: Atoms, count: int) -> list[str]:
        known = set(lexical_words(atoms.document.text))
        shares = (
            (len(words & known) / len(words), at)
            for at, (_, words) in enumerate(self._questions)
            if len(words & known) > 1
        )
        best = sorted(shares, key=lambda item: (-item[0], item[1]))[:count]
        return [self._questions[at][0] for share, at in best if share >= 0.5]


def _questions_in(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"intent-driven: the query log {str(path)!r} cannot be read ({error}); name a file") from None
    if path.suffix == ".jsonl":
        lines = [_question_of(line, f"{path}:{at}") for at, line in enumerate(lines, 1) if line.strip()]
    return list(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))


def _question_of(line: str, place: str) -> str:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    for key in ("text", "question", "query"):
        if isinstance(row, dict) and isinstance(row.get(key), str):
            return str(row[key])
    raise ConfigError(f"intent-driven: {place} must be a JSON object with text, question or query, it is {line[:60]!r}")


class ModelQuestions:
    """Questions that a language model writes for windows of up to 200 tokens, three each, evenly over the document.

    A line counts when it is a question and has two words of its window: small models repeat and invent.
    """

    def __init__(self, model: TextModel) -> None:
        self._model = model

    def __call__(self, atoms: Atoms, count: int) -> list[str]:
        found: dict[str, None] = {}
        for text in _windows(atoms, -(-count // _PER_WINDOW)):
            prompt = _PROMPT.format(count=_PER_WINDOW, text=text.strip())
            known = set(filter(_is_telling, lexical_words(text)))
            lines = self._model.complete(prompt, max_tokens=_ANSWER_TOKENS).splitlines()
            asked = [_NUMBERING.sub("", line.strip()) for line in lines]
            good = [line for line in asked if line.endswith("?") and len(known & set(lexical_words(line))) > 1]
            found.update(dict.fromkeys(good[:_PER_WINDOW]))
        return list(found)[:count]


def _windows(atoms: Atoms, count: int) -> Iterator[str]:
    """At most `count` texts of whole sentences from evenly spaced ones on, none overlapping the one before it."""
    free = 0
    for at in evenly(range(len(atoms)), count):
        start = max(at, free)
        free = start
        while free < len(atoms) and (free == start or atoms.edges[free + 1] - atoms.edges[start] <= _WINDOW_TOKENS):
            free += 1
        if start < free:
            yield atoms.document.text[atoms.starts[start] : atoms.ends[free - 1]]


def evenly(items: Sequence[_T], count: int) -> list[_T]:
    """At most `count` of the items, evenly spaced, in order."""
    if len(items) <= count:
        return list(items)
    return [items[at * len(items) // count] for at in range(count)]
