"""What all chunkers with a size limit share: the limit itself, its checks, and how a range becomes a chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from chunkers._pack import Ruler
from rag.errors import ConfigError
from rag.protocols import Chunker, TokenCounter, service
from rag.text import TokenMap
from rag.types import Chunk, Document, Span

__all__ = ["DEFAULT_TOKENS", "SizedChunker", "tiles_of"]

DEFAULT_TOKENS = 256
"""The limit where neither the config nor the counter has one."""

_CHARS_PER_TOKEN = 12
"""Generous for prose (4 to 5). It stops what a tokenizer takes for one unknown word, however long that is."""


@dataclass(frozen=True, kw_only=True)
class SizedChunker(Chunker):
    """Base of chunkers whose header + text never exceed `max_tokens`, nor their text `max_chars`.

    `max_tokens`: None means the limit of the counter, or 256. `max_chars`: None means 12 x max_tokens.
    """

    tiles: ClassVar[bool] = True
    """Chunks joined are the text, as long as overlap is off."""

    counter: TokenCounter = service()
    max_tokens: int | None = None
    max_chars: int | None = None

    def __post_init__(self) -> None:
        limit = self.counter.limit
        self._check_at_least("max_tokens", self.max_tokens, 1)
        self._check_at_least("max_chars", self.max_chars, 1)
        if self.max_tokens is not None and limit is not None and self.max_tokens > limit:
            raise ConfigError(
                f"{self.plugin}: max_tokens is {self.max_tokens}, but {self.counter.name!r} reads {limit} tokens "
                f"at most; lower max_tokens or leave it out"
            )

    @property
    def plugin(self) -> str:
        """The name of this plugin, which its chunks carry."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    @property
    def token_limit(self) -> int:
        """`max_tokens`, resolved."""
        return self.max_tokens or self.counter.limit or DEFAULT_TOKENS

    @property
    def char_limit(self) -> int:
        """`max_chars`, resolved."""
        return self.max_chars or _CHARS_PER_TOKEN * self.token_limit

    def ruler(
        self, document: Document, *, header: Callable[[int], str] | None = None, tokens: TokenMap | None = None
    ) -> Ruler:
        """The limits of this chunker, laid on one document."""
        return Ruler(
            document,
            self.counter,
            max_tokens=self.token_limit,
            max_chars=self.char_limit,
            header=header,
            tokens=tokens,
        )

    def cut(
        self,
        document: Document,
        ranges: Iterable[tuple[int, int]],
        tokens: TokenMap,
        header: Callable[[int], str] | None = None,
        parent: Span | None = None,
    ) -> list[Chunk]:
        """The chunks at `ranges`; `header` gives the context line for a start, all share `parent`."""
        return [
            Chunk.cut(
                document,
                start,
                end,
                counter=tokens,
                chunker=self.plugin,
                header=header(start) if header else "",
                parent=parent,
            )
            for start, end in ranges
        ]

    def _check_at_least(self, name: str, value: int | None, least: int) -> None:
        if value is not None and value < least:
            raise ConfigError(f"{self.plugin}: {name} must be >= {least}, not {value}")


def tiles_of(ends: Iterable[int], start: int = 0) -> list[tuple[int, int]]:
    """Ranges that touch each other, from their ends."""
    return list(pairwise((start, *ends)))
