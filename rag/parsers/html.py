"""HTML: the readable part of a page, without its navigation, from a lexbor tree (selectolax)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from rag.errors import InputError, missing_extra
from rag.limits import Limits
from rag.parsers._base import FileParser
from rag.parsers._blocks import TextBuilder
from rag.parsers._decode import decode
from rag.parsers._html_walk import PageWalk
from rag.types import Document

_CHARSET = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})|<\?xml[^>]{0,100}?encoding=["']([\w.:-]+)""", re.I
)
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
_CLOSED_BY_ITSELF = frozenset(
    (
        *(
            "area",
            "base",
            "br",
            "col",
            "embed",
            "hr",
            "img",
            "input",
            "link",
            "meta",
            "param",
            "source",
            "track",
            "wbr",
        ),
        *("p", "li", "dt", "dd", "option", "tr", "td", "th", "thead", "tbody"),
    )
)


@dataclass(frozen=True, kw_only=True)
class HtmlParser(FileParser):
    """Headings, paragraphs, list items, preformatted text and tables, in reading order.

    Left out: scripts, styles, navigation, asides, the page's own footer, and what a reader is not shown (hidden text
    is a known way to smuggle in instructions; its length is noted). A page of nothing else keeps its navigation.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".html", ".htm", ".xhtml")
    version: ClassVar[int] = 2
    isolate: ClassVar[bool] = True  # lexbor is native, and 1 MB of attributes in one tag keeps it busy for long

    def read(self, data: bytes, source: str) -> Document:
        try:
            from selectolax.lexbor import LexborHTMLParser
        except ImportError as error:
            raise missing_extra("selectolax", "html", "reading HTML files") from error
        match = _CHARSET.search(data[:4096])
        declared = (match.group(1) or match.group(2)).decode("ascii", "ignore") if match else ""
        text, encoding = decode(data, declared=declared)
        _check_depth(text, self.limits)
        root = LexborHTMLParser(text).root
        if root is None:
            raise InputError("the file holds no HTML")
        builder = TextBuilder(self.limits)
        walk = PageWalk(builder, with_navigation=False)
        walk.walk(root)
        if not builder.length:
            walk = PageWalk(builder, with_navigation=True)
            walk.walk(root)
        meta: dict[str, str | int | float | bool] = {"parser": "html", "encoding": encoding}
        if walk.hidden_characters:
            meta["hidden_characters"] = walk.hidden_characters
        language = (root.attributes.get("lang") or "").strip()
        if re.fullmatch(r"[A-Za-z0-9-]{2,35}", language):
            meta["language"] = language
        return builder.document(source, title=_title(root), meta=meta)


def _title(root: Any) -> str:
    node = root.css_first("head > title")
    return str(node.text()) if node else ""


def _check_depth(text: str, limits: Limits) -> None:
    """InputError when elements are nested too deeply, judged by the tags alone, before any tree is built."""
    depth = 0
    for slash, name in _TAG.findall(text):
        if name.lower() in _CLOSED_BY_ITSELF:
            continue
        depth = max(0, depth - 1) if slash else depth + 1
        if depth > limits.max_html_depth:
            raise InputError(limits.over("max_html_depth"))
