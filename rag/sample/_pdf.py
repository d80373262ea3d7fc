"""Sample content -> PDF with reportlab, standard fonts, a running footer with page numbers."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from rag.sample._markdown import Part, Run

if TYPE_CHECKING:
    from reportlab.pdfgen.canvas import Canvas

__all__ = ["pdf_bytes"]


def pdf_bytes(parts: Sequence[Part]) -> bytes:
    """The PDF file. `invariant` leaves out the date and the random id, so the same parts give the same bytes."""
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.units import mm
    from reportlab.platypus import BaseDocTemplate, Frame, PageTemplate

    title = next(part.text for part in parts if part.kind == "heading")
    buffer = BytesIO()
    template = BaseDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=25 * mm,
        rightMargin=25 * mm,
        topMargin=22 * mm,
        bottomMargin=24 * mm,
        title=title,
        author="Aldermoor Instruments Ltd",
        invariant=1,
    )

    def footer(canvas: Canvas, _template: Any) -> None:
        canvas.saveState()
        canvas.setFont("Helvetica", 8)
        canvas.drawString(25 * mm, 14 * mm, title)
        canvas.drawRightString(A4[0] - 25 * mm, 14 * mm, f"Page {canvas.getPageNumber()}")
        canvas.restoreState()

    frame = Frame(template.leftMargin, template.bottomMargin, template.width, template.height)
    template.addPageTemplates([PageTemplate(frames=[frame], onPageEnd=footer)])
    template.build(_flowables(parts))
    return buffer.getvalue()


def _flowables(parts: Sequence[Part]) -> list[Any]:
    from reportlab.lib.styles import ParagraphStyle, getSampleStyleSheet
    from reportlab.platypus import Paragraph, Spacer

    sheet = getSampleStyleSheet()
    body = ParagraphStyle("body", parent=sheet["BodyText"], fontSize=10.5, leading=15, spaceAfter=7)
    cell = ParagraphStyle("cell", parent=body, fontSize=9.5, leading=12, spaceAfter=0)
    story: list[Any] = []
    number = 0
    for part in parts:
        number = number + 1 if part.kind == "number" else 0
        match part.kind:
            case "heading":
                style = ParagraphStyle("heading", parent=sheet[f"Heading{part.level}"], keepWithNext=1)
                story.append(Paragraph(_markup(part.runs), style))
            case "paragraph":
                story.append(Paragraph(_markup(part.runs), body))
            case "bullet":
                story.append(Paragraph(_markup(part.runs), body, bulletText="•"))
            case "number":
                story.append(Paragraph(_markup(part.runs), body, bulletText=f"{number}."))
            case "table":
                story.extend((_table(part.rows, cell), Spacer(1, 9)))
    return story


def _table(rows: Sequence[Sequence[str]], style: Any) -> Any:
    from reportlab.lib import colors
    from reportlab.platypus import Paragraph, Table, TableStyle

    cells = [[Paragraph(escape(text), style) for text in row] for row in rows]
    other = 60.0 if len(rows[0]) == 4 else 80.0  # points; the first column holds words, the others figures
    widths = [200.0] + [other if len(rows[0]) > 2 else 160.0] * (len(rows[0]) - 1)
    table = Table(cells, colWidths=widths, repeatRows=1, hAlign="LEFT")
    table.setStyle(
        TableStyle(
            [
                ("GRID", (0, 0), (-1, -1), 0.4, colors.grey),
                ("BACKGROUND", (0, 0), (-1, 0), colors.whitesmoke),
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
            ]
        )
    )
    return table


def _markup(runs: Sequence[Run]) -> str:
    pieces = []
    for run in runs:
        text = escape(run.text)
        text = f"<b>{text}</b>" if run.bold else text
        pieces.append(f"<i>{text}</i>" if run.italic else text)
    return "".join(pieces)
