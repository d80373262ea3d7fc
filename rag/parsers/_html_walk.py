"""The walk over an HTML tree that turns elements into blocks. Iterative: a page may be nested thousands deep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rag.parsers._blocks import TextBuilder
from rag.types import BlockKind

__all__ = ["PageWalk"]

_NEVER = frozenset(
    (
        *("script", "style", "noscript", "template", "head", "iframe", "object", "embed", "svg", "canvas"),
        *("audio", "video", "select", "button", "textarea"),
    )
)
_NAVIGATION = frozenset(("nav", "aside", "footer"))
_ARTICLE = frozenset(("article", "main", "section"))
_BLOCKS = frozenset(
    (
        *("address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dialog", "div"),
        *("dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "html", "legend", "main"),
        *("nav", "p", "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr"),
    )
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_LISTS = frozenset(("ul", "ol", "menu", "dir"))
_HIDING = re.compile(r"(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.I)


class PageWalk:
    """One pass over one tree. Inline text collects in a buffer; every block boundary empties it into a block."""

    def __init__(self, builder: TextBuilder, *, with_navigation: bool) -> None:
        self.hidden_characters = 0
        """Of text that the page holds but does not show."""
        self._builder = builder
        self._skipped = _NEVER if with_navigation else _NEVER | _NAVIGATION
        self._inline: list[str] = []
        self._lists = self._articles = 0
        self._items: list[int] = []
        self._heading = 0
        self._after_item = False

    def walk(self, root: Any) -> None:
        """Add the text below `root` to the builder."""
        for node, entering in self._events(root):
            if entering and node.tag == "-text":
                self._inline.append(node.text_content or "")
            elif entering:
                self._enter(node)
            else:
                self._leave(node)
        self._flush()

    def _events(self, root: Any) -> Iterator[tuple[Any, bool]]:
        """(node, True) on the way down, (element, False) on the way up."""
        stack = [(root, True)]
        while stack:
            node, entering = stack.pop()
            if not entering:
                yield node, False
                continue
            if node.tag != "-text" and (node.tag.startswith("-") or self._is_skipped(node)):
                continue
            yield node, True
            if node.tag == "-text":
                continue
            stack.append((node, False))
            if node.tag != "pre" and not _is_data_table(node):
                stack.extend((child, True) for child in reversed(list(_children(node))))

    def _is_skipped(self, node: Any) -> bool:
        if node.tag not in _NEVER and _is_hidden(node):
            self._count_hidden(node)
            return True
        if node.tag == "footer" and self._articles:
            return False  # the footer of an article is part of it, the page's own is not
        return node.tag in self._skipped

    def _count_hidden(self, node: Any) -> None:
        self.hidden_characters += len(" ".join((node.text() or "").split()))

    def _enter(self, node: Any) -> None:
        tag = node.tag
        if tag == "br":
            self._inline.append("\n")
        elif tag == "pre":
            self._flush()
            self._builder.add(_raw_text(node).strip("\r\n").rstrip(), "code")
        elif _is_data_table(node):
            self._flush()
            self._add_table(node)
        elif tag in _HEADINGS:
            self._flush()
            self._heading = _HEADINGS[tag]
        elif tag in _BLOCKS or tag in _LISTS or tag == "li":
            self._flush()
            self._count(tag, 1)

    def _leave(self, node: Any) -> None:
        tag = node.tag
        if tag in _HEADINGS:
            self._flush()
            self._heading = 0
        elif tag in _BLOCKS or tag in _LISTS or tag == "li":
            self._flush()
            self._count(tag, -1)

    def _count(self, tag: str, step: int) -> None:
        self._lists += step * (tag in _LISTS)
        self._articles += step * (tag in _ARTICLE)
        if tag == "li" and step > 0:
            self._items.append(self._lists)
        elif tag == "li":
            self._items.pop()

    def _flush(self) -> None:
        """The buffer becomes a block of the kind that the open elements ask for."""
        lines = (" ".join(line.split()) for line in "".join(self._collapsed()).split("\n"))
        text = "\n".join(line for line in lines if line)
        self._inline.clear()
        if not text:
            return
        kind: BlockKind = "heading" if self._heading else "list" if self._items else "paragraph"
        level = self._heading or (max(1, self._items[-1]) if self._items else 0)
        gap = "\n" if kind == "list" and self._after_item else "\n\n"
        self._builder.add(text.replace("\n", " ") if self._heading else text, kind, level=level, gap=gap)
        self._after_item = kind == "list"

    def _collapsed(self) -> Iterator[str]:
        """Line ends in the source are plain spaces; only <br>, which stands alone in the buffer, breaks a line."""
        for part in self._inline:
            yield part if part == "\n" else part.replace("\n", " ").replace("\r", " ")

    def _add_table(self, table: Any) -> None:
        rows: list[list[str]] = []
        for node in _below(table):
            if node.tag.startswith("-") or node.tag in _NEVER:
                continue
            if _is_hidden(node):
                self._count_hidden(node)
            elif node.tag == "caption":
                self._builder.add(" ".join(_raw_text(node).split()), "paragraph")
            elif node.tag == "tr":
                cells = (cell for cell in _children(node) if cell.tag in ("td", "th") and not _is_hidden(cell))
                rows.append([_raw_text(cell) for cell in cells])
        self._builder.add_table(rows)
        self._after_item = False


def _children(node: Any) -> Iterator[Any]:
    child = node.child
    while child is not None:
        yield child
        child = child.next


def _below(node: Any) -> Iterator[Any]:
    """All visible nodes below `node`, in document order."""
    stack = list(_children(node))[::-1]
    while stack:
        current = stack.pop()
        yield current
        if current.tag == "-text" or not (current.tag.startswith("-") or current.tag in _NEVER or _is_hidden(current)):
            stack.extend(list(_children(current))[::-1])


def _raw_text(node: Any) -> str:
    """The visible text below `node`, white space untouched; blocks inside are parted by a line end."""
    parts: list[str] = []
    for current in _below(node):
        if current.tag == "-text":
            parts.append(current.text_content or "")
        elif current.tag in _BLOCKS or current.tag in ("br", "li"):
            parts.append("\n")
    return "".join(parts)


def _is_hidden(node: Any) -> bool:
    attributes = node.attributes
    if "hidden" in attributes or attributes.get("aria-hidden") == "true":
        return True
    style = attributes.get("style")
    return bool(style and _HIDING.search(style))


def _is_data_table(node: Any) -> bool:
    """A table of cells; one that holds another table, or headings, is a layout and is walked like any element."""
    return node.tag == "table" and not any(inner.tag == "table" or inner.tag in _HEADINGS for inner in _below(node))
