"""Names in running text: runs of capitalised words, and what a chunk is about by its title, heading and first words.

A rule for scripts with capitals. Where a language capitalises all nouns, more is taken for a name than is one; a text
without any cased letter counts as one run of words, so that titles are still found in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from rag.text import lexical_words
from rag.types import Chunk, Document

__all__ = ["Name", "capitals_in", "inside", "mentions_in", "names_in", "parts_of", "subjects_of", "words_of"]

Name = tuple[str, ...]
"""The words of a name, folded as in the lexical index."""

_WORD = re.compile(r"[^\W_](?:[\w'’.&-]*[^\W_])?")
_JOINING = 3
"""Letters of the longest word that may stand inside of a name in lower case: of, the, de, von, and."""
_BETWEEN = 2
"""Such words side by side."""
_ARTICLES = ("the", "a", "an")
_SHORTEST = 3
_LONGEST = 12
"""Words of the longest name that is looked for inside of another."""
_LEAD_CHARS = 80
"""Where the first words of a chunk end; a name that starts later is not what the chunk is about."""


def words_of(text: str) -> Name:
    """Words as the lexical index has them; an underscore parts words, as in file names."""
    return tuple(lexical_words(text.replace("_", " ")))


def inside(name: Name, words: Name) -> bool:
    """Whether the words of a name stand in `words` side by side."""
    size = len(name)
    return any(words[at : at + size] == name for at in range(len(words) - size + 1))


def parts_of(names: Iterable[Name]) -> Iterator[Name]:
    """Every run of words inside of the names, each once."""
    seen: set[Name] = set()
    for name in names:
        for start in range(len(name)):
            for end in range(start + 1, min(len(name), start + _LONGEST) + 1):
                if (part := name[start:end]) not in seen:
                    seen.add(part)
                    yield part


def names_in(text: str) -> list[Name]:
    """Runs of capitalised words and numbers with a capital, each once, in order; at most two short words join them."""
    if not any(char.isupper() or char.islower() for char in text):
        return [words] if (words := words_of(text)) else []
    return list(dict.fromkeys(words for run in _runs(text) if (words := words_of(run))))


def mentions_in(sentence: str) -> list[Name]:
    """The names in one sentence, but for a single word that opens it: a capital says nothing there."""
    names = names_in(sentence)
    return names[1:] if names and len(names[0]) == 1 and names[0] == words_of(sentence)[:1] else names


def capitals_in(sentence: str) -> frozenset[str]:
    """Words of one sentence that have a capital or a digit in front; all where no letter has a case.

    The first word counts only when the next one has a capital too: "Jane Doe sang", not "After that".
    """
    if not any(char.isupper() or char.islower() for char in sentence):
        return frozenset(words_of(sentence))
    words = list(_WORD.finditer(sentence))
    opening = len(words) > 1 and _named(words[1])
    named = (word[0] for at, word in enumerate(words) if _named(word) and (at or opening))
    return frozenset(part for word in named for part in words_of(word))


def _opens(chunk: Chunk, document: Document) -> bool:
    """Whether a document or a section begins with the chunk."""
    before = document.text[: chunk.span.start].rstrip()
    if not before or not chunk.section:
        return not before
    heading = words_of(chunk.section[-1])
    return heading in (words_of(before.rsplit("\n", 1)[-1]), words_of(chunk.text)[: len(heading)])


def subjects_of(chunk: Chunk, document: Document) -> set[Name]:
    """What a chunk may be about: the title of its document, its heading, and, where it opens its document or section,
    the first name in it; without the article."""
    found = {words_of(document.title), words_of(chunk.section[-1]) if chunk.section else ()}
    if _opens(chunk, document):
        found.add(words_of(next(_runs(chunk.text[:_LEAD_CHARS]), "")))
    bare = {name[1:] if len(name) > 1 and name[0] in _ARTICLES else name for name in found}
    return {name for name in bare if sum(map(len, name)) >= _SHORTEST}


def _runs(text: str) -> Iterator[str]:
    """Every run in order; a single word that opens a sentence is one too, for it may be a name."""
    words = list(_WORD.finditer(text))
    at = 0
    while at < len(words):
        last = at
        while _named(words[at]) and (following := _joined(text, words, last)):
            last = following
        run = text[words[at].start() : words[last].end()]
        if _named(words[at]) and any(char.isupper() for char in run):
            yield run
        at = last + 1


def _joined(text: str, words: Sequence[re.Match[str]], last: int) -> int:
    """The next word of the run that `last` is in; 0 when it ends there."""
    for at in range(last + 1, min(last + 2 + _BETWEEN, len(words))):
        if text[words[at - 1].end() : words[at].start()].strip():
            return 0
        if _named(words[at]):
            return at
        if len(words[at][0]) > _JOINING:
            return 0
    return 0


def _named(word: re.Match[str]) -> bool:
    return word[0][0].isupper() or word[0][0].isdigit()
