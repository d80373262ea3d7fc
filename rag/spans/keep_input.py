"""What the keep head reads: token states of question and passage in one pass of the encoder.

Every token of the passage is seen together with the question, as in Provence (arXiv 2501.16214). A passage that does
not fit beside its question is read in windows that overlap, each with the question before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rag.protocols import Embedder, TokenCounter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Joint", "Place", "joint_states", "worded"]

Place = tuple[int, int]
"""Half-open range of characters of a passage."""

QUESTION_TOKENS = 64
"""More of a question is not read, so that a passage has room beside it."""
_JOINT = " [SEP] "
_LIMIT = 254
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, kw_only=True)
class Joint:
    """One question and one passage, read together. `places` (n) of the passage's tokens, `states` (n, d) of them,
    `asked` (m, d) of the question's tokens; rows have unit length. Without an encoder d is 0.
    """

    passage: str
    places: Sequence[Place]
    states: Floats
    asked: Floats


@dataclass(frozen=True, slots=True)
class _Window:
    """`text` is what is read; `asked` and `own` are places in it, `own` of the tokens from `first` on, which this
    window gives; `shift` leads from a place in `text` to one in the passage.
    """

    text: str
    asked: Sequence[Place]
    own: Sequence[Place]
    shift: int


def joint_states(question: str, passages: Sequence[str], embedder: Embedder) -> list[Joint]:
    """One entry a passage; all are read in one call of the embedder, each text of which is one forward pass."""
    counter = embedder.counter
    head = _head(question, counter)
    windows = [list(_windows(head, passage, counter)) for passage in passages]
    pieces = [(one.text, *place) for of in windows for one in of for place in (*one.asked, *one.own)]
    vectors = embedder.embed_within(pieces)
    made, at = [], 0
    for passage, of in zip(passages, windows, strict=True):
        places: list[Place] = []
        rows: list[int] = []
        asked: list[int] = []
        for one in of:
            asked = asked or list(range(at, at + len(one.asked)))
            at += len(one.asked)
            rows.extend(range(at, at + len(one.own)))
            at += len(one.own)
            places.extend((start + one.shift, end + one.shift) for start, end in one.own)
        made.append(Joint(passage=passage, places=places, states=vectors[rows], asked=vectors[asked]))
    return made


def _head(question: str, counter: TokenCounter) -> str:
    places = counter.offsets(question)
    return question if len(places) <= QUESTION_TOKENS else question[: places[QUESTION_TOKENS - 1][1]]


def _windows(head: str, passage: str, counter: TokenCounter) -> Iterator[_Window]:
    """Windows of the passage behind the question; each gives the tokens that no window before it gave."""
    lead = f" {head}{_JOINT}"  # a space at either end, so that no token carries the special tokens around the text
    asked = [(start, end) for start, end in counter.offsets(lead) if end <= 1 + len(head)]
    room = max(16, (counter.limit or _LIMIT) - len(asked) - 1)
    places = [place for place in counter.offsets(passage) if place[1] > place[0]]
    given = 0
    while given < len(places):
        first = given if given + room >= len(places) or given == 0 else given - room // 4
        first = max(0, min(first, len(places) - room)) if given else 0
        last = min(first + room, len(places))
        begin, end = places[first][0], places[last - 1][1]
        text = f"{lead}{passage[begin:end]} "
        shift = begin - len(lead)
        own = [(start - shift, stop - shift) for start, stop in places[given:last]]
        yield _Window(text, asked, own, shift)
        given = last


def worded(passage: str) -> Joint:
    """The words of a passage in place of its tokens, without states, for where no encoder reads them."""
    import numpy as np

    places = [found.span() for found in _WORD.finditer(passage)]
    nothing = np.zeros((len(places), 0), dtype=np.float32)
    return Joint(passage=passage, places=places, states=nothing, asked=np.zeros((0, 0), dtype=np.float32))
