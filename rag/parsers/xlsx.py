"""XLSX: every sheet a heading and a table, every row a line, through openpyxl."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar

from rag.errors import InputError, missing_extra
from rag.limits import Limits
from rag.parsers._base import FileParser
from rag.parsers._blocks import Meta, TextBuilder
from rag.parsers._zip import check_office_file
from rag.types import Document

_MAX_ROWS = 1_048_576
_PLACES_PER_CELL = 20
"""Empty cells cost time too: one cell at the far end of a row makes the reader fill in 16 383 others."""


@dataclass(frozen=True, kw_only=True)
class XlsxParser(FileParser):
    """Cell values as last computed, joined by " | "; the first row of a sheet is its header. Hidden sheets are read."""

    suffixes: ClassVar[tuple[str, ...]] = (".xlsx", ".xlsm")
    version: ClassVar[int] = 1
    isolate: ClassVar[bool] = True

    def read(self, data: bytes, source: str) -> Document:
        try:
            import openpyxl
        except ImportError as error:
            raise missing_extra("openpyxl", "office", "reading XLSX files") from error
        check_office_file(data, self.limits)
        builder = TextBuilder(self.limits)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and extensions, which are not read here
            book = openpyxl.load_workbook(BytesIO(data), read_only=True, data_only=True, keep_links=False)
            try:
                count = _Count(self.limits)
                for sheet in book.worksheets:
                    builder.add(" ".join(sheet.title.split()), "heading", level=1)
                    builder.add_table(_rows(sheet, count))
                title = str(book.properties.title or "")
            finally:
                book.close()
        if all(block.kind == "heading" for block in builder.blocks):
            raise InputError("all of its sheets are empty")
        meta: Meta = {"parser": "xlsx", "sheets": len(book.worksheets), "cells": count.cells}
        return builder.document(source, title=title, meta=meta)


@dataclass
class _Count:
    """Over all sheets of a file."""

    limits: Limits
    cells: int = 0
    places: int = 0

    def check(self, sheet: str) -> None:
        """InputError over the limit."""
        if self.cells > self.limits.max_cells:
            raise InputError(f"sheet {sheet!r}: {self.limits.over('max_cells')}")
        if self.places > _PLACES_PER_CELL * self.limits.max_cells:
            why = self.limits.over("max_cells")
            raise InputError(f"sheet {sheet!r}, {_PLACES_PER_CELL} empty cells counted as one: {why}")


def _rows(sheet: Any, count: _Count) -> Iterator[list[str]]:
    sheet.reset_dimensions()  # the size that a file declares is often wrong, and then cells would be missing
    for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
        values = [_cell(value) for value in row]
        count.places += 1 + len(values)
        count.cells += sum(map(bool, values))
        count.check(sheet.title)
        if number > _MAX_ROWS:
            raise InputError(f"sheet {sheet.title!r}: more than {_MAX_ROWS:,} rows, which no XLSX file can have")
        yield values


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
