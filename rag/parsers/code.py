"""Source code: the file as it is, one block, the language on record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from rag.parsers._base import FileParser
from rag.parsers._decode import decode
from rag.text import trimmed
from rag.types import Block, Document, Span

_LANGUAGES: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys((".py", ".pyi"), "python"),
        **dict.fromkeys((".js", ".mjs", ".cjs", ".jsx"), "javascript"),
        **dict.fromkeys((".ts", ".mts", ".cts"), "typescript"),
        **{".tsx": "tsx", ".java": "java", ".go": "go", ".rs": "rust", ".c": "c", ".cs": "csharp", ".rb": "ruby"},
        **dict.fromkeys((".cc", ".cpp", ".cxx", ".h", ".hh", ".hpp", ".hxx"), "cpp"),
        **{".php": "php", ".sh": "bash", ".bash": "bash", ".sql": "sql"},
    }
)


@dataclass(frozen=True, kw_only=True)
class CodeParser(FileParser):
    """Keeps every character but the byte order mark, line ends included; the title is the file's name.

    The whole text is one code block. `meta["language"]` names the language by the suffix of the file.
    """

    suffixes: ClassVar[tuple[str, ...]] = tuple(_LANGUAGES)
    version: ClassVar[int] = 1
    isolate: ClassVar[bool] = False

    def read(self, data: bytes, source: str) -> Document:
        text, encoding = decode(data)
        whole = trimmed(text, Span(0, len(text)))
        blocks = (Block(span=whole, kind="code"),) if len(whole) else ()
        name = source.rsplit("/", 1)[-1]
        meta = {"parser": "code", "encoding": encoding}
        language = _LANGUAGES.get("." + name.rpartition(".")[2].lower())
        meta |= {"language": language} if language else {}
        return Document(text=text, source=source, title=name, blocks=blocks, meta=meta)
