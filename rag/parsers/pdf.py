"""PDF: the text layer, page by page, through pypdfium2. No OCR."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from rag.errors import InputError, missing_extra
from rag.limits import Limits
from rag.parsers._base import FileParser
from rag.parsers._blocks import TextBuilder
from rag.parsers._pdf_layout import Line, heading_level, heading_levels, join_hyphens, paragraphs
from rag.types import Document

_ONE_AT_A_TIME = threading.Lock()
"""PDFium is not thread safe, not even for two different files."""

_WORD = re.compile(r"\w+")
_CLEAN = {code: None for code in range(32) if chr(code) not in "\t"} | {0x7F: None, 0xAD: None, 0xA0: " "}
_NO_TITLE = re.compile(r"^(untitled.*|microsoft \w+ - .*|.*\.(docx?|pdf|xlsx?|pptx?|indd|rtf|txt|html?))$", re.I)
_FORMAT, _PASSWORD, _SECURITY = 3, 4, 5


@dataclass(frozen=True, kw_only=True)
class PdfParser(FileParser):
    """Lines are joined by a line end, paragraphs and pages by an empty line; headings are told by their letter size.

    Left out: control characters and soft hyphens. No-break spaces become spaces, words broken at a line end are
    mended. A page without text is in no `Page`, the others keep their printed number.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".pdf",)
    version: ClassVar[int] = 1
    isolate: ClassVar[bool] = True

    def read(self, data: bytes, source: str) -> Document:
        try:
            import pypdfium2
        except ImportError as error:
            raise missing_extra("pypdfium2", "pdf", "reading PDF files") from error
        with _ONE_AT_A_TIME:
            # PDFium fails on some files without saying why, and then its last word is about another file: this is it.
            pypdfium2.raw.FPDF_LoadMemDocument64(b"no PDF", 6, None)
            try:
                pdf = pypdfium2.PdfDocument(data)
            except pypdfium2.PdfiumError as error:
                raise InputError(_why(getattr(error, "err_code", None), error)) from error
            try:
                title = str(pdf.get_metadata_dict().get("Title") or "")
                pages, unreadable = _pages(pdf, self.limits)
            finally:
                pdf.close()
        return _document(source, "" if _NO_TITLE.match(title.strip()) else title, pages, unreadable, self.limits)


def _why(code: int | None, error: Exception) -> str:
    reasons = {
        _FORMAT: "damaged, or no PDF",
        _PASSWORD: "encrypted with a password; save a copy without one",
        _SECURITY: "encrypted in a way that is not supported; save a copy without protection",
    }
    return reasons.get(code or 0, f"cannot be opened: {error}")


def _pages(pdf: Any, limits: Limits) -> tuple[list[list[Line]], int]:
    """(lines of every page, number of pages that could not be read)."""
    import pypdfium2

    if len(pdf) > limits.max_pages:
        raise InputError(limits.over("max_pages", len(pdf)))
    pages: list[list[Line]] = []
    unreadable = characters = 0
    for number in range(len(pdf)):
        lines: list[Line] = []
        try:
            page = pdf[number]
            try:
                lines = list(_lines(page.get_textpage()))
            finally:
                page.close()
        except pypdfium2.PdfiumError:
            unreadable += 1
        pages.append(lines)
        characters += sum(len(line.text) for line in lines)
        if characters > limits.max_characters:
            raise InputError(limits.over("max_characters"))
    if pages and unreadable == len(pages):
        raise InputError("damaged: none of its pages can be read")
    return pages, unreadable


def _lines(textpage: Any) -> Iterator[Line]:
    """The lines of a page that say something. `at` counts UTF-16 units, as PDFium does."""
    from pypdfium2 import PdfiumError, raw

    at = 0
    for line in textpage.get_text_range().split("\r\n"):
        text = line.translate(_CLEAN).strip()
        if text:
            index = raw.FPDFText_GetCharIndexFromTextIndex(
                textpage, at + _units(line[: len(line) - len(line.lstrip())])
            )
            try:
                _, bottom, _, top = textpage.get_charbox(index, loose=True) if index >= 0 else (0.0,) * 4
            except PdfiumError:
                bottom = top = 0.0
            yield Line(text, abs(top - bottom), bottom)
        at += _units(line) + 2


def _units(text: str) -> int:
    return len(text) + sum(char > "\uffff" for char in text) if not text.isascii() else len(text)


def _document(source: str, title: str, pages: Sequence[Sequence[Line]], unreadable: int, limits: Limits) -> Document:
    broken = any("\ufffe" in line.text for page in pages for line in page)
    words = _vocabulary(pages) if broken else frozenset()
    levels = heading_levels(pages)
    builder = TextBuilder(limits)
    for number, page in enumerate(pages, 1):
        start = builder.length
        for group in paragraphs([replace(line, text=join_hyphens(line.text, words)) for line in page]):
            level = heading_level(group, levels)
            builder.add("\n".join(line.text for line in group), "heading" if level else "paragraph", level=level)
        builder.add_page(number, start)
    if not builder.length:
        raise InputError(f"no text layer on its {len(pages):,} pages (scanned?); run OCR on it first")
    meta: dict[str, str | int | float | bool] = {"parser": "pdf", "pages": len(pages)}
    if unreadable:
        meta["unreadable_pages"] = unreadable
    return builder.document(source, title=title, meta=meta)


def _vocabulary(pages: Sequence[Sequence[Line]]) -> frozenset[str]:
    return frozenset(word.casefold() for page in pages for line in page for word in _WORD.findall(line.text))
