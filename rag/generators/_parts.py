"""The parts of a prompt: what is computed, whole chunks, and what is left of chunks that were cut.

Of a chunk that was cut the tokens are those of the whole chunk, tokenised as it is when it stands whole, less those of
the parts that were left out. A word that a cut parts may be one token: it is kept, and the prompt shows it, so that the
prompt shows what the model reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rag.answer import Prompt
from rag.prompt import piece_text
from rag.types import CompressedContext, Document, Piece, Span, content_key

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Cut", "Part", "Plan", "as_read", "cut_of", "kept_rows"]


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens of a prompt; those of a chunk, which can be reused, have its id and the document that it is from, `owner`.

    Of a chunk that was cut, `whole` are the tokens of all of it and `rows` the places of `ids` in them.
    """

    ids: tuple[int, ...]
    owner: str = ""
    whole: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    chunk_id: str = ""


@dataclass(frozen=True, slots=True)
class Cut:
    """A chunk that was cut, as its whole tokens, the places of those that are read, and their text."""

    whole: tuple[int, ...]
    rows: tuple[int, ...]
    text: str

    def part(self, owner: str, chunk_id: str = "") -> Part:
        return Part(tuple(self.whole[row] for row in self.rows), owner, self.whole, self.rows, chunk_id)


@dataclass(frozen=True, slots=True)
class Plan:
    """A prompt as it will be read, in `parts`; `documents` are those of the pieces, by id."""

    context: CompressedContext
    documents: Mapping[str, Document]
    prompt: Prompt
    parts: Sequence[Part]

    @property
    def ids(self) -> list[int]:
        return [token for part in self.parts for token in part.ids]


def cut_of(piece: Piece, document: Document, tokenizer: Tokenizer, most: int) -> Cut | None:
    """`piece` as a part of its chunk, which is `document` at the piece's span.

    None where it has to be computed: it is whole or no slice of the chunk, nothing to read is left, the chunk has more
    than `most` tokens, or what is left would read as a delimiter where two kept parts meet.
    """
    chunk = document.text[piece.span.start : piece.span.end]
    if not piece.verbatim or piece.kept in ((), (piece.span,)) or not chunk.strip():
        return None
    whole_text, closing = piece_text(chunk), piece_text("")
    lead = piece.span.start + len(chunk) - len(chunk.lstrip())
    end = len(whole_text) - len(closing)
    kept = [Span(max(0, one.start - lead), min(end, one.end - lead)) for one in piece.kept if one.end > lead]
    coded = tokenizer.encode(whole_text, add_special_tokens=False)
    rows = kept_rows(whole_text, coded.offsets, [one for one in kept if one.start < one.end])
    for edge in (0, -1):
        while rows and not whole_text[slice(*coded.offsets[rows[edge]])].strip():
            del rows[edge]  # a piece is shown without white space around it
    if not rows or len(coded.ids) > most:
        return None
    last = rows[-1] + 1
    rows += [row for row, (_, stop) in enumerate(coded.offsets) if row >= last and stop > end]
    text = str(tokenizer.decode([coded.ids[row] for row in rows], skip_special_tokens=False))
    if "\ufffd" in text and "\ufffd" not in whole_text:
        return None  # a cut went through the bytes of a letter
    body = text[: -len(closing)]
    if not text.endswith(closing) or piece_text(body) != body.strip() + closing:
        return None
    return Cut(tuple(coded.ids), tuple(rows), text)


def kept_rows(text: str, offsets: Sequence[tuple[int, int]], kept: Sequence[Span]) -> list[int]:
    """The tokens of `text` that have more of a kept span than white space, and those of white space that lie in one.

    `offsets` may leave out white space that a token begins with; tokens may share a character that they have bytes of.
    """
    rows: list[int] = []
    stop = 0
    for row, (start, end) in enumerate(offsets):
        start, stop = min(start, stop), max(end, stop)
        own = text[start:stop]
        shared = [text[max(start, one.start) : min(stop, one.end)] for one in kept]
        if any(part and (not part.isspace() or own.isspace()) for part in shared):
            rows.append(row)
    return rows


def as_read(prompt: Prompt, cuts: Mapping[int, Cut]) -> Prompt:
    """`prompt`, behind its start a head and a text for every piece, with the texts of `cuts`, by the piece's number."""
    segments = list(prompt.segments)
    for number, cut in cuts.items():
        at = 2 + 2 * number
        segments[at] = replace(segments[at], text=cut.text, key=content_key(segments[at].role, cut.text))
    return Prompt(segments=tuple(segments))
