"""Markdown: the raw file, with blocks from the line maps of markdown-it-py."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from rag.parsers._base import FileParser, file_stem
from rag.parsers._blocks import first_heading, line_starts, ordered
from rag.parsers._decode import decode
from rag.text import trimmed
from rag.types import Block, BlockKind, Document, Span

if TYPE_CHECKING:
    from markdown_it.token import Token

_KINDS: Mapping[str, BlockKind] = {
    "paragraph_open": "paragraph",
    "html_block": "paragraph",
    "fence": "code",
    "code_block": "code",
    "table_open": "table",
    "tr_open": "row",
}
_FRONT_MATTER_LINES = 200
_FRONT_LINE = re.compile(r"^[A-Za-z][\w .-]{0,60}:[ \t]+[^\r\n]{1,500}", re.M)


@dataclass(frozen=True, kw_only=True)
class MarkdownParser(FileParser):
    """CommonMark with tables. Scalars of YAML front matter become metadata, so that filters can use them."""

    suffixes: ClassVar[tuple[str, ...]] = (".md", ".markdown", ".mdown", ".mkd")
    version: ClassVar[int] = 1
    isolate: ClassVar[bool] = False

    def read(self, data: bytes, source: str) -> Document:
        text, encoding = decode(data)
        starts = line_starts(text)
        body = _body_line(text, starts)
        front = _front_matter(text[starts[1] : starts[body - 1]]) if body else {}
        blocks = ordered(self.limited(_blocks(text, starts, body)))
        title = str(front.get("title") or "") or first_heading(text, blocks) or file_stem(source)
        meta = {**front, "parser": "markdown", "encoding": encoding}
        return Document(text=text, source=source, title=title, blocks=blocks, meta=meta)


def _blocks(text: str, starts: Sequence[int], body: int) -> Iterator[Block]:
    """The blocks of lines `body` and later. A list item is the paragraph in it; code and tables in it stand alone."""
    from markdown_it import MarkdownIt

    rules = MarkdownIt("commonmark").enable("table").disable(["inline", "reference"])  # only lines matter here
    tokens = rules.parse(text[starts[body] :])
    depth = 0
    for at, token in enumerate(tokens):
        if token.type in ("bullet_list_open", "ordered_list_open"):
            depth += 1
        elif token.type in ("bullet_list_close", "ordered_list_close"):
            depth -= 1
        if token.map is None:
            continue
        first, last = starts[body + token.map[0]], starts[min(body + token.map[1], len(starts) - 1)]
        if token.type == "heading_open":
            yield Block(span=_heading(text, first, last, tokens[at + 1]), kind="heading", level=int(token.tag[1:]))
        elif token.type in _KINDS:
            kind = _KINDS[token.type]
            span = trimmed(text, Span(first, last))
            if kind == "code":
                span = Span(first, max(first, span.end))  # the first line's indent is part of the code
            item = kind == "paragraph" and depth > 0
            if text[span.start : span.end].strip():
                yield Block(span=span, kind="list" if item else kind, level=depth if item else 0)


def _heading(text: str, first: int, last: int, inline: Token) -> Span:
    """The heading's line, or its words alone when they are underlined or quoted."""
    span = trimmed(text, Span(first, last))
    if text.startswith("#", span.start):
        return span
    at = text.find(inline.content, span.start, span.end) if inline.content else -1
    return Span(at, at + len(inline.content)) if at >= 0 else span


def _body_line(text: str, starts: Sequence[int]) -> int:
    """Number of lines that the front matter takes, its two fences included; 0 without any."""
    lines = [text[a:b].rstrip() for a, b in pairwise(starts[: _FRONT_MATTER_LINES + 1])]
    if not lines or lines[0] != "---":
        return 0
    return next((at + 1 for at, line in enumerate(lines) if at and line in ("---", "...")), 0)


def _front_matter(text: str) -> dict[str, str | int | float | bool]:
    """The top-level scalars. YAML reads one line at a time, so that a bad or a nested one costs itself only."""
    import yaml

    found: dict[str, str | int | float | bool] = {}
    for line in _FRONT_LINE.findall(text):
        try:
            pairs = yaml.safe_load(line).items()
        except (yaml.YAMLError, ValueError, AttributeError):
            continue
        found.update((str(key), scalar) for key, value in pairs if (scalar := _scalar(value)) is not None)
    return found


def _scalar(value: Any) -> str | int | float | bool | None:
    if isinstance(value, datetime.date):  # a datetime is a date too
        return value.isoformat()
    if isinstance(value, int) and not -(2**53) < value < 2**53:
        return str(value) if value.bit_length() < 1000 else None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float) else None
