"""Token counters over the `tokenizers` library. Counting is exact; no length is ever estimated."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from rag.protocols import TokenCounter

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

__all__ = ["TokenizerCounter", "WordCounter", "counter_name", "load_tokenizer"]


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


class TokenizerCounter(TokenCounter):
    """Counts with a `tokenizers.Tokenizer`. `limit` excludes the special tokens that the model adds."""

    def __init__(self, tokenizer: Tokenizer, *, name: str, limit: int | None, additive: bool) -> None:
        self.name = name
        self.limit = limit
        self.additive = additive
        self._tokenizer = tokenizer

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids) if text else 0

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)


class WordCounter(TokenCounter):
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
