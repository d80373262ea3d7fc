"""Texts that break chunkers: clusters of code points, no spaces, no punctuation, repeats, tables, one huge line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from hypothesis import strategies as st

from eval.chunks._texts import FAMILY, junk
from eval.chunks._texts import mixed as nasty_mixed
from eval.chunks._texts import prose as plain
from rag.types import Block, BlockKind, Document, Span

__all__ = [
    "BLANK",
    "CLUSTERS",
    "MARKDOWN",
    "NASTY",
    "cluster_cuts",
    "document_of",
    "documents",
    "huge_line",
    "markdown_document",
    "nasty_mixed",
    "plain",
    "words_without_punctuation",
]

CLUSTERS: dict[str, list[str]] = {
    "families": [FAMILY] * 60,
    "flags": ["\U0001f1e9\U0001f1ea", "\U0001f1eb\U0001f1f7", "\U0001f1ef\U0001f1f5"] * 40,
    "skin-tones": ["\U0001f44d\U0001f3fd", "\U0001f44b\U0001f3ff", " "] * 40,
    "keycaps": ["1\ufe0f\u20e3", "2\ufe0f\u20e3"] * 50,
    "tag-flags": ["\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", " "] * 15,
    "combining": ["e\u0301", "a\u0308\u0323", "o", " "] * 60,
    "devanagari": ["हि", "न्", "दी", " "] * 40,
    "jamo": ["\u1112\u1161\u11ab", "\u1100\u1173\u11af", " "] * 40,
    "crlf": ["a", "b", "\r\n", "c", ".", "\r\n", "\r\n"] * 40,
}
"""Name -> user-visible characters; joined they are a text in which only their borders may be cut."""

BLANK = ["", " ", "\n", "\r\n\r\n", "\t \u3000 \n", " " * 5000]


def words_without_punctuation(words: int) -> str:
    """One line of words, nothing else."""
    return " ".join(f"word{number % 97}" for number in range(words))


def huge_line(chars: int) -> str:
    """One line of prose with that many characters."""
    line = plain(6).replace("\n", " ") + " "
    return (line * (chars // len(line) + 1))[:chars]


def document_of(*parts: tuple[BlockKind, int, str], source: str = "parts.md", gap: str = "\n\n") -> Document:
    """A document of blocks with `gap` between them; a table gets a row block per line, but for its rule line."""
    text = gap.join(part for _, _, part in parts)
    blocks: list[Block] = []
    start = 0
    for kind, level, part in parts:
        blocks.append(Block(span=Span(start, start + len(part)), kind=kind, level=level))
        if kind == "table":
            at = start
            for line in part.splitlines(keepends=True):
                row = line.rstrip("\r\n")
                if row.strip("|-: "):
                    blocks.append(Block(span=Span(at, at + len(row)), kind="row"))
                at += len(line)
        start += len(part) + len(gap)
    return Document(text=text, source=source, blocks=tuple(blocks))


PARTS: Sequence[tuple[BlockKind, int, str]] = (
    ("heading", 1, "# Handbook"),
    ("paragraph", 0, "This handbook holds the rules. It is short."),
    ("heading", 2, "## Travel"),
    ("heading", 3, "### Limits"),
    (
        "table",
        0,
        "| role | limit |\n|------|-------|\n" + "\n".join(f"| role {n} | {n * 100} EUR |" for n in range(30)),
    ),
    ("paragraph", 0, plain(18)),
    ("heading", 2, "## Code"),
    ("code", 0, "```python\n" + "\n\n".join(f"def rule_{n}(x):\n    return x * {n}" for n in range(12)) + "\n```"),
    ("list", 1, "- one thing"),
    ("list", 1, "- another thing, with a longer explanation of what it is good for"),
    ("heading", 1, "# Annex"),
)


def markdown_document() -> Document:
    """Headings without text, a table and a code block that are too large for most limits, a list, a last heading."""
    return document_of(*PARTS)


MARKDOWN = markdown_document().text

NASTY: dict[str, str] = {
    **{name: "".join(clusters) for name, clusters in CLUSTERS.items()},
    "rtl": "\u05d4\u05e8\u05d7\u05d5\u05d1 \u05e9\u05e7\u05d8. \u0627\u0644\u0628\u0627\u0628\u061f " * 60,
    "cjk": "吾輩は猫である。名前はまだ無い。薄暗いじめじめした所で泣いていた事だけは記憶している。" * 30,
    "cjk-no-stop": "春夏秋冬東西南北" * 200,
    "thai": "ภาษาไทยไม่มีช่องว่างระหว่างคำ" * 40,
    "junk": junk(6000),
    "one-word": "x" * 8000,
    "no-punctuation": words_without_punctuation(2000),
    "nul": "a\x00b c\x00 \x00\x00 d. " * 100,
    "repeated": "The same line again.\n\n" * 100,
    "white": "word" + " " * 3000 + "word" + "\n" * 3000 + "end",
    "separators": "a\u2028b\u2029c\x0bd\x0ce\x85f\u00a0g " * 60,
    "mixed": nasty_mixed(),
}
"""Name -> a small hard text, a few thousand characters each."""


def cluster_cuts(name: str) -> set[int]:
    """The offsets at which the text of `CLUSTERS[name]` may be cut."""
    return {0, *accumulate(map(len, CLUSTERS[name]))}


_WORDS = st.sampled_from(
    [
        "word",
        "Dr.",
        "runs",
        "3.14",
        "5,000",
        "naïve",
        "e\u0301te\u0301",
        "日本語",
        "猫。",
        FAMILY,
        "\u05e9\u05dc\u05d5\u05dd",
        "x" * 40,
        "end.",
        "why?",
        "a\x00b",
    ]
)
_GAPS = st.sampled_from([" ", " ", " ", "  ", "\n", "\r\n", "\t", "", "\n\n", "\u00a0"])


@st.composite
def _prose(draw: st.DrawFn) -> str:
    pairs = draw(st.lists(st.tuples(_WORDS, _GAPS), min_size=1, max_size=30))
    return "".join(word + gap for word, gap in pairs)


@st.composite
def _part(draw: st.DrawFn) -> tuple[BlockKind, int, str]:
    kind: BlockKind = draw(st.sampled_from(["heading", "paragraph", "paragraph", "table", "code", "list"]))
    if kind == "heading":
        level = draw(st.integers(1, 3))
        return kind, level, "#" * level + " " + draw(st.sampled_from(["Alpha", "Beta gamma", "Delta " * 12]))
    if kind == "table":
        rows = draw(st.integers(0, 8))
        return kind, 0, "| a | b |\n|---|---|" + "".join(f"\n| {row} | cell {row} |" for row in range(rows))
    if kind == "list":
        return kind, draw(st.integers(1, 2)), "- " + draw(_WORDS)
    return kind, 0, draw(_prose())


@st.composite
def documents(draw: st.DrawFn) -> Document:
    """Documents with blocks of every kind, or without any, from words and gaps that are hard to cut."""
    if draw(st.booleans()):
        return Document(text=draw(_prose()), source="prose.txt")
    parts = draw(st.lists(_part(), min_size=1, max_size=6))
    return document_of(*parts, gap=draw(st.sampled_from(["\n\n", "\n", "\r\n\r\n", "\n \n\n"])))
