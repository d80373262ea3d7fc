"""JSON and JSON lines: the raw file, checked; records and members are exact slices of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from rag.errors import InputError
from rag.parsers._base import FileParser, file_stem
from rag.parsers._blocks import Meta, line_starts
from rag.parsers._decode import decode
from rag.text import trimmed
from rag.types import Block, Document, Span

_BLANK = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, kw_only=True)
class JsonParser(FileParser):
    """Every line of JSON lines and every element of a top-level array is a row; every member of a top-level object
    is a paragraph. These rows lie in no table block: each one names its own fields, so there is no header row.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".json", ".jsonl", ".ndjson")
    version: ClassVar[int] = 1
    isolate: ClassVar[bool] = False

    def read(self, data: bytes, source: str) -> Document:
        text, encoding = decode(data)
        lines = source.lower().endswith((".jsonl", ".ndjson"))
        blocks = tuple(self.limited(_line_records(text) if lines else _members(text)))
        meta: Meta = {"parser": "json", "encoding": encoding, "records": len(blocks)}
        return Document(text=text, source=source, title=file_stem(source), blocks=blocks, meta=meta)


def _decoder() -> json.JSONDecoder:
    """Numbers stay unread: only places matter, and an integer of 5000 digits is an error for int()."""
    return json.JSONDecoder(parse_int=len, parse_float=len)


def _line_records(text: str) -> Iterator[Block]:
    decoder = _decoder()
    for number, (start, end) in enumerate(pairwise(line_starts(text)), 1):
        span = trimmed(text, Span(start, end))
        if not len(span):
            continue
        try:
            decoder.decode(text[span.start : span.end])
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"line {number:,} is no JSON record: {_reason(error)}") from error
        yield Block(span=span, kind="row")


def _members(text: str) -> Iterator[Block]:
    """The parts of the top-level value."""
    try:
        _decoder().decode(text)
    except json.JSONDecodeError as error:
        raise InputError(f"no valid JSON, line {error.lineno:,} column {error.colno:,}: {error.msg}") from error
    except RecursionError as error:
        raise InputError(f"no valid JSON: {_reason(error)}") from error
    start = _skip(text, 0)
    if text[start] == "[":
        yield from _parts(text, start + 1, kind_is_row=True)
    elif text[start] == "{":
        yield from _parts(text, start + 1, kind_is_row=False)
    else:
        yield Block(span=trimmed(text, Span(start, len(text))), kind="paragraph")


def _parts(text: str, at: int, *, kind_is_row: bool) -> Iterator[Block]:
    """Elements of an array, or members of an object, whose first one starts at or after `at`; the text is valid."""
    decoder = _decoder()
    at = _skip(text, at)
    while text[at] not in "]}":
        start = at
        at = _value_end(decoder, text, at)
        if not kind_is_row:
            at = _value_end(decoder, text, _skip(text, _skip(text, at) + 1))  # over the colon
        yield Block(span=Span(start, at), kind="row" if kind_is_row else "paragraph")
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)


def _value_end(decoder: json.JSONDecoder, text: str, at: int) -> int:
    value: tuple[Any, int] = decoder.raw_decode(text, at)
    return value[1]


def _skip(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
