"""Token counters over the `tokenizers` library. Counting is exact; no length is ever estimated."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from itertools import accumulate, chain, compress, filterfalse, repeat
from operator import and_, itemgetter, ne, sub
from typing import TYPE_CHECKING

from rag.protocols import TokenCounter
from rag.text import WHITE, TokenFinder, Tokens, TokenStarts, is_seam, stretches

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

__all__ = ["RememberingCounter", "Sizes", "TokenizerCounter", "WordCounter", "counter_name", "load_tokenizer"]

_REMEMBERED = 1 << 19
"""Characters of words that a counter knows before it forgets them: some 65,000 words, 7 MB."""

Sizes = Callable[[Sequence[str]], dict[str, int]]
"""Words -> how many tokens those of them have that it can tell."""


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
    tokenised joined by spaces, so never more than the text has, and of long prose a seventh. One of printable ASCII is
    tokenised once more, alone, when somebody asks where its second token starts.
    """

    @cached_property
    def words(self) -> KnownWords:
        """What this counter knows of words."""
        return KnownWords(self, self._ascii_sizes())

    def tokens(self, text: str) -> Tokens:
        return WordTokens(self.words, text) if self.additive else TokenStarts(self, text)

    def _ascii_sizes(self) -> Sizes | None:
        """A cheaper way to the sizes of words of printable ASCII, where there is one."""
        return None


class KnownWords:
    """The tokens of words. When words of `_REMEMBERED` characters are known, all are forgotten.

    Texts have many words: what is done for each of them is one call for all, with no loop of Python.
    """

    def __init__(self, counter: TokenCounter, ascii_sizes: Sizes | None = None) -> None:
        self._counter = counter
        self._ascii_sizes = ascii_sizes
        self._sizes: dict[str, int] = {}
        self._starts: dict[str, list[int]] = {}  # no word is missing that starts with what no token holds
        self._chars = 0
        self.plain = True
        """The first token of every word started where the word does, so far; never taken back."""

    def sizes(self, words: Sequence[str]) -> Iterator[int]:
        """How many tokens each word has."""
        if self._chars > _REMEMBERED:
            self._sizes, self._starts, self._chars = {}, {}, 0
        known = self._sizes  # this call goes on with it, should another thread forget it
        new = list(dict.fromkeys(filterfalse(known.__contains__, words)))
        if new and self._ascii_sizes is not None:
            known.update(found := self._ascii_sizes(new))
            self._chars += sum(map(len, found))
            new = list(filterfalse(known.__contains__, new))
        if new:
            known.update(zip(new, self._tokenised(new), strict=True))
        return map(known.__getitem__, words)

    def starts(self, word: str) -> list[int]:
        """Where the tokens of a word start, within it."""
        found = self._starts.get(word)
        if found is None:
            found = self._starts[word] = [start for start, _ in self._counter.offsets(word)]
            self._chars += len(word)
        return found

    def first(self, word: str) -> int:
        """Where its first token starts; it has one."""
        return 0 if word not in self._starts and word in self._sizes else self.starts(word)[0]

    def _tokenised(self, words: Sequence[str]) -> list[int]:
        """The sizes of words, tokenised joined; where their tokens start is kept."""
        joined = " ".join(words)
        found = list(map(itemgetter(0), self._counter.offsets(joined)))
        ends = list(accumulate(map(len, words), lambda end, size: end + 1 + size))
        lasts = [0, *map(partial(bisect_left, found), ends)]
        sizes = list(map(sub, lasts[1:], lasts))
        begins = list(map(sub, ends, map(len, words)))
        within = list(map(sub, found, chain.from_iterable(map(repeat, begins, sizes))))
        starts = list(map(within.__getitem__, map(slice, lasts, lasts[1:])))
        self._starts.update(compress(zip(words, starts, strict=True), map(ne, starts, repeat([0]))))
        self.plain = self.plain and not any(map(ne, begins, map([*found, -1].__getitem__, lasts)))
        self._chars += len(joined)
        return sizes


class AsciiSizes:
    """How many tokens words of printable ASCII have for a BERT tokenizer, at half the cost of tokenising them.

    Its pre-tokeniser parts such words at every punctuation mark, and the model takes the parts one by one. Words that
    hold an added token, `[SEP]` for one, are left out.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenize: Callable[[str], Sequence[object]] = tokenizer.model.tokenize
        self._lowercase: bool = tokenizer.normalizer.lowercase
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        added += [tokenizer.normalizer.normalize_str(content) for content in added]
        self._added = re.compile("|".join(map(re.escape, added)) or r"(?!)", re.IGNORECASE)

    @staticmethod
    def can_read(tokenizer: Tokenizer) -> bool:
        """True for the parts that BERT's tokenizers are made of."""
        parts = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.model)
        return [type(part).__name__ for part in parts] == ["BertNormalizer", "BertPreTokenizer", "WordPiece"]

    def __call__(self, words: Sequence[str]) -> dict[str, int]:
        """The sizes of those words that are of printable ASCII."""
        able = list(compress(words, map(and_, map(str.isascii, words), map(str.isprintable, words))))
        if self._added.search(" ".join(able)):
            able = [word for word in able if not self._added.search(word)]
        joined = " ".join([*able, ""])
        parts = _PART.findall(joined.lower() if self._lowercase else joined)
        sizes = {part: len(self._tokenize(part)) for part in dict.fromkeys(parts)}
        sizes[" "] = 0
        ends = list(compress(accumulate(map(sizes.__getitem__, parts)), map(" ".__eq__, parts)))
        return dict(zip(able, map(sub, ends, [0, *ends]), strict=True))


_PART = re.compile(r"[A-Za-z0-9]+|[^A-Za-z0-9]")


class WordTokens(Tokens):
    """The tokens of a text, word by word."""

    def __init__(self, words: KnownWords, text: str) -> None:
        self._words = words
        self._text = text
        self._begins = array("q")  # first character of every word
        self._totals = array("q", [0])  # tokens before every word, and of all
        self._inner: dict[int, list[int]] = {}  # starts of the tokens of words that were looked into
        for begin, end in stretches(text):
            piece = text[begin:end]
            parts = piece.replace("\n", " ").replace("\t", " ").replace("\r", " ").split(" ")
            sizes = words.sizes(list(filter(None, parts)))  # empty where white space follows white space
            self._totals.extend(accumulate(sizes, initial=self._totals.pop()))
            self._begins.frombytes(_word_begins(piece, begin))

    def __len__(self) -> int:
        return self._totals[-1]

    def before(self, at: int) -> int:
        word = bisect_left(self._begins, at)
        if is_seam(self._text, at):
            return self._totals[word]
        return self._totals[word - 1] + bisect_left(self._starts(word - 1), at - self._begins[word - 1])

    def start(self, number: int) -> int:
        word = bisect_right(self._totals, number) - 1
        inner = number - self._totals[word]
        if inner:
            return self._begins[word] + self._starts(word)[inner]
        return self._begins[word] + (0 if self._words.plain else self._words.first(self._word(word)))

    def _starts(self, word: int) -> list[int]:
        if word not in self._inner:
            self._inner[word] = self._words.starts(self._word(word))
        return self._inner[word]

    def _word(self, number: int) -> str:
        begin = self._begins[number]
        end = self._begins[number + 1] if number + 1 < len(self._begins) else len(self._text)
        return self._text[begin:end].rstrip(WHITE)


def _word_begins(text: str, start: int) -> bytes:
    """Where the words of a text that starts at `start` begin, as 64-bit integers."""
    import numpy as np

    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    visible = (codes != 0x20) & (codes != 0x0A) & (codes != 0x09) & (codes != 0x0D)
    edges = np.flatnonzero(np.diff(visible, prepend=False))  # where words begin and end, in turns
    return (edges[::2] + start).astype(np.int64).tobytes()


class TokenizerCounter(RememberingCounter):
    """Counts with a `tokenizers.Tokenizer`. `limit` excludes the special tokens that the model adds."""

    def __init__(self, tokenizer: Tokenizer, *, name: str, limit: int | None, additive: bool) -> None:
        self.name = name
        self.limit = limit
        self.additive = additive
        self._tokenizer = tokenizer

    def _ascii_sizes(self) -> Sizes | None:
        return AsciiSizes(self._tokenizer) if AsciiSizes.can_read(self._tokenizer) else None

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
