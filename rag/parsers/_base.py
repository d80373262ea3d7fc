"""What all parsers of this room share: the limits, and one way to fail."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from rag.errors import InputError, RagError
from rag.parsers._limits import MAX_CHARACTERS, MAX_FILE_BYTES
from rag.protocols import Parser
from rag.types import Document

__all__ = ["FileParser", "file_stem"]


class FileParser(Parser):
    """A parser that ends in a Document or in an InputError that starts with the source, whatever the bytes are."""

    isolate: ClassVar[bool]
    """True for formats whose reader may crash, hang or eat memory: ParserPool runs it in a child process."""

    def parse(self, data: bytes, *, source: str) -> Document:
        if not data:
            raise InputError(f"{source}: the file is empty")
        if len(data) > MAX_FILE_BYTES:
            raise InputError(f"{source}: {len(data):,} bytes; at most {MAX_FILE_BYTES:,} are read. Split the file")
        try:
            document = self.read(data, source)
        except InputError as error:
            raise _named(error, source) from error
        except RagError:
            raise
        except MemoryError as error:
            raise InputError(f"{source}: reading it needs more memory than is allowed") from error
        except Exception as error:  # the readers below raise whatever they like on damaged files
            raise InputError(f"{source}: damaged, or not what its suffix says: {_reason(error)}") from error
        if len(document.text) > MAX_CHARACTERS:
            raise InputError(f"{source}: {len(document.text):,} characters; at most {MAX_CHARACTERS:,} are kept")
        if not document.text.strip():
            raise InputError(f"{source}: the file holds no text")
        return document

    @abstractmethod
    def read(self, data: bytes, source: str) -> Document:
        """The document of data that is neither empty nor too large; may raise anything."""


def file_stem(source: str) -> str:
    """`guide` for `docs/guide.md`: the title of a document that names none."""
    name = source.rsplit("/", 1)[-1]
    stem, dot, _ = name.rpartition(".")
    return stem if dot and stem else name


def _named(error: InputError, source: str) -> InputError:
    message = str(error)
    return error if message.startswith(f"{source}: ") else InputError(f"{source}: {message}")


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
