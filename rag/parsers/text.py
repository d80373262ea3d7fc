"""Plain text: the file as it is, paragraphs as blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rag.parsers._base import FileParser, file_stem
from rag.parsers._blocks import paragraph_spans
from rag.parsers._decode import decode
from rag.types import Block, Document


@dataclass(frozen=True, kw_only=True)
class TextParser(FileParser):
    """Keeps every character but the byte order mark, line ends included. Paragraphs end at blank lines."""

    suffixes: ClassVar[tuple[str, ...]] = (
        *(".txt", ".text", ".log", ".rst", ".adoc", ".asciidoc", ".org", ".tex", ".vtt", ".srt"),
    )
    version: ClassVar[int] = 1
    isolate: ClassVar[bool] = False

    def read(self, data: bytes, source: str) -> Document:
        text, encoding = decode(data)
        blocks = tuple(Block(span=span, kind="paragraph") for span in self.limited(paragraph_spans(text)))
        meta = {"parser": "text", "encoding": encoding}
        return Document(text=text, source=source, title=file_stem(source), blocks=blocks, meta=meta)
