"""markdown and parent-child: sections, tables, code, headers and parents."""

from __future__ import annotations

from typing import Any

import pytest

from chunkers._cuts import CutLevels, outer_blocks, tables
from rag.errors import ConfigError
from rag.registry import build
from rag.tokens import WordCounter
from rag.types import Block, Chunk, Document, Span
from tests.texts import document_of, markdown_document

TABLE = "|a|b|\n|-|-|\n|1|2|\n|3|4|\n|5|6|\n|7|8|"
PRICES = document_of(
    ("heading", 1, "# Prices"),
    ("paragraph", 0, "All in EUR."),
    ("heading", 2, "## Fruit"),
    ("table", 0, TABLE),
    ("heading", 2, "## Code"),
    ("code", 0, "```\nx = 1\ny = 2\n```"),
)


def chunks_of(document: Document, use: str, **fields: Any) -> list[Chunk]:
    chunks: list[Chunk] = build("chunker", {"use": use, **fields}, services={"counter": WordCounter()}).chunk(document)
    return chunks


def pairs(chunks: list[Chunk]) -> list[tuple[str, str]]:
    return [(chunk.header, chunk.text) for chunk in chunks]


class TestMarkdown:
    def test_sections_with_their_path(self) -> None:
        assert pairs(chunks_of(PRICES, "markdown", max_tokens=40, min_tokens=0)) == [
            ("", "# Prices\n\nAll in EUR.\n\n"),
            ("Prices", f"## Fruit\n\n{TABLE}\n\n"),
            ("Prices", "## Code\n\n```\nx = 1\ny = 2\n```"),
        ]

    def test_small_sections_join_under_the_same_heading(self) -> None:
        chunks = chunks_of(PRICES, "markdown", max_tokens=64, min_tokens=12)
        assert pairs(chunks) == [
            ("", f"# Prices\n\nAll in EUR.\n\n## Fruit\n\n{TABLE}\n\n"),
            ("Prices", "## Code\n\n```\nx = 1\ny = 2\n```"),
        ]

    def test_sections_of_different_chapters_do_not_join(self) -> None:
        document = document_of(
            ("heading", 1, "# A"),
            ("heading", 2, "## A1"),
            ("paragraph", 0, "one"),
            ("heading", 2, "## A2"),
            ("paragraph", 0, "two"),
            ("heading", 1, "# B"),
            ("paragraph", 0, "three"),
        )
        chunks = chunks_of(document, "markdown", max_tokens=9, min_tokens=9)
        assert pairs(chunks) == [
            ("", "# A\n\n## A1\n\none\n\n"),
            ("A", "## A2\n\ntwo\n\n"),
            ("", "# B\n\nthree"),
        ]

    def test_later_parts_of_a_table_carry_its_header_row(self) -> None:
        chunks = chunks_of(PRICES, "markdown", max_tokens=32, min_tokens=0)
        assert pairs(chunks)[1:3] == [
            ("Prices", "## Fruit\n\n|a|b|\n|-|-|\n|1|2|\n|3|4|\n|5|6|\n"),
            ("Prices > Fruit\n|a|b|", "|7|8|\n\n"),
        ]

    def test_without_heading_path_the_table_header_stays(self) -> None:
        chunks = chunks_of(PRICES, "markdown", max_tokens=32, min_tokens=0, heading_header=False)
        assert [chunk.header for chunk in chunks] == ["", "", "|a|b|", ""]

    def test_tables_are_cut_between_rows_only(self) -> None:
        document = markdown_document()
        borders = {block.span.start for block in document.blocks if block.kind == "row"}
        [table] = [block.span for block in document.blocks if block.kind == "table"]
        chunks = chunks_of(document, "markdown", max_tokens=48)
        inside = [chunk.span.start for chunk in chunks if table.start < chunk.span.start < table.end]
        assert len(inside) >= 3
        assert set(inside) <= borders

    def test_code_is_whole_where_it_fits_and_else_cut_at_blank_lines(self) -> None:
        document = markdown_document()
        [code] = [block.span for block in document.blocks if block.kind == "code"]
        whole = chunks_of(document, "markdown", max_tokens=256)
        assert any(chunk.span.contains(code) for chunk in whole)
        parts = [chunk for chunk in chunks_of(document, "markdown", max_tokens=48) if code.contains(chunk.span)]
        assert len(parts) >= 2
        assert all(part.text.startswith("def rule_") for part in parts)

    def test_no_chunk_ends_with_a_heading(self) -> None:
        document = markdown_document()
        *chunks, last = chunks_of(document, "markdown", max_tokens=48)
        headings = {block.span.end for block in document.blocks if block.kind == "heading"}
        ends = {chunk.span.start + len(chunk.text.rstrip()) for chunk in chunks}
        assert not ends & headings
        assert last.text == "# Annex"

    def test_header_is_a_quarter_of_the_limit_at_most(self) -> None:
        document = document_of(("heading", 1, "# " + "very long heading " * 9), ("paragraph", 0, "word " * 60))
        chunks = chunks_of(document, "markdown", max_tokens=40)
        assert chunks[1].header == "very long heading very long heading very long heading very"
        assert max(WordCounter().count(chunk.embed_text) for chunk in chunks) <= 40

    def test_text_without_blocks(self) -> None:
        document = Document(text="One two.\n\nThree four.", source="a.txt")
        assert pairs(chunks_of(document, "markdown", max_tokens=4, min_tokens=0)) == [
            ("", "One two.\n\n"),
            ("", "Three four."),
        ]


class TestParentChild:
    TEXT = "One two three.\n\nFour five six.\n\nSeven eight nine.\n\nEnd."

    def test_children_know_their_parent(self) -> None:
        document = Document(text=self.TEXT, source="a.txt")
        chunks = chunks_of(document, "parent-child", max_tokens=4, parent_tokens=8, min_tokens=0)
        assert [(chunk.text, chunk.parent) for chunk in chunks] == [
            ("One two three.\n\n", Span(0, 32)),
            ("Four five six.\n\n", Span(0, 32)),
            ("Seven eight nine.\n\n", Span(32, 55)),
            ("End.", Span(32, 55)),
        ]

    def test_a_child_is_a_quarter_of_its_parent_unless_told(self) -> None:
        document = Document(text="word. " * 600, source="a.txt")
        chunks = chunks_of(document, "parent-child", parent_tokens=400)
        assert max(chunk.token_count for chunk in chunks) == 100
        parents = {chunk.parent for chunk in chunks}
        assert [WordCounter().count(document.text[p.start : p.end]) for p in sorted(p for p in parents if p)] == [
            400,
            400,
            400,
        ]

    def test_parent_below_child_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"parent_tokens must be at least max_tokens \(64\), not 32"):
            chunks_of(PRICES, "parent-child", max_tokens=64, parent_tokens=32)


class TestCuts:
    def test_levels_by_heading_depth(self) -> None:
        text = PRICES.text
        levels = CutLevels(PRICES, ("headings",))
        fruit, code = text.index("## Fruit"), text.index("## Code")
        assert [levels.points(level) for level in range(len(levels))] == [[], [fruit, code]]

    def test_nothing_parts_a_heading_or_a_table_header_from_what_follows(self) -> None:
        levels = CutLevels(PRICES, ("blank-lines", "lines", "sentences"))
        glued = [PRICES.text.index(part) for part in ("All in", "|a|b|", "|-|-|", "|1|2|", "```\nx")]
        for level in range(len(levels)):
            assert not set(levels.points(level)) & set(glued)
        assert PRICES.text.index("|3|4|") in levels.points(1)

    def test_table_without_row_blocks(self) -> None:
        block = Block(span=Span(0, len(TABLE)), kind="table")
        [table] = tables(Document(text=TABLE, source="t.md", blocks=(block,)))
        assert (table.header, table.body) == ("|a|b|", TABLE.index("|1|2|"))

    def test_outer_blocks(self) -> None:
        kinds = [block.kind for block in outer_blocks(PRICES)]
        assert kinds == ["heading", "paragraph", "heading", "table", "heading", "code"]

    def test_long_rule_without_line_end(self) -> None:
        text = "|a|b|\n" + "-" * 200_000
        block = Block(span=Span(0, len(text)), kind="table")
        [table] = tables(Document(text=text, source="t.md", blocks=(block,)))
        assert table.body == len(text)
