"""fixed, recursive and sentence: the expected chunks, spelt out."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from rag.errors import ConfigError
from rag.registry import build
from rag.tokens import WordCounter
from rag.types import Chunk, Document
from tests.texts import document_of, plain

TEXT = "One two three. Four five six. Seven eight.\n\nNine ten.\nEleven twelve thirteen fourteen fifteen sixteen.\n"


def chunks_of(document: Document | str, use: str, *, limit: int | None = None, **fields: Any) -> list[Chunk]:
    if isinstance(document, str):
        document = Document(text=document, source="text.txt")
    chunks: list[Chunk] = build("chunker", {"use": use, **fields}, services={"counter": WordCounter(limit)}).chunk(
        document
    )
    return chunks


def texts_of(document: Document | str, use: str, **fields: Any) -> list[str]:
    return [chunk.text for chunk in chunks_of(document, use, **fields)]


class TestFixed:
    def test_windows(self) -> None:
        assert texts_of(TEXT, "fixed", max_tokens=8) == [
            "One two three. Four five six. ",
            "Seven eight.\n\nNine ten.\nEleven twelve ",
            "thirteen fourteen fifteen sixteen.\n",
        ]

    def test_overlap(self) -> None:
        assert texts_of("a b c d e f g h i j", "fixed", max_tokens=5, overlap_tokens=2) == [
            "a b c d e ",
            "d e f g h ",
            "g h i j",
        ]

    def test_overlap_of_all_but_one_token_goes_on_to_the_end(self) -> None:
        assert texts_of("a b c d", "fixed", max_tokens=3, overlap_tokens=2) == ["a b c ", "b c d"]

    def test_overlap_covers_the_text_and_keeps_to_its_size(self) -> None:
        text = plain(60)
        chunks = chunks_of(text, "fixed", max_tokens=20, overlap_tokens=7)
        counter = WordCounter()
        for before, after in itertools.pairwise(chunks):
            assert before.span.start < after.span.start <= before.span.end < after.span.end
            assert counter.count(text[after.span.start : before.span.end]) <= 7
        assert (chunks[0].span.start, chunks[-1].span.end) == (0, len(text))

    @pytest.mark.parametrize("overlap", [-1, 8, 9])
    def test_overlap_out_of_range(self, overlap: int) -> None:
        with pytest.raises(ConfigError, match=rf"overlap_tokens .*\(8\), not {overlap}"):
            chunks_of(TEXT, "fixed", max_tokens=8, overlap_tokens=overlap)


class TestRecursive:
    def test_coarse_separators_first(self) -> None:
        assert texts_of(TEXT, "recursive", max_tokens=8, min_tokens=0) == [
            "One two three. Four five six. ",
            "Seven eight.\n\n",
            "Nine ten.\n",
            "Eleven twelve thirteen fourteen fifteen sixteen.\n",
        ]

    def test_small_chunks_join_a_neighbour(self) -> None:
        assert texts_of(TEXT, "recursive", max_tokens=8, min_tokens=4)[1:] == [
            "Seven eight.\n\nNine ten.\n",
            "Eleven twelve thirteen fourteen fifteen sixteen.\n",
        ]

    def test_whole_text_where_it_fits(self) -> None:
        assert texts_of(TEXT, "recursive", max_tokens=100) == [TEXT]

    def test_headings_before_paragraphs_and_never_alone(self) -> None:
        document = document_of(
            ("heading", 1, "# A"),
            ("paragraph", 0, "one two three. four five six."),
            ("heading", 2, "## B"),
            ("heading", 3, "### C"),
            ("paragraph", 0, "seven."),
        )
        chunks = chunks_of(document, "recursive", max_tokens=12, min_tokens=0)
        assert [(chunk.text, chunk.section) for chunk in chunks] == [
            ("# A\n\none two three. four five six.\n\n", ("A",)),
            ("## B\n\n### C\n\nseven.", ("A", "B")),
        ]

    def test_crlf_blank_lines(self) -> None:
        assert texts_of("a b\r\n\r\nc d\r\ne f", "recursive", max_tokens=4, min_tokens=0) == [
            "a b\r\n\r\n",
            "c d\r\ne f",
        ]

    def test_words_where_there_is_no_sentence(self) -> None:
        assert texts_of("a b c d e", "recursive", max_tokens=2, min_tokens=0) == ["a b ", "c d ", "e"]

    def test_characters_where_there_is_no_space(self) -> None:
        assert texts_of("x" * 25, "recursive", max_tokens=2, max_chars=10) == ["x" * 10, "x" * 10, "x" * 5]

    def test_default_limit(self) -> None:
        text = "word " * 600
        assert [chunk.token_count for chunk in chunks_of(text, "recursive")] == [256, 256, 88]
        assert [chunk.token_count for chunk in chunks_of(text, "recursive", limit=250)] == [250, 250, 100]

    @pytest.mark.parametrize("fields", [{"max_tokens": 0}, {"max_chars": 0}, {"min_tokens": -1}])
    def test_out_of_range(self, fields: dict[str, int]) -> None:
        [(name, value)] = fields.items()
        with pytest.raises(ConfigError, match=rf"recursive: {name} must be >= \d, not {value}"):
            chunks_of(TEXT, "recursive", **fields)


class TestSentence:
    def test_whole_sentences(self) -> None:
        assert texts_of(TEXT, "sentence", max_tokens=8) == [
            "One two three. Four five six. ",
            "Seven eight.\n\nNine ten.\n",
            "Eleven twelve thirteen fourteen fifteen sixteen.\n",
        ]

    def test_overlap(self) -> None:
        text = "We met. They left. Rain fell. Night came."
        assert texts_of(text, "sentence", max_tokens=6, overlap_sentences=1) == [
            "We met. They left. ",
            "They left. Rain fell. ",
            "Rain fell. Night came.",
        ]

    def test_overlap_gives_way_to_a_long_sentence(self) -> None:
        text = "We met. They left. Rain fell on all the roofs."
        assert texts_of(text, "sentence", max_tokens=8, overlap_sentences=2) == [
            "We met. They left. ",
            "Rain fell on all the roofs.",
        ]

    def test_sentence_over_the_limit_is_cut_at_words(self) -> None:
        text = "We met. One two three four five six seven. They left."
        assert texts_of(text, "sentence", max_tokens=5) == [
            "We met. ",
            "One two three four five ",
            "six seven. ",
            "They left.",
        ]
