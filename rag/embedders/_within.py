"""Windowed late chunking: vectors of spans, pooled from token vectors that were read with the text around them.

Late chunking (arXiv 2409.04701) reads a whole text once and pools the token vectors of each span. Deviations: an
encoder of 256 tokens does not read a whole text, so windows that overlap by half are read, and each token's vector is
taken from the window where it stands most central. The special token before (after) a text belongs to the spans at its
beginning (end), so that a text of one window that is one span has the vector that it has alone.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from rag.embedders._batches import Ids, Runtime, filled
from rag.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from rag.protocols import Vectors

    Sums = NDArray[np.float64]

__all__ = ["Frame", "encode_within", "frame_of", "owned", "window_starts"]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What stands around the tokens of every window (special tokens, a prompt), and how many tokens fit inside."""

    before: Ids
    after: Ids
    room: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """A span as tokens [first, last) of its text; `opens` and `closes` when the text begins, or ends, with it."""

    row: int
    first: int
    last: int
    opens: bool
    closes: bool


@dataclass(frozen=True, slots=True)
class _Use:
    """A window of one text: it begins at token `start` and gives tokens [first, last); who wants some of them."""

    start: int
    first: int
    last: int
    pieces: Sequence[_Piece]


def frame_of(tokenizer: Tokenizer, prompt: str, most_tokens: int) -> Frame:
    """The frame of a model that reads `most_tokens` tokens, its special tokens counted in."""
    inner = tokenizer.encode(prompt, add_special_tokens=False).ids
    whole = tokenizer.encode(f"{prompt}a", add_special_tokens=True)
    marks = whole.special_tokens_mask
    lead = marks.index(0)
    trail = list(reversed(marks)).index(0)
    before, after = tuple(whole.ids[:lead] + inner), tuple(whole.ids[len(marks) - trail :])
    return Frame(before=before, after=after, room=most_tokens - len(before) - len(after))


def window_starts(count: int, room: int) -> list[int]:
    """First tokens of the windows over `count` tokens: half a window apart, the last one at the end of the text."""
    if count <= room:
        return [0]
    return [*range(0, count - room, max(1, room // 2)), count - room]


def owned(starts: Sequence[int], count: int, room: int) -> list[tuple[int, int]]:
    """Which tokens each window gives, as ranges that tile [0, count): where they stand most central.

    Between windows at s < t, token i is more central in the second when i - t > s + room - 1 - i.
    """
    edges = [(s + t + room) // 2 for s, t in pairwise(starts)]
    return list(zip([0, *edges], [*edges, count], strict=True))


def encode_within(
    runtime: Runtime, tokenizer: Tokenizer, frame: Frame, pieces: Sequence[tuple[str, int, int]], batch_tokens: int
) -> Vectors:
    """(len(pieces), dimension) unit rows: the vector of text[start:end] for every piece (text, start, end).

    Equal texts and equal windows are read once; the order of `pieces` changes no bytes. A piece without a token, such
    as white space, has the vector of an empty text.
    """
    import numpy as np

    from rag.vectors import as_unit

    windows = _windows(tokenizer, frame, pieces)
    order = sorted(windows, key=lambda ids: (len(ids), ids))
    sums = np.zeros((len(pieces), runtime.dimension))
    for batch in filled(order, min(batch_tokens, runtime.most_tokens)):
        states = runtime.states(batch)
        at = 0
        for ids in batch:
            for use in windows[ids]:
                _add(sums, states[at : at + len(ids)], use, frame)
            at += len(ids)
    return as_unit(sums)  # a mean and a sum have one direction


def _windows(tokenizer: Tokenizer, frame: Frame, pieces: Sequence[tuple[str, int, int]]) -> dict[Ids, list[_Use]]:
    """The token ids of every window that some piece needs -> where it is used."""
    wanted: dict[str, list[tuple[int, int, int]]] = {}
    for row, (text, start, end) in enumerate(pieces):
        if not 0 <= start < end <= len(text):
            raise InputError(f"embedder minilm: [{start}, {end}) is no part of a text with {len(text)} characters")
        wanted.setdefault(text, []).append((row, start, end))
    windows: dict[Ids, list[_Use]] = {}
    encodings = tokenizer.encode_batch(list(wanted), add_special_tokens=False)
    for (text, spans), encoding in zip(wanted.items(), encodings, strict=True):
        ids, offsets = encoding.ids, encoding.offsets
        inside = [_piece(row, start, end, offsets, len(text)) for row, start, end in spans]
        empty = [_Piece(piece.row, 0, 0, True, True) for piece in inside if piece.first == piece.last]
        if empty:
            windows.setdefault((*frame.before, *frame.after), []).append(_Use(0, 0, 0, empty))
        starts = window_starts(len(ids), frame.room)
        for start, (first, last) in zip(starts, owned(starts, len(ids), frame.room), strict=True):
            near = [piece for piece in inside if piece.first < last and first < piece.last]
            if near:
                window = (*frame.before, *ids[start : start + frame.room], *frame.after)
                windows.setdefault(window, []).append(_Use(start, first, last, near))
    return windows


def _piece(row: int, start: int, end: int, offsets: Sequence[tuple[int, int]], length: int) -> _Piece:
    """Every token that shares a character with [start, end)."""
    first = bisect_right(offsets, start, key=lambda pair: pair[1])
    last = max(first, bisect_left(offsets, end, key=lambda pair: pair[0]))
    return _Piece(row, first, last, start == 0, end == length)


def _add(sums: Sums, states: Vectors, use: _Use, frame: Frame) -> None:
    """Add to every piece what this window gives of it."""
    lead, trail = len(frame.before), len(frame.after)
    shift = lead - use.start
    for piece in use.pieces:
        first, last = max(piece.first, use.first), min(piece.last, use.last)
        sums[piece.row] += states[first + shift : last + shift].sum(axis=0, dtype="f8")
        if piece.opens and first == piece.first:
            sums[piece.row] += states[:lead].sum(axis=0, dtype="f8")
        if piece.closes and last == piece.last:
            sums[piece.row] += states[len(states) - trail :].sum(axis=0, dtype="f8")
