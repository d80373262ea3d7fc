"""Vectors for chunks, whether they are read alone or with the text around them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rag.errors import ConfigError, InputError

if TYPE_CHECKING:
    from rag.protocols import Embedder, TokenCounter, Vectors
    from rag.types import Chunk

__all__ = ["check_reads", "embed_chunks"]


def embed_chunks(embedder: Embedder, chunks: Sequence[Chunk], text_of: Callable[[str], str]) -> dict[str, Vectors]:
    """Key -> vector of every content among `chunks`; `text_of` gives the text of a document by its id.

    `text_of` is asked only about chunks with a surround. Where their vector is a mix, it is made of two unit vectors
    and scaled to length 1. ConfigError when the embedder cannot read those, InputError
    when the text around a chunk is not the one that its surround names.
    """
    contents = {chunk.key: chunk for chunk in chunks}
    alone = {key: chunk.embed_text for key, chunk in contents.items() if chunk.late_percent < 100}
    around = {key: _piece(chunk, text_of) for key, chunk in contents.items() if chunk.surround}
    late = {key: piece for key, piece in around.items() if not contents[key].of_sentences}
    vectors: dict[str, Vectors] = {}
    if alone:
        vectors.update(zip(alone, embedder.embed(list(alone.values())), strict=True))
    if late:
        for key, vector in zip(late, embedder.embed_within(list(late.values())), strict=True):
            vectors[key] = _mixed(vectors[key], vector, contents[key].late_percent) if key in vectors else vector
    pooled = {key: piece for key, piece in around.items() if contents[key].of_sentences}
    if pooled:
        for key, vector in zip(pooled, _pooled(embedder, list(pooled.values())), strict=True):
            vectors[key] = _mixed(vectors[key], vector, contents[key].late_percent) if key in vectors else vector
    return vectors


def _pooled(embedder: Embedder, pieces: Sequence[tuple[str, int, int]]) -> list[Vectors]:
    """Half the mean of the sentences in text[start:end], half that of all in the text; weights are characters.

    Every distinct sentence is embedded once. A sentence that the encoder cannot read at once counts in parts.
    """
    from rag.vectors import as_unit

    split = [_sentences(text, embedder.counter) for text, _, _ in pieces]
    texts = [[text[a:b] for a, b in spans] for (text, _, _), spans in zip(pieces, split, strict=True)]
    rows = {one: row for row, one in enumerate(dict.fromkeys(one for each in texts for one in each))}
    matrix = embedder.embed(list(rows))
    found = []
    for (_, start, end), spans, each in zip(pieces, split, texts, strict=True):
        own = matrix[[rows[one] for one in each]]
        sizes = [b - a for a, b in spans]
        inside = [size if a < end and start < b else 0 for size, (a, b) in zip(sizes, spans, strict=True)]
        found.append(as_unit(as_unit(inside @ own) + as_unit(sizes @ own)))
    return found


def _sentences(text: str, counter: TokenCounter) -> list[tuple[int, int]]:
    """The sentences of a stretch, those over the limit in parts; blank ones are left out."""
    from rag.text import TokenMap, fit_tokens, sentence_spans
    from rag.types import Document

    tokens, limit = TokenMap(counter, text), counter.limit or len(text) + 1
    parts: list[tuple[int, int]] = []
    for span in sentence_spans(Document(text=text, source="")):
        start = span.start
        while start < span.end:
            end = fit_tokens(tokens, text, start, span.end, limit, span.end - start)
            if text[start:end].strip():
                parts.append((start, end))
            start = end
    return parts


def _mixed(alone: Vectors, late: Vectors, percent: int) -> Vectors:
    from rag.vectors import as_unit

    return as_unit(percent / 100 * late + (100 - percent) / 100 * alone)


def _piece(chunk: Chunk, text_of: Callable[[str], str]) -> tuple[str, int, int]:
    try:
        return chunk.within(text_of(chunk.doc_id))
    except ValueError as error:
        raise InputError(f"{error}; cut its document again with: rag rebuild") from None


def check_reads(chunker: Any, embedder: Embedder) -> None:
    """ConfigError when the chunker, or one inside it, cuts chunks that this embedder cannot embed."""
    if _reads_around(chunker) and not embedder.reads_within:
        raise ConfigError(
            f"the chunker wants vectors that are read with the text around a chunk (late chunking), and embedder "
            f"{embedder.fingerprint!r} gives no vectors of single tokens: set embedder: minilm with a BERT model and "
            "runtime auto, torch or numpy, or choose a chunker other than late"
        )


def _reads_around(plugin: Any) -> bool:
    if getattr(plugin, "reads_around", False):
        return True
    if not dataclasses.is_dataclass(plugin):
        return False
    inner = [getattr(plugin, field.name) for field in dataclasses.fields(plugin) if "nested" in field.metadata]
    return any(_reads_around(one) for value in inner for one in (value if isinstance(value, tuple) else (value,)))
