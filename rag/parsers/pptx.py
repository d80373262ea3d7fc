"""PPTX: one page per slide, its title as a heading, through python-pptx."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar

from rag.errors import InputError, missing_extra
from rag.parsers._base import FileParser
from rag.parsers._blocks import TextBuilder
from rag.parsers._zip import check_office_file
from rag.types import Document

_GROUP_DEPTH = 20


@dataclass(frozen=True, kw_only=True)
class PptxParser(FileParser):
    """Shapes in the order of the file, groups opened, tables as rows, then the speaker's notes. No charts."""

    suffixes: ClassVar[tuple[str, ...]] = (".pptx", ".pptm")
    version: ClassVar[int] = 1
    isolate: ClassVar[bool] = True

    def read(self, data: bytes, source: str) -> Document:
        try:
            import pptx
        except ImportError as error:
            raise missing_extra("python-pptx", "office", "reading PPTX files") from error
        check_office_file(data, self.limits)
        try:
            deck = pptx.Presentation(BytesIO(data))
        except (KeyError, ValueError) as error:  # the readers' words for a zip without the parts that they know
            raise InputError(
                "no PowerPoint presentation, or one saved as Strict Open XML; save it in the usual format"
            ) from error
        if len(deck.slides) > self.limits.max_pages:
            raise InputError(self.limits.over("max_pages", len(deck.slides)))
        builder = TextBuilder(self.limits)
        for number, slide in enumerate(deck.slides, 1):
            start = builder.length
            _add_slide(builder, slide)
            builder.add_page(number, start)
        title = str(deck.core_properties.title or "")
        if title == "PowerPoint Presentation":  # what the program writes when nobody chose a title
            title = ""
        return builder.document(source, title=title, meta={"parser": "pptx", "pages": len(deck.slides)})


def _add_slide(builder: TextBuilder, slide: Any) -> None:
    title = slide.shapes.title
    if title is not None:
        builder.add(" ".join(title.text_frame.text.split()), "heading", level=1)
    for shape in _flat(slide.shapes):
        if title is not None and shape.shape_id == title.shape_id:
            continue
        if getattr(shape, "has_table", False) and shape.has_table:
            builder.add_table([cell.text for cell in row.cells] for row in shape.table.rows)
        elif shape.has_text_frame:
            _add_frame(builder, shape)
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        for paragraph in slide.notes_slide.notes_text_frame.paragraphs:
            builder.add(_words(paragraph), "paragraph")


def _add_frame(builder: TextBuilder, shape: Any) -> None:
    """Paragraphs of a placeholder are its bullet points, those of a free text box are paragraphs."""
    gap = "\n\n"
    for paragraph in shape.text_frame.paragraphs:
        if shape.is_placeholder:
            added = builder.add(_words(paragraph), "list", level=paragraph.level + 1, gap=gap)
            gap = "\n" if added else gap
        else:
            builder.add(_words(paragraph), "paragraph")


def _words(paragraph: Any) -> str:
    return "\n".join(line.strip() for line in paragraph.text.replace("\v", "\n").split("\n") if line.strip())


def _flat(shapes: Iterable[Any], depth: int = 0) -> Iterator[Any]:
    for shape in shapes:
        if hasattr(shape, "shapes") and depth < _GROUP_DEPTH:
            yield from _flat(shape.shapes, depth + 1)
        else:
            yield shape
