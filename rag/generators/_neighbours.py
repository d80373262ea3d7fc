"""What a chunk's block is made behind with `blocks: neighbour-mean`: its own nearest neighbours in the index.

What is retrieved together resembles what stands near in the index, so a block that was made behind its neighbours has
seen something like the prompts that it will stand in. They stand behind the plain passages of `_donors`: without those,
so close to the start, the first token of an answer strays three times as far. Neighbours are exact, by the cosine of
the index's own vectors, and are found for all chunks at once, which is kept as a derived file of the index.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rag.errors import ConfigError, RagError, missing_extra
from rag.prompt import build_prompt
from rag.protocols import Corpus
from rag.types import Chunk, CompressedContext, Piece, content_key
from rag.vectors import Vectors, as_unit

__all__ = ["EACH", "TOKENS", "Behind", "Neighbours", "between", "nearest", "no_vectors"]

GROUPS, EACH = 4, 2
"""A block is the mean behind so many plain passages, each with so many neighbours behind it."""
TOKENS = 256
"""Of a neighbour, its first ones."""
_FILE = f"kv-neighbours-{GROUPS * EACH}"
_PART, _CELLS = 1_000, 1 << 22
_HELD = 20_000
"""Neighbours whose tokens stay in memory: at most 1 KB each."""
_ROUNDING = 1e-5
"""More than a cosine of faiss, in float32, strays from one in float64."""

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class Behind:
    """What stands between each plain passage and a chunk, as ids, and the documents that it is from."""

    between: tuple[Ids, ...]
    sources: tuple[str, ...] = ()


def nearest(vectors: Vectors, texts: Sequence[Hashable]) -> list[list[int]]:
    """For every row the GROUPS * EACH nearest others by cosine, best first, ties by row.

    What has the same text is no neighbour, and of others with one text the first stands for all: a text counts once.
    Cosines are float64, and equal where they differ by rounding (the 9th place).
    """
    try:
        import faiss
    except ImportError as error:
        raise missing_extra("faiss-cpu", "faiss", "local: blocks neighbour-mean") from error

    unit, count = as_unit(vectors), GROUPS * EACH
    first: dict[Hashable, int] = {}
    own = [first.setdefault(text, at) for at, text in enumerate(texts)]
    known = np.fromiter(first.values(), dtype=np.int64)
    among, found = unit[known], [list[int]() for _ in own]
    todo, wanted = list(range(len(own))), 2 * count + 1
    while todo:
        wanted, unsure = min(wanted, len(known)), []
        step = max(1, _CELLS // wanted)
        for part in (todo[at : at + step] for at in range(0, len(todo), step)):
            scores, places = faiss.knn(unit[part], among, wanted, metric=faiss.METRIC_INNER_PRODUCT)
            for at, lowest, row in zip(part, scores.min(axis=1), places, strict=True):
                others = known[row][known[row] != own[at]]
                cosines = np.round(unit[others].astype(np.float64) @ unit[at].astype(np.float64), 9)
                best = np.lexsort((others, -cosines))[:count]
                if wanted == len(known) or cosines[best[-1]] > lowest + _ROUNDING:
                    found[at] = others[best].tolist()
                else:  # what was not fetched may be as near as the last of them
                    unsure.append(at)
        todo, wanted = unsure, 4 * wanted
    return found


def between(near: Sequence[Ids]) -> list[Ids]:
    """What stands behind each plain passage, of the neighbours `near`, nearest first: the nearer a neighbour, the
    nearer to the chunk it stands, and the nearest GROUPS stand behind passages of their own. Nothing where neighbours
    are missing."""
    groups = (
        [near[at][:TOKENS] for at in range(group, min(len(near), GROUPS * EACH), GROUPS)] for group in range(GROUPS)
    )
    return [[token for one in reversed(group) for token in one] for group in groups]


class Neighbours:
    """What stands before the chunks of an index. `encode` gives the ids of a text.

    What it knows of the state of an index that was asked about last is kept in memory. Not for several threads.
    """

    def __init__(self, encode: Callable[[str], Ids]) -> None:
        self._encode = encode
        self._state: tuple[Path, int] | None = None
        self._table: NDArray[np.int64] = np.empty((0, 1 + GROUPS * EACH), dtype=np.int64)
        self._held: dict[int, tuple[str, array[int]]] = {}

    def of(self, corpus: Corpus) -> Callable[[str], Behind]:
        """A function of chunk ids; ConfigError for an index without vectors."""
        state = (corpus.directory, corpus.generation)
        if self._state != state:
            self._table, self._held, self._state = _table(corpus), {}, state
        return lambda chunk_id: self._behind(chunk_id, corpus)

    def _behind(self, chunk_id: str, corpus: Corpus) -> Behind:
        near: list[int] = []
        with suppress(KeyError):  # what the index does not have, has no neighbours
            (row,) = corpus.rows_of([chunk_id])
            at = int(np.searchsorted(self._table[:, 0], row))
            if at < len(self._table) and self._table[at, 0] == row:
                near = [int(one) for one in self._table[at, 1:] if one >= 0]
        if missing := [one for one in near if one not in self._held]:
            if len(self._held) + len(missing) > _HELD:
                self._held, missing = {}, near
            for one, chunk in zip(missing, corpus.chunks(missing), strict=True):
                self._held[one] = chunk.doc_id, array("i", self._read(chunk, corpus))
        held = [self._held[one] for one in near]
        sources = tuple(dict.fromkeys(doc_id for doc_id, _ in held))
        return Behind(tuple(between([ids for _, ids in held])), sources)

    def _read(self, chunk: Chunk, corpus: Corpus) -> list[int]:
        """The first tokens of `chunk` as it stands in a prompt, its head and its text tokenised apart."""
        piece = Piece(chunk_id=chunk.id, doc_id=chunk.doc_id, span=chunk.span, text=chunk.text, kept=(chunk.span,))
        alone = CompressedContext(question="", pieces=(piece,), token_count=0, source_token_count=0, compressor="none")
        prompt = build_prompt(alone, {chunk.doc_id: corpus.document(chunk.doc_id)})
        return [token for segment in prompt.segments[1:3] for token in self._encode(segment.text)][:TOKENS]


def no_vectors() -> ConfigError:
    return ConfigError(
        "local: blocks neighbour-mean takes a chunk's neighbours from the vectors of the index, and this one has none. "
        "Set blocks: donor-mean, or ingest with an embedder and a retriever that uses it, such as hybrid"
    )


def _table(corpus: Corpus) -> NDArray[np.int64]:
    """(chunks, 1 + GROUPS * EACH): every row of the index and its neighbours' rows, -1 for those that are missing."""
    if path := corpus.derived(_FILE):
        with suppress(OSError, ValueError):
            held: NDArray[np.int64] = np.load(path, allow_pickle=False)
            if held.dtype == np.int64 and held.shape == (len(corpus), 1 + GROUPS * EACH):
                return held
    try:
        rows, vectors = corpus.vectors()
    except ConfigError as error:
        raise no_vectors() from error
    parts = [rows[at : at + _PART].tolist() for at in range(0, len(rows), _PART)]
    texts = [content_key("", chunk.text.strip()) for part in parts for chunk in corpus.chunks(part)]
    table = np.full((len(rows), 1 + GROUPS * EACH), -1, dtype=np.int64)
    table[:, 0] = rows
    for at, near in enumerate(nearest(vectors, texts)):
        table[at, 1 : 1 + len(near)] = rows[near]
    with suppress(RagError):  # as with keys and values: where nothing can be kept, everything works
        corpus.publish(_FILE, lambda path: _write(table, path))
    return table


def _write(table: NDArray[np.int64], path: Path) -> None:
    with path.open("wb") as out:  # np.save would add to the name
        np.save(out, table, allow_pickle=False)
