"""What all parsers of this room share: the limits, one way to fail, and what is noted about every text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

from rag.errors import InputError, RagError
from rag.limits import Limits
from rag.protocols import Parser, service
from rag.text import invisible_counts
from rag.types import Document

__all__ = ["FileParser", "check_size", "file_stem"]

_Part = TypeVar("_Part")


@dataclass(frozen=True, kw_only=True)
class FileParser(Parser):
    """A parser that ends in a Document or in an InputError that starts with the source, whatever the bytes are.

    Characters that a reader does not see stay in the text, since every slice is exact, and are counted in its meta.
    """

    limits: Limits = service(default=Limits())
    isolate: ClassVar[bool]
    """True for formats whose reader may crash, hang or eat memory: ParserPool runs it in a child process."""

    def parse(self, data: bytes, *, source: str) -> Document:
        if not data:
            raise InputError(f"{source}: the file is empty")
        if len(data) > self.limits.max_file_bytes:
            raise InputError(f"{source}: {self.limits.over('max_file_bytes', len(data))}")
        try:
            document = self.read(data, source)
        except InputError as error:
            raise _named(error, source) from error
        except RagError:
            raise
        except MemoryError as error:
            raise InputError(f"{source}: {self.limits.over('max_address_bytes')}") from error
        except Exception as error:  # the readers below raise whatever they like on damaged files
            raise InputError(f"{source}: damaged, or not what its suffix says: {_reason(error)}") from error
        check_size(document, source, self.limits)
        if not document.text.strip():
            raise InputError(f"{source}: the file holds no text")
        unseen = invisible_counts(document.text)
        return replace(document, meta={**document.meta, **unseen}) if unseen else document

    @abstractmethod
    def read(self, data: bytes, source: str) -> Document:
        """The document of data that is neither empty nor too large; may raise anything."""

    def limited(self, parts: Iterable[_Part]) -> Iterator[_Part]:
        """The parts, as long as a document may have that many blocks."""
        for number, part in enumerate(parts):
            if number >= self.limits.max_blocks:
                raise InputError(self.limits.over("max_blocks"))
            yield part


def check_size(document: Document, source: str, limits: Limits) -> None:
    """InputError when the document is over the limits on characters or blocks."""
    for name, found in (("max_characters", len(document.text)), ("max_blocks", len(document.blocks))):
        if found > getattr(limits, name):
            raise InputError(f"{source}: {limits.over(name, found)}")


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
