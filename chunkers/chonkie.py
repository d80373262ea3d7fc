"""Chonkie's chunkers, with exact spans, no lost text and a hard limit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from chunkers._base import SizedChunker, tiles_of
from chunkers._cuts import CutLevels
from chunkers._pack import join_small, split
from rag.errors import ConfigError, InputError, missing_extra
from rag.protocols import Embedder, service
from rag.text import safe_cut
from rag.types import Chunk, Document

Splitter = Literal["recursive", "sentence", "semantic"]

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""In the `repr` of objects without one of their own; it differs from run to run."""


@dataclass(frozen=True, kw_only=True)
class ChonkieChunker(SizedChunker):
    """Wraps a chunker of Chonkie; sizes are tokens of our counter, `semantic` reads vectors of our embedder.

    Only the places where Chonkie's pieces begin are taken, each proven against the text: chunks are exact slices that
    tile the document even where Chonkie drops text, and pieces that it lets pass over the limit are split again.
    `min_chars` is its least size of a piece (recursive) or of a sentence. `threshold`, `similarity_window` (sentences)
    and `skip_window` (groups; 0 is off, more is SDPM) are those of `semantic`.
    """

    splitter: Splitter = "recursive"
    min_chars: int = 24
    min_sentences: int = 1
    threshold: float = 0.8
    similarity_window: int = 3
    skip_window: int = 0
    embedder: Embedder = service()
    ready: Any = service(None)
    """A Chonkie chunker that the caller has made; it is used instead of one of `splitter`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least("min_chars", self.min_chars, 1)
        self._check_at_least("min_sentences", self.min_sentences, 1)
        self._check_at_least("similarity_window", self.similarity_window, 1)
        self._check_at_least("skip_window", self.skip_window, 0)
        if not 0 < self.threshold < 1:
            raise ConfigError(f"chonkie: threshold must be above 0 and below 1, not {self.threshold}")

    @property
    def shaped_by(self) -> str:
        return "" if self.ready is None else _ADDRESS.sub("", repr(self.ready))

    def chunk(self, document: Document) -> list[Chunk]:
        if not document.text.strip():
            return []
        ruler = self.ruler(document)
        cuts = CutLevels(document, ("lines", "sentences"))
        starts = located(document, ((piece.text, piece.start_index) for piece in self._pieces(document.text)))
        safe = {safe_cut(document.text, 0, start) for start in starts} - {0}
        ends: list[int] = []
        for start, end in tiles_of([*sorted(safe), len(document.text)]):
            ends.extend([end] if ruler.fits(start, end) else split(ruler, cuts, start, end))
        return self.cut(document, tiles_of(join_small(ruler, 0, ends, 1)), ruler.tokens)

    def _pieces(self, text: str) -> list[Any]:
        try:
            import chonkie
        except ImportError as error:
            raise missing_extra("chonkie", "chonkie", "the chunker 'chonkie'") from error
        if self.ready is not None:
            return list(self.ready.chunk(text))
        size = self.token_limit
        made: Any
        if self.splitter == "recursive":
            words = chonkie.RecursiveRules(levels=list(chonkie.RecursiveRules().levels or ())[:-1])
            made = chonkie.RecursiveChunker(self._count(), size, words, min_characters_per_chunk=self.min_chars)
        elif self.splitter == "sentence":
            made = chonkie.SentenceChunker(
                self._count(),
                size,
                min_sentences_per_chunk=self.min_sentences,
                min_characters_per_sentence=self.min_chars,
            )
        else:
            made = chonkie.SemanticChunker(
                _embeddings(chonkie.BaseEmbeddings, self.embedder, self._count()),
                threshold=self.threshold,
                chunk_size=size,
                similarity_window=self.similarity_window,
                min_sentences_per_chunk=self.min_sentences,
                min_characters_per_sentence=self.min_chars,
                skip_window=self.skip_window,
            )
        return list(made.chunk(text))

    def _count(self) -> Any:
        return cache(self.counter.count)


def located(document: Document, pieces: Iterable[tuple[str, int]]) -> list[int]:
    """Where the pieces, (text, start as Chonkie says), begin in the text; InputError when that cannot be proven.

    A start that holds its piece is believed; another is looked for after the piece before it.
    """
    text, starts, after = document.text, [], 0
    for piece, said in pieces:
        start = said if said >= after and text.startswith(piece, said) else text.find(piece, after)
        if start < 0:
            raise InputError(
                f"{document.source}: cannot prove the offsets of the pieces that Chonkie returned; use another "
                "splitter, or the chunker 'recursive'"
            )
        starts.append(start)
        after = start + 1
    return starts


def _embeddings(base: Any, embedder: Embedder, count: Callable[[str], int]) -> Any:
    """Our embedder in the shape that Chonkie asks for. Sentences over the model's limit are shortened for it."""

    class Embeddings(base):  # type: ignore[misc]
        dimension = embedder.dimension

        def embed(self, text: str) -> Any:
            return self.embed_batch([text])[0]

        def embed_batch(self, texts: list[str]) -> list[Any]:
            return list(embedder.embed([_within(embedder, text) for text in texts]))

        def get_tokenizer(self) -> Callable[[str], int]:
            return count

    return Embeddings()


def _within(embedder: Embedder, text: str) -> str:
    """The beginning of `text` that the model reads."""
    limit = embedder.counter.limit
    if limit is None or embedder.counter.count(text) <= limit:
        return text
    while (tokens := embedder.counter.offsets(text)) and len(tokens) > limit:
        text = text[: tokens[limit - 1][1]]
    return text
