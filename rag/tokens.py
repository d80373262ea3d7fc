"""Token counters over the `tokenizers` library. Counting is exact; no length is ever estimated."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate, compress, count
from operator import add
from typing import TYPE_CHECKING

from rag.protocols import TokenCounter
from rag.text import TokenFinder, Tokens, TokenStarts, stretches

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

__all__ = ["RememberingCounter", "TokenizerCounter", "WordCounter", "counter_name", "load_tokenizer"]

_REMEMBERED = 1 << 19
"""Characters of words that a counter knows before it forgets them: some 70,000 words, about 15 MB."""


def counter_name(counter: TokenCounter) -> str:
    """Names a counter with its limit: both shape the chunks of a file, and so decide whether it is up to date."""
    return f"{counter.name}/{counter.limit}"


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`, with the truncation and padding stored in that file switched off.

    MiniLM's own file would otherwise count every text as 128 tokens.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class RememberingCounter(TokenFinder):
    """Base of counters that tokenise a word once, whatever text it stands in, when they are additive.

    A word is what stands between white space; an additive counter gives it the same tokens everywhere. New words are
    tokenised joined by spaces, so never more than the text has, and of long prose a seventh.
    """

    @cached_property
    def words(self) -> WordStarts:
        """What this counter knows of words."""
        return WordStarts(self)

    def tokens(self, text: str) -> Tokens:
        return WordTokens(self.words, text) if self.additive else TokenStarts(self, text)


class WordStarts:
    """Where the tokens of words start. When words of `_REMEMBERED` characters are known, all are forgotten."""

    def __init__(self, counter: TokenCounter) -> None:
        self._counter = counter
        self._known: dict[str, tuple[int, ...]] = {}
        self._chars = 0

    def of(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        """The starts of the tokens of each word, within the word."""
        if self._chars > _REMEMBERED:
            self._known, self._chars = {}, 0
        known = self._known  # this call goes on with it, should another thread forget it
        new = [word for word in dict.fromkeys(words) if word not in known]
        if new:
            joined = " ".join(new)
            known.update(zip(new, _parted([start for start, _ in self._counter.offsets(joined)], new), strict=True))
            self._chars += len(joined)
        return list(map(known.__getitem__, words))


def _parted(starts: Sequence[int], words: Sequence[str]) -> Iterator[tuple[int, ...]]:
    """The starts in a text of words with one character between them, as starts within each word."""
    begin = first = 0
    for word in words:
        last = bisect_left(starts, begin + len(word), first)
        yield _WHOLE if starts[first:last] == [begin] else tuple([start - begin for start in starts[first:last]])
        begin, first = begin + len(word) + 1, last


_WHOLE = (0,)
"""Of words that are one token; most are, so that they share it."""


class WordTokens(Tokens):
    """The tokens of a text, word by word."""

    def __init__(self, words: WordStarts, text: str) -> None:
        self._begins = array("q")  # first character of every word
        self._inner: list[tuple[int, ...]] = []  # starts of its tokens, within the word
        self._totals = array("q", [0])  # tokens before every word, and of all
        for begin, end in stretches(text):
            spaced = text[begin:end].replace("\n", " ").replace("\t", " ").replace("\r", " ")
            parts = spaced.split(" ")  # empty where white space follows white space
            inner = words.of(list(filter(None, parts)))
            places = map(add, accumulate(map(len, parts), initial=begin), count())
            self._begins.extend(compress(places, parts))
            self._totals.extend(accumulate(map(len, inner), initial=self._totals.pop()))
            self._inner.extend(inner)

    def __len__(self) -> int:
        return self._totals[-1]

    def before(self, at: int) -> int:
        word = bisect_left(self._begins, at) - 1
        return self._totals[word] + bisect_left(self._inner[word], at - self._begins[word]) if word >= 0 else 0

    def start(self, number: int) -> int:
        word = bisect_right(self._totals, number) - 1
        return self._begins[word] + self._inner[word][number - self._totals[word]]


class TokenizerCounter(RememberingCounter):
    """Counts with a `tokenizers.Tokenizer`. `limit` excludes the special tokens that the model adds."""

    def __init__(self, tokenizer: Tokenizer, *, name: str, limit: int | None, additive: bool) -> None:
        self.name = name
        self.limit = limit
        self.additive = additive
        self._tokenizer = tokenizer

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids) if text else 0

    def offsets(self, text: str) -> list[tuple[int, int]]:
        offsets: list[tuple[int, int]] = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return offsets


class WordCounter(RememberingCounter):
    """Counts words and punctuation marks: no model, nothing to load but the rules of BERT's pre-tokeniser."""

    additive = True

    def __init__(self, limit: int | None = None) -> None:
        self.name = "words"
        self.limit = limit

    @cached_property
    def _rules(self) -> object:
        from tokenizers.pre_tokenizers import BertPreTokenizer

        return BertPreTokenizer()

    def count(self, text: str) -> int:
        return len(self.offsets(text))

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return [place for _, place in self._rules.pre_tokenize_str(text)]  # type: ignore[attr-defined]
