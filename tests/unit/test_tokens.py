"""rag.tokens by example: the cheaper way to the sizes of ASCII words, for tokenizers made like BERT's."""

from __future__ import annotations

from typing import Any

import pytest

from rag.text import TokenMap, TokenStarts
from rag.tokens import AsciiSizes, KnownWords, TokenizerCounter

VOCABULARY = ["[UNK]", "[SEP]", "un", "##able", "##s", "word", "Word", "a", "##b", ".", ",", "-"]


def bert(*, lowercase: bool = True, added: tuple[str, ...] = ("[SEP]",)) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    vocabulary = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))  # noqa: S106
    tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.add_special_tokens(list(added))
    return tokenizer


class Counting(TokenizerCounter):
    """Notes every text whose offsets are asked for."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, name="bert", limit=None, additive=True)
        self.seen: list[str] = []

    def offsets(self, text: str) -> list[tuple[int, int]]:
        self.seen.append(text)
        return super().offsets(text)


@pytest.mark.parametrize("lowercase", [True, False])
def test_sizes_are_those_of_the_tokenizer(lowercase: bool) -> None:
    tokenizer = bert(lowercase=lowercase)
    words = ["word", "Word", "WORDS", "unable,", "(un-able).", "...", "a" * 101, "ab" + "-" * 150, "~{|}`$^", "ab.ab"]
    expected = {word: len(tokenizer.encode(word, add_special_tokens=False).ids) for word in words}
    assert AsciiSizes(tokenizer)(words) == expected
    assert AsciiSizes(tokenizer)([]) == {}


def test_words_that_are_not_printable_ascii_or_hold_an_added_token_are_left_to_the_tokenizer() -> None:
    assert AsciiSizes(bert())(["wörd", "a\x07b", "a[SEP].", "[sep]", "a"]) == {"a": 1}
    assert AsciiSizes(bert(added=()))(["[SEP]"]) == {"[SEP]": 3}


def test_only_for_the_parts_of_bert() -> None:
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace

    assert AsciiSizes.can_read(bert())
    for part, other in (("normalizer", Lowercase()), ("pre_tokenizer", Whitespace()), ("normalizer", None)):
        tokenizer = bert()
        setattr(tokenizer, part, other)
        assert not AsciiSizes.can_read(tokenizer)


def test_the_tokens_are_those_of_the_text_and_ascii_words_are_read_by_the_model_alone() -> None:
    text = "Words, unable words.  a\u200bb \u200bword [SEP]a \u0301 unables wörds"
    counter = Counting(bert())
    tokens, plain = counter.tokens(text), TokenStarts(counter, text)
    assert counter.seen == ["a\u200bb \u200bword [SEP]a \u0301 wörds", text]
    assert [tokens.start(number) for number in range(len(tokens))] == [
        plain.start(number) for number in range(len(plain))
    ]
    assert [tokens.before(at) for at in range(len(text) + 1)] == [plain.before(at) for at in range(len(text) + 1)]


def test_a_word_is_not_tokenised_for_its_first_token() -> None:
    counter = Counting(bert())
    tokens = TokenMap(counter, "unable words word")
    assert (tokens.reach(0, 2), tokens.reach(0, 4)) == (7, 13)
    assert counter.seen == []
    assert tokens.reach(0, 3) == 11
    assert counter.seen == ["words"]


def test_first_tokens_are_found_after_words_were_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag.tokens._REMEMBERED", 4)
    counter = Counting(bert())
    words: KnownWords = counter.words
    tokens = counter.tokens("\u200bword word")
    assert list(words.sizes(["other"])) == [1]
    assert [tokens.start(number) for number in range(2)] == [1, 6]
