"""Sample content -> DOCX, PPTX and XLSX, with fixed dates and metadata."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from io import BytesIO
from typing import Any

from rag.sample._markdown import Part

__all__ = ["docx_bytes", "pptx_bytes", "xlsx_bytes"]

AUTHOR = "Aldermoor Instruments Ltd"
WHEN = datetime(2025, 10, 6, 9, 0, 0)
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_MODIFIED = re.compile(rb"(<dcterms:modified[^>]*>)[^<]*(</dcterms:modified>)")


def docx_bytes(parts: Sequence[Part]) -> bytes:
    """A Word file with heading styles, list styles and real tables."""
    import docx

    document = docx.Document()
    title = next(part.text for part in parts if part.kind == "heading")
    _set_core(document.core_properties, title)
    for part in parts:
        match part.kind:
            case "table":
                _add_docx_table(document, part.rows)
            case "heading":
                document.add_heading(part.text, level=part.level)
            case kind:
                style = {"paragraph": "Normal", "bullet": "List Bullet", "number": "List Number"}[kind]
                paragraph = document.add_paragraph(style=style)
                for run in part.runs:
                    written = paragraph.add_run(run.text)
                    written.bold, written.italic = run.bold or None, run.italic or None
    return _saved(document)


def _add_docx_table(document: Any, rows: Sequence[Sequence[str]]) -> None:
    table = document.add_table(rows=len(rows), cols=len(rows[0]), style="Table Grid")
    for cells, row in zip(table.rows, rows, strict=True):
        for cell, text in zip(cells.cells, row, strict=True):
            cell.text = text
    for cell in table.rows[0].cells:
        cell.paragraphs[0].runs[0].bold = True
    document.add_paragraph()


def pptx_bytes(content: Mapping[str, Any]) -> bytes:
    """A presentation: per slide a title, a subtitle or a table or bullets, and notes."""
    from pptx import Presentation
    from pptx.util import Cm

    deck = Presentation()
    _set_core(deck.core_properties, content["title"])
    layout = {"title": 0, "bullets": 1, "table": 5}
    for item in content["slides"]:
        kind = "title" if "subtitle" in item else "bullets" if "bullets" in item else "table"
        slide = deck.slides.add_slide(deck.slide_layouts[layout[kind]])
        slide.shapes.title.text = item["title"]
        if kind == "title":
            slide.placeholders[1].text = item["subtitle"]
        if "table" in item:
            _add_pptx_table(slide, item["table"])
        if "bullets" in item:
            body = slide.placeholders[1]
            body.text_frame.text = "\n".join(item["bullets"])
            if "table" in item:  # the table has the upper half, the bullets the lower one
                body.left, body.top, body.width, body.height = Cm(1.3), Cm(12), Cm(22.8), Cm(6)
        slide.notes_slide.notes_text_frame.text = item["notes"].strip()
    return _saved(deck)


def _add_pptx_table(slide: Any, rows: Sequence[Sequence[str]]) -> None:
    from pptx.util import Cm

    frame = slide.shapes.add_table(len(rows), len(rows[0]), Cm(1.3), Cm(4.5), Cm(22.8), Cm(1.2 * len(rows)))
    for y, row in enumerate(rows):
        for x, text in enumerate(row):
            frame.table.cell(y, x).text = text


def xlsx_bytes(content: Mapping[str, Any]) -> bytes:
    """A workbook: per sheet a header row, typed rows, and notes below an empty row."""
    from openpyxl import Workbook
    from openpyxl.styles import Font
    from openpyxl.utils import get_column_letter

    book = Workbook()
    book.remove(book.active)
    properties = book.properties
    properties.title, properties.creator, properties.created = content["title"], AUTHOR, WHEN
    for sheet in content["sheets"]:
        page = book.create_sheet(sheet["name"])
        page.append(sheet["columns"])
        for row in sheet["rows"]:
            page.append([value if value != "" else None for value in row])
        page.append([])
        for note in sheet["notes"]:
            page.append([note])
        for x in range(1, len(sheet["columns"]) + 1):
            page.cell(row=1, column=x).font = Font(bold=True)
            page.column_dimensions[get_column_letter(x)].width = 60 if x == 2 else 18
        page.freeze_panes = "A2"
    return _saved(book)


def _set_core(properties: Any, title: str) -> None:
    properties.title, properties.author, properties.last_modified_by = title, AUTHOR, AUTHOR
    properties.created = properties.modified = WHEN
    properties.comments = ""


def _saved(package: Any) -> bytes:
    """The file with fixed time stamps: the libraries write the present time into the archive."""
    raw, out = BytesIO(), BytesIO()
    package.save(raw)
    stamp = WHEN.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
    with zipfile.ZipFile(raw) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            data = source.read(name)
            if name == "docProps/core.xml":
                data = _MODIFIED.sub(rb"\g<1>" + stamp + rb"\g<2>", data)
            entry = zipfile.ZipInfo(name, _ZIP_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(entry, data)
    return out.getvalue()
