"""The vocabulary: Document -> Chunk -> Hit -> Bubble -> CompressedContext (-> Answer, in rag/answer.py).

Everything is frozen. A later stage never fills in a field of an earlier one. Offsets are Unicode code
points of `Document.text`, spans are half-open. This module needs the standard library only.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rag.protocols import SliceCounter

__all__ = [
    "Block",
    "BlockKind",
    "Bubble",
    "Chunk",
    "CompressedContext",
    "Decision",
    "Document",
    "Hit",
    "Page",
    "Piece",
    "Span",
    "content_key",
    "parse_chunk_id",
    "surround_of",
]

BlockKind = Literal["heading", "paragraph", "table", "row", "code", "list"]


def _digest(*parts: str, size: int) -> str:
    """Hex digest of the parts; a length before each part keeps ("a", "bc") and ("ab", "c") apart."""
    state = hashlib.blake2b(digest_size=size)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "big"))
        state.update(data)
    return state.hexdigest()


def content_key(header: str, text: str, surround: str = "") -> str:
    """32 hex digits naming a content: vectors and KV blocks are stored under it.

    A vector that was read with the text around it is another content than one of the text alone, in the same space of
    the same model: both may stand in one index under one fingerprint.
    """
    return _digest(header, text, surround, size=16) if surround else _digest(header, text, size=16)


_SURROUND = re.compile(r"(\d{1,9})-(\d{1,9})-(\d{1,2}|100)-[0-9a-f]{16}(-sentences)?", re.ASCII)


def surround_of(text: str, span: Span, stretch: Span, percent: int = 100, *, sentences: bool = False) -> str:
    """Names what `stretch` holds around `span`: `before-after-percent-digest`; "" when it holds nothing.

    `before` and `after` count characters. `percent`, 1 to 100, is the weight of the vector that is read with them; the
    rest is that of the text alone. `sentences`: the weight is that of the vectors of the sentences there, each read
    alone, instead of that of the chunk read with its stretch; the name ends with `-sentences`.
    """
    before, after = text[stretch.start : span.start], text[span.end : stretch.end]
    if not (stretch.contains(span) and stretch.end <= len(text)):
        raise ValueError(f"{stretch} does not hold {span} inside of a text with {len(text)} characters")
    kind = "-sentences" if sentences else ""
    return f"{len(before)}-{len(after)}-{percent}-{_digest(before, after, size=8)}{kind}" if before or after else ""


def parse_chunk_id(chunk_id: str) -> tuple[str, Span]:
    """`("0f..", Span(10, 20))` for `"0f..:10-20"`; ValueError when it is no chunk id."""
    doc_id, colon, place = chunk_id.rpartition(":")
    start, dash, end = place.partition("-")
    if not (doc_id and colon and dash and start.isdecimal() and end.isdecimal()):
        raise ValueError(f"{chunk_id!r} is not a chunk id; a chunk id looks like 0123456789abcdef:120-480")
    return doc_id, Span(int(start), int(end))


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Half-open range [start, end) of code points, 0 <= start <= end."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"a span needs 0 <= start <= end, not start={self.start}, end={self.end}")

    def __len__(self) -> int:
        return self.end - self.start

    def __bool__(self) -> bool:
        return True

    def contains(self, other: Span) -> bool:
        """True when `other` lies wholly inside this span."""
        return self.start <= other.start and other.end <= self.end

    def overlaps(self, other: Span) -> bool:
        """True when at least one character is shared."""
        return self.start < other.end and other.start < self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A structural part of a document. `level` is 1..6 for headings and the nesting depth of list items."""

    span: Span
    kind: BlockKind
    level: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A printed page (1-based number, as a reader counts) and the text on it."""

    number: int
    span: Span


@dataclass(frozen=True, kw_only=True)
class Document:
    """One parsed source. `id` names this text under this source name, so ingestion is idempotent.

    `blocks` are sorted by start; a table block may hold row blocks inside it. `meta` holds JSON scalars only.
    """

    text: str
    source: str
    title: str = ""
    blocks: tuple[Block, ...] = ()
    pages: tuple[Page, ...] = ()
    meta: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """16 hex digits of a hash of (source, text)."""
        return _digest(self.source, self.text, size=8)

    @cached_property
    def _page_starts(self) -> list[int]:
        return [page.span.start for page in self.pages]

    @cached_property
    def _headings(self) -> tuple[list[int], list[tuple[str, ...]]]:
        starts: list[int] = []
        paths: list[tuple[str, ...]] = []
        stack: list[tuple[int, str]] = []
        for block in self.blocks:
            if block.kind != "heading":
                continue
            while stack and stack[-1][0] >= block.level:
                stack.pop()
            words = self.text[block.span.start : block.span.end].strip().strip("#").strip()
            stack.append((block.level, " ".join(words.split())))
            starts.append(block.span.start)
            paths.append(tuple(name for _, name in stack))
        return starts, paths

    def section_at(self, offset: int) -> tuple[str, ...]:
        """The heading path in force at `offset`; a heading belongs to the section that it opens."""
        starts, paths = self._headings
        at = bisect_right(starts, offset) - 1
        return paths[at] if at >= 0 else ()

    def page_at(self, offset: int) -> int | None:
        """The number of the page that holds `offset`, or None when the source has no pages."""
        at = bisect_right(self._page_starts, offset) - 1
        return self.pages[at].number if at >= 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """An exact slice of a document: `text == document.text[span.start:span.end]`.

    Plugins build chunks through `Chunk.cut` only. `header` is context for the encoder (a heading path, a
    table's header row) and is never part of `text`. `parent` is the larger span that a small child stands for.
    `surround` names the text around the chunk that its vector is read with (late chunking); "" for none.
    """

    doc_id: str
    span: Span
    text: str
    token_count: int
    section: tuple[str, ...] = ()
    header: str = ""
    chunker: str = ""
    parent: Span | None = None
    surround: str = ""

    @classmethod
    def cut(
        cls,
        document: Document,
        start: int,
        end: int,
        *,
        counter: SliceCounter,
        chunker: str,
        header: str = "",
        parent: Span | None = None,
        stretch: Span | None = None,
    ) -> Chunk:
        """The chunk at [start, end) of `document`; ValueError when that is outside of the text or empty.

        `stretch`: what its vector is read with, the chunk and text around it; None for the chunk alone.
        """
        if not 0 <= start < end <= len(document.text):
            raise ValueError(f"[{start}, {end}) is no part of {document.source!r} with {len(document.text)} characters")
        return cls(
            doc_id=document.id,
            span=Span(start, end),
            text=document.text[start:end],
            token_count=counter.count_slice(document.text, start, end),
            section=document.section_at(_first_visible(document.text, start, end)),
            header=header,
            chunker=chunker,
            parent=parent,
            surround="" if stretch is None else surround_of(document.text, Span(start, end), stretch),
        )

    @property
    def id(self) -> str:
        """`doc_id:start-end`: a place in one version of a document."""
        return f"{self.doc_id}:{self.span.start}-{self.span.end}"

    @property
    def key(self) -> str:
        """Hash of header, text and surround: the same content has the same key wherever it stands."""
        return content_key(self.header, self.text, self.surround)

    @property
    def stretch(self) -> Span:
        """The part of the document that the vector is read with; the chunk's own span when it has no surround."""
        before, after, _ = self._surround
        return Span(self.span.start - before, self.span.end + after)

    @property
    def late_percent(self) -> int:
        """How much of the vector is read with the text around; 0 when the chunk has no surround."""
        return self._surround[2]

    @property
    def of_sentences(self) -> bool:
        """True when the other part of the vector is made of those of the sentences in the stretch."""
        return self.surround.endswith("-sentences")

    @property
    def _surround(self) -> tuple[int, int, int]:
        """(characters before, after, percent); ValueError when `surround` says nothing of the kind."""
        if not self.surround:
            return 0, 0, 0
        found = _SURROUND.fullmatch(self.surround)
        before, after, percent = map(int, found.groups()[:3]) if found else (0, 0, 0)
        if not before + after or not percent or before > self.span.start:
            raise ValueError(f"chunk {self.id}: {self.surround!r} names no text around it")
        return before, after, percent

    def within(self, text: str) -> tuple[str, int, int]:
        """What the encoder reads of a chunk with a surround, and where the chunk is in it; `text` is its document's.

        ValueError when that text is not the one around the chunk.
        """
        stretch = self.stretch
        if stretch.end > len(text) or self._named(text, stretch) != self.surround:
            raise ValueError(f"chunk {self.id}: the text around it is not the one that its vector is read with")
        lead = f"{self.header}\n" if self.header else ""
        start = len(lead) + self.span.start - stretch.start
        return lead + text[stretch.start : stretch.end], start, start + len(self.span)

    def _named(self, text: str, stretch: Span) -> str:
        return surround_of(text, self.span, stretch, self.late_percent, sentences=self.of_sentences)

    @property
    def embed_text(self) -> str:
        """What the encoder reads: header, newline, text."""
        return f"{self.header}\n{self.text}" if self.header else self.text


def _first_visible(text: str, start: int, end: int) -> int:
    """First offset in [start, end) that is not white space, else `start`."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()) if not piece.isspace() else start


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A retrieved chunk. Higher `score` is better, always; `rank` starts at 1; `parts` maps component to score."""

    chunk: Chunk
    score: float
    rank: int
    retriever: str
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One line of the ledger: what a selector did with one candidate, and why.

    `tokens` is what it would cost, 0 for a candidate that was not weighed any more.
    A candidate is a chunk, or with `span` a part of it, in document coordinates. `parts` maps a component of the
    relevance to its score.
    """

    chunk_id: str
    action: str
    relevance: float
    gain: float
    redundancy: float
    tokens: int
    reason: str
    span: Span | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bubble:
    """The selected context, in reading order, with the ledger of every decision that led to it.

    `kept` has for each hit the parts of its chunk that were chosen, sorted, in document coordinates; () for all hits
    means whole chunks.
    """

    question: str
    hits: tuple[Hit, ...]
    token_count: int
    budget: int
    decisions: tuple[Decision, ...]
    kept: tuple[tuple[Span, ...], ...] = ()

    @property
    def spans(self) -> tuple[tuple[Span, ...], ...]:
        """What of each hit was chosen, whole chunks as one span."""
        return self.kept or tuple((hit.chunk.span,) for hit in self.hits)

    @property
    def texts(self) -> tuple[str, ...]:
        """The chosen text of each hit: the slices of `spans`, joined."""
        return tuple(
            "".join(hit.chunk.text[one.start - hit.chunk.span.start : one.end - hit.chunk.span.start] for one in spans)
            for hit, spans in zip(self.hits, self.spans, strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What is left of one chunk. `kept` are spans in document coordinates; `verbatim` is False for rewriters only.

    `score` is the chunk's relevance as the selector weighed it, larger is better; None where nothing was weighed.
    """

    chunk_id: str
    doc_id: str
    span: Span
    text: str
    kept: tuple[Span, ...]
    verbatim: bool = True
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedContext:
    """The pieces that the generator reads, in reading order.

    `decisions` has a line for each part that the compressor weighed; () where it weighed none.
    """

    question: str
    pieces: tuple[Piece, ...]
    token_count: int
    source_token_count: int
    compressor: str
    decisions: tuple[Decision, ...] = ()

    @property
    def keep_ratio(self) -> float:
        """Kept tokens over source tokens, 1.0 for an empty source."""
        return self.token_count / self.source_token_count if self.source_token_count else 1.0
