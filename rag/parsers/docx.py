"""DOCX: headings, paragraphs, lists and tables in the order of the body, through python-docx."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar

from rag.errors import InputError, missing_extra
from rag.parsers._base import FileParser
from rag.parsers._blocks import TextBuilder
from rag.parsers._office import body_items, paragraph_text
from rag.parsers._zip import check_office_file
from rag.types import Document

_HEADING = re.compile(r"heading (\d)", re.I)
_LIST = re.compile(r"list\b", re.I)


@dataclass(frozen=True, kw_only=True)
class DocxParser(FileParser):
    """Tracked insertions count as text, deletions do not. Headers, footers, footnotes and comments are left out."""

    suffixes: ClassVar[tuple[str, ...]] = (".docx", ".docm")
    version: ClassVar[int] = 1
    isolate: ClassVar[bool] = True

    def read(self, data: bytes, source: str) -> Document:
        try:
            import docx
            from docx.text.paragraph import Paragraph
        except ImportError as error:
            raise missing_extra("python-docx", "office", "reading DOCX files") from error
        check_office_file(data, self.limits)
        try:
            document = docx.Document(BytesIO(data))
        except (KeyError, ValueError) as error:  # the readers' words for a zip without the parts that they know
            raise InputError(
                "no Word document, or one saved as Strict Open XML; save it in the usual format"
            ) from error
        builder = TextBuilder(self.limits)
        styles: dict[str | None, list[str]] = {}  # looking a style up reads all of them, so once for each is enough
        after_item = False
        for element in body_items(document.element.body):
            if element.tag.endswith("}tbl"):
                builder.add_table(_rows(element))
                after_item = False
                continue
            text = paragraph_text(element)
            if element.style not in styles:
                styles[element.style] = list(_style_names(Paragraph(element, document).style))
            level, depth = _heading_level(styles[element.style]), _list_depth(element, styles[element.style])
            if level:
                builder.add(text.replace("\n", " "), "heading", level=level)
            elif depth:
                builder.add(text, "list", level=depth, gap="\n" if after_item else "\n\n")
            else:
                builder.add(text, "paragraph")
            after_item = bool(depth and not level) if text else after_item
        title = str(document.core_properties.title or "")
        return builder.document(source, title=title, meta={"parser": "docx"})


def _rows(table: Any) -> Iterator[list[str]]:
    """Cells of every row; a nested table's text is part of the cell that holds it."""
    for row in table.tr_lst:
        yield [_cell_text(cell) for cell in row.tc_lst]


def _cell_text(cell: Any) -> str:
    parts: list[str] = []
    for item in body_items(cell):
        if item.tag.endswith("}tbl"):
            parts.extend(_cell_text(inner) for row in item.tr_lst for inner in row.tc_lst)
        else:
            parts.append(paragraph_text(item))
    return " ".join(part for part in parts if part)


def _style_names(style: Any) -> Iterator[str]:
    """The style and those that it builds on; the chain is cut at ten, since a file may close a circle."""
    for _ in range(10):
        if style is None:
            return
        yield str(style.name or "")
        style = style.base_style


def _heading_level(names: Sequence[str]) -> int:
    if names and names[0].lower() == "title":
        return 1
    match = next(filter(None, map(_HEADING.match, names)), None)
    return min(6, max(1, int(match.group(1)))) if match else 0


def _list_depth(paragraph: Any, names: Sequence[str]) -> int:
    """1 for an item of an outermost list, 0 for no item."""
    properties = paragraph.pPr
    numbering = properties.numPr if properties is not None else None
    if numbering is not None and (numbering.numId is None or numbering.numId.val):
        return 1 + min(8, numbering.ilvl.val if numbering.ilvl is not None else 0)
    return 1 if any(map(_LIST.match, names)) else 0
