"""rag.text by example: token maps, fitting, safe cuts, sentences, the lexical form."""

from __future__ import annotations

import pytest

from rag.text import (
    TokenMap,
    assemble,
    fit_tokens,
    lexical_words,
    may_cut,
    safe_cut,
    sentence_spans,
    split_spans,
    trimmed,
)
from rag.tokens import WordCounter
from rag.types import Block, Document, Span
from tests.texts import CLUSTERS, FAMILY, NASTY, cluster_cuts, document_of, plain


def sentences(text: str, *blocks: Block) -> list[str]:
    document = Document(text=text, source="a.txt", blocks=blocks)
    return [text[span.start : span.end] for span in sentence_spans(document)]


class CountingCounter(WordCounter):
    """Notes every text it is given."""

    def __init__(self, *, additive: bool = True) -> None:
        super().__init__()
        self.additive = additive
        self.seen: list[str] = []

    def count(self, text: str) -> int:
        self.seen.append(text)
        return len(super().offsets(text))

    def offsets(self, text: str) -> list[tuple[int, int]]:
        self.seen.append(text)
        return super().offsets(text)


class TestTokenMap:
    def test_text_is_tokenised_once_and_only_when_asked(self) -> None:
        counter, text = CountingCounter(), plain(400)
        tokens = TokenMap(counter, text)
        assert counter.seen == []
        for start in range(0, len(text), 100):
            at = text.find(" ", start)
            tokens.count(0, at if at > 0 else len(text))
        assert counter.seen
        assert len("".join(counter.seen)) <= len(text)

    def test_words_that_were_read_before_are_not_read_again(self) -> None:
        counter = CountingCounter()
        for text, count in (("alpha beta, alpha\nbeta,", 6), ("beta, \t gamma alpha", 4)):
            assert TokenMap(counter, text).count(0, len(text)) == count
        assert counter.seen == ["alpha beta,", "gamma"]

    def test_known_words_are_forgotten_when_they_are_too_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rag.tokens._REMEMBERED", 8)
        counter = CountingCounter()
        for text in ("alpha beta", "beta", "beta"):
            assert TokenMap(counter, text).count(0, len(text)) == len(text.split())
        assert counter.seen == ["alpha beta", "beta"]

    def test_broken_words_are_counted_anew_and_remembered(self) -> None:
        counter, text = CountingCounter(), "alpha beta, gamma delta"
        tokens = TokenMap(counter, text)
        assert tokens.count(2, 20) == tokens.count(2, 20) == 5
        assert sorted(counter.seen) == sorted([text, "pha", "de"])

    def test_counter_that_is_not_additive_counts_the_slice(self) -> None:
        counter = CountingCounter(additive=False)
        tokens = TokenMap(counter, "alpha beta gamma")
        assert tokens.count(0, 10) == 2
        assert counter.seen == ["alpha beta"]

    def test_other_texts_are_counted_plainly(self) -> None:
        tokens = TokenMap(WordCounter(), "alpha beta")
        assert tokens.count_slice("one two three", 4, 13) == 2

    def test_reach_and_reach_back(self) -> None:
        tokens = TokenMap(WordCounter(), "aa bb cc dd")
        assert [tokens.reach(0, count) for count in (1, 2, 4, 9)] == [3, 6, 11, 11]
        assert [tokens.reach_back(11, count) for count in (0, 1, 2, 4, 9)] == [11, 9, 6, 0, 0]

    def test_empty(self) -> None:
        tokens = TokenMap(WordCounter(), "")
        assert (tokens.count(0, 0), tokens.reach(0, 5), tokens.reach_back(0, 5)) == (0, 0, 0)

    def test_long_stretches_without_a_space(self) -> None:
        text = "x" * 40_000 + " " + "y-" * 20_000
        tokens = TokenMap(WordCounter(), text)
        assert tokens.count(0, len(text)) == 1 + 40_000
        assert tokens.count(10, 40_003) == 3


class TestFitTokens:
    @pytest.mark.parametrize(
        ("max_tokens", "max_chars", "end"), [(2, 99, 6), (3, 99, 9), (9, 99, 11), (9, 5, 5), (1, 99, 3), (2, 1, 1)]
    )
    def test_largest_end(self, max_tokens: int, max_chars: int, end: int) -> None:
        text = "aa bb cc dd"
        assert fit_tokens(TokenMap(WordCounter(), text), text, 0, len(text), max_tokens, max_chars) == end

    def test_stop(self) -> None:
        text = "aa bb cc dd"
        assert fit_tokens(TokenMap(WordCounter(), text), text, 3, 7, 9, 99) == 7

    def test_one_cluster_is_always_taken(self) -> None:
        text = FAMILY + "b"
        assert fit_tokens(TokenMap(WordCounter(), text), text, 0, len(text), 1, 2) == len(FAMILY)

    def test_counts_little_where_there_is_no_space(self) -> None:
        text = "?!" * 500
        counter = CountingCounter()
        tokens = TokenMap(counter, text)
        assert fit_tokens(tokens, text, 0, len(text), 50, 600) == 50
        assert [len(seen) for seen in counter.seen] == [len(text), 50]


class TestSafeCut:
    @pytest.mark.parametrize("name", CLUSTERS)
    def test_cuts_fall_between_visible_characters_only(self, name: str) -> None:
        text = NASTY[name]
        assert {at for at in range(len(text) + 1) if may_cut(text, at)} == cluster_cuts(name)

    @pytest.mark.parametrize("name", CLUSTERS)
    def test_moves_back_to_the_nearest_border(self, name: str) -> None:
        text, borders = NASTY[name], sorted(cluster_cuts(name))
        for end in range(borders[1], min(len(text), 60)):
            assert safe_cut(text, 0, end) == max(at for at in borders if at <= end)

    def test_moves_on_when_nothing_would_be_left(self) -> None:
        text = FAMILY * 2
        assert safe_cut(text, 0, 3) == len(FAMILY)
        assert safe_cut(text, len(FAMILY), len(FAMILY) + 1) == len(text)


class TestSentences:
    def test_white_space_belongs_to_the_sentence_before_it(self) -> None:
        assert sentences("  One is here.  Two is there.\n\nThree. ") == [
            "  One is here.  ",
            "Two is there.\n\n",
            "Three. ",
        ]

    def test_abbreviations_and_numbers_end_nothing(self) -> None:
        assert len(sentences("Dr. Weiss paid 3.14 EUR. He left.")) == 2

    def test_japanese(self) -> None:
        assert sentences("吾輩は猫である。名前はまだ無い。") == ["吾輩は猫である。", "名前はまだ無い。"]

    @pytest.mark.parametrize("space", ["\u00a0", "\u202f", "\u3000"])
    def test_a_wide_space_between_a_capital_and_a_point(self, space: str) -> None:
        """sentencex 1.0.30 panics there."""
        assert (
            "".join(sentences(f"See plan B{space}. More text. Plan C{space}."))
            == f"See plan B{space}. More text. Plan C{space}."
        )

    def test_no_sentence_crosses_a_block(self) -> None:
        document = document_of(("heading", 1, "# Title"), ("paragraph", 0, "one"), ("paragraph", 0, "two. three."))
        pieces = [document.text[span.start : span.end] for span in sentence_spans(document)]
        assert pieces[:2] == ["# Title\n\n", "one\n\n"]

    @pytest.mark.parametrize("text", ["", " ", "\n\n"])
    def test_blank(self, text: str) -> None:
        assert sentences(text) == ([text] if text else [])


def test_split_spans_tile_and_ignore_what_lies_outside() -> None:
    assert split_spans(5, [3, 3, 0, 9, -1]) == [Span(0, 3), Span(3, 5)]
    assert split_spans(0, [1]) == []


@pytest.mark.parametrize(
    ("span", "expected"), [(Span(0, 5), Span(1, 4)), (Span(4, 6), Span(4, 4)), (Span(1, 4), Span(1, 4))]
)
def test_trimmed(span: Span, expected: Span) -> None:
    assert trimmed(" abc  ", span) == expected


def test_assemble() -> None:
    assert assemble(["a", "b"]) == "a\n\nb"
    assert assemble([]) == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Straße, ﬁne CAFÉ_2!", ["strasse", "fine", "café_2"]),
        ("日本語 ok", ["日", "本", "語", "ok"]),
        ("x日本y", ["x", "日", "本", "y"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("cafe\u0301 q\u0323\u0307y", ["café", "q\u0323\u0307y"]),
        ("İstanbul", ["i\u0307stanbul"]),
        ("a\x00b - !", ["a", "b"]),
        ("", []),
    ],
)
def test_lexical_words(text: str, words: list[str]) -> None:
    assert lexical_words(text) == words
