"""How well units answer a question: cosines at three sizes and BM25 at two, and how much units repeat each other.

IDF: of the words of the question over the offered hits, copies included. A corpus offers no counts of words, and
counting its matches would cost a search for each word. Words meet by their stems where that is asked for: those of
SQLite's own Porter stemmer, which the full-text index of a store uses too.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rag.errors import ConfigError
from rag.protocols import Corpus, Embedder
from rag.spans.units import Units
from rag.text import lexical_words
from rag.types import Hit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rag.protocols import Vectors

    Values = NDArray[np.float64]

__all__ = [
    "NAMES",
    "NEARBY",
    "UNIT_CHARS",
    "WEIGHTS",
    "Pool",
    "Words",
    "embeddable",
    "pool_of",
    "question_words",
    "stems_of",
    "unit_vectors",
]

NAMES = ("sentence", "chunk", "window", "bm25", "chunk_bm25", "retriever")
"""Columns of a feature matrix."""
WEIGHTS = (1.5, 1.0, 1.0, 0.25, 0.25, 0.5)
NEARBY = 1.5
"""What each column, and the nearness of words, counts in the relevance of a sentence for `bubble` and compressors."""
UNIT_CHARS = 600
"""Longer sentences are parted, unless a plugin says otherwise: what ingestion keeps vectors of."""

_K1, _B = 1.5, 0.75
_TOKENIZE = "porter unicode61 remove_diacritics 0 tokenchars '_'"
_NEAR = (1.0, 0.8, 0.6, 0.4, 0.2)
"""What a word of the question counts that stands in a unit, in the one beside it, in the one after that, and so on."""
_STOP_WORDS = (
    "a about above after all also am an and any are as at be been before being between both but by can could did do "
    "does during each few for from had has have having he her here hers him his how i if in into is it its itself just "
    "let me more most my no nor not of off on once only or other our out over own same she should so some such than "
    "that the their them then there these they this those through to too under until up very was we were what when "
    "where which while who whom whose why will with would you your"
)
_STOP = frozenset(_STOP_WORDS.split())


def question_words(question: str) -> list[str]:
    """The distinct words of a question in order; without function words, unless there are no others."""
    words = list(dict.fromkeys(lexical_words(question)))
    return [word for word in words if word not in _STOP] or words


def stems_of(words: Sequence[str]) -> dict[str, str]:
    """The Porter stem of each different word (Porter 1980), as SQLite's full-text search makes it."""
    distinct = list(dict.fromkeys(words))
    parts: list[list[str]] = [[] for _ in distinct]
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute(f'CREATE VIRTUAL TABLE words USING fts5(word, tokenize="{_TOKENIZE}")')
        db.executemany("INSERT INTO words (rowid, word) VALUES (?, ?)", enumerate(distinct))
        db.execute("CREATE VIRTUAL TABLE terms USING fts5vocab(words, instance)")
        for stem, at in db.execute("SELECT term, doc FROM terms ORDER BY doc, offset"):
            parts[at].append(stem)
    return {word: " ".join(found) or word for word, found in zip(distinct, parts, strict=True)}


def _columns(terms: Sequence[str], bags: Sequence[Sequence[str]]) -> dict[str, int]:
    """Each word of the bags that has the stem of a term -> the column of that stem.

    A stemmer leaves the start of a word as it is, so only words that start like a term are looked at.
    """
    starts = {term[:2] for term in terms}
    alike = {word for bag in bags for word in bag if word[:2] in starts}
    stems = stems_of([*terms, *sorted(alike)])
    column: dict[str, int] = {}
    for term in terms:
        column.setdefault(stems[term], len(column))
    return {word: column[stem] for word, stem in stems.items() if stem in column}


class Words:
    """Counts of the words of a question in some texts, and their BM25 scores.

    `stems`: by stem, in one column for all terms that share it.
    """

    def __init__(self, terms: Sequence[str], texts: Sequence[str], *, stems: bool = False) -> None:
        import numpy as np

        self.bags = [lexical_words(text) for text in texts]
        column = _columns(terms, self.bags) if stems and terms else {term: at for at, term in enumerate(terms)}
        self.counts = np.zeros((len(texts), max(column.values(), default=-1) + 1), dtype=np.float64)
        for row, bag in enumerate(self.bags):
            for word in bag:
                if word in column:
                    self.counts[row, column[word]] += 1.0
        self.lengths = np.array([len(bag) for bag in self.bags], dtype=np.float64)

    def of_hits(self, units: Units) -> Words:
        """The counts of the hits, from those of the units that they are made of; exact where no hits overlap."""
        import numpy as np

        place_of = {hit.chunk.id: place for place, hit in enumerate(units.hits)}
        found = Words((), ())
        found.counts = np.zeros((len(units.hits), self.counts.shape[1]), dtype=np.float64)
        found.lengths = np.zeros(len(units.hits), dtype=np.float64)
        for number, unit in enumerate(units.units):
            for place in unit.holders:
                found.counts[place] += self.counts[number]
                found.lengths[place] += self.lengths[number]
        for place, chunk_id in units.copies.items():
            found.counts[place] = found.counts[place_of[chunk_id]]
            found.lengths[place] = found.lengths[place_of[chunk_id]]
        return found

    def idf(self) -> Values:
        """(terms,) ln(1 + (n - df + .5) / (df + .5)) over these texts."""
        import numpy as np

        found = (self.counts > 0).sum(axis=0)
        idf: Values = np.log(1.0 + (len(self.lengths) - found + 0.5) / (found + 0.5))
        return idf

    def bm25(self, idf: Values) -> Values:
        """(texts,) Okapi BM25 with k1 1.5 and b .75, divided by the largest; zeros where no word is found."""
        import numpy as np

        mean = self.lengths.mean() if len(self.lengths) else 1.0
        norm = _K1 * (1 - _B + _B * self.lengths / (mean or 1.0))
        scores: Values = (self.counts * (_K1 + 1) / (self.counts + norm[:, None]) * idf).sum(axis=1)
        top = scores.max() if len(scores) else 0.0
        return scores / top if top > 0 else np.zeros(len(self.lengths))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The units that are scored in full: `numbers` (p,) of units in reading order, `parts` (p, 6) as in NAMES.

    `similarity` (p, p) of each with each. `said` (p, terms): which words of the question a unit has; `share` (terms,):
    the IDF of each, summing to 1. `nearby` (p,): the sum of the shares of words that a unit or one near it has, each
    by how near it is. `bags` are the words of each unit of the pool.
    """

    numbers: list[int]
    parts: Values
    similarity: Vectors
    said: NDArray[np.bool_]
    share: Values
    nearby: Values
    bags: list[list[str]]


def pool_of(
    question: str,
    units: Units,
    corpus: Corpus,
    embedder: Embedder | None,
    weights: Sequence[float],
    size: int,
    *,
    whole: bool = False,
    stems: bool = False,
) -> Pool:
    """Best `size` units by the features that need no vectors of sentences, then all features of those.

    The texts of the pool are embedded once each. Without an embedder or vectors in the index, what needs them is 0.
    `whole`: units are chunks, and have the vectors of the index. `stems`: words of the question count by stem.
    """
    import numpy as np

    terms = question_words(question)
    asked = embedder.embed_question(question) if embedder is not None and units.units else None
    unit_words = Words(terms, [unit.text for unit in units.units], stems=stems)
    hit_words = unit_words.of_hits(units)
    idf = hit_words.idf()
    parts = np.zeros((len(units.units), len(NAMES)), dtype=np.float64)
    stored = _stored(units.hits, corpus)
    cosines = np.zeros(len(units.hits)) if stored is None or asked is None else stored @ asked
    of_hits = [cosines, hit_words.bm25(idf), _scaled(units.hits)]
    for column, values in zip((1, 4, 5), of_hits, strict=True):
        parts[:, column] = [max(values[place] for place in unit.holders) for unit in units.units]
    parts[:, 3] = unit_words.bm25(idf)
    numbers = _best(units, parts @ np.asarray(weights), size)
    bags = [unit_words.bags[number] for number in numbers]
    if whole:
        made = None if stored is None else stored[[units.units[number].owner for number in numbers]]
    else:
        made = unit_vectors([units.units[number].text for number in numbers], embedder, corpus)
    parts = parts[numbers]
    if asked is not None and made is not None:
        parts[:, 0] = made @ asked
        parts[:, 2] = _windows(units, numbers, made, np.array([max(1, len(bag)) for bag in bags])) @ asked
    share = idf / (idf.sum() or 1.0)
    said = unit_words.counts > 0
    return Pool(
        numbers=numbers,
        parts=parts.round(6),
        similarity=_overlap(bags) if made is None else made @ made.T,
        said=said[numbers],
        share=share,
        nearby=(_nearness(units, said)[numbers] @ share).round(6),
        bags=bags,
    )


def _nearness(units: Units, said: NDArray[np.bool_]) -> Values:
    """(units, terms): how near each word of the question stands to each unit, by `_NEAR`; 0 for not at all."""
    import numpy as np

    before = np.array([unit.before for unit in units.units], dtype=np.int64)
    follows = np.flatnonzero(before >= 0)
    found: Values = said.astype(np.float64) * _NEAR[0]
    earlier = later = said
    for strength in _NEAR[1:]:
        back, forth = np.zeros_like(said), np.zeros_like(said)
        back[follows] = earlier[before[follows]]
        forth[before[follows]] = later[follows]
        earlier, later = back, forth
        found = np.maximum(found, (earlier | later).astype(np.float64) * strength)
    return found


def unit_vectors(texts: Sequence[str], embedder: Embedder | None, corpus: Corpus) -> Vectors | None:
    """(texts, d) of unit length, each different text at most once embedded; a blank text is a zero row.

    White space around a text counts for nothing: a sentence is found again wherever a chunk or a line ends.
    """
    import numpy as np

    if embedder is None or not texts:
        return None
    texts = [text.strip() for text in texts]
    distinct = [text for text in dict.fromkeys(texts) if text]
    made = corpus.sentence_vectors([embeddable(text, embedder) for text in distinct], embedder)
    row_of = {text: row for row, text in enumerate(distinct)}
    matrix = np.zeros((len(texts), embedder.dimension), dtype=np.float32)
    for row, text in enumerate(texts):
        if text in row_of:
            matrix[row] = made[row_of[text]]
    return matrix


def embeddable(text: str, embedder: Embedder) -> str:
    """The start of a text that the model reads at once."""
    limit = embedder.counter.limit
    while limit is not None and len(text) > limit // 2 and embedder.counter.count(text) > limit:
        text = text[: max(1, len(text) * 3 // 4)]
    return text


def _best(units: Units, scores: Values, size: int) -> list[int]:
    """Numbers of the pool in reading order, without what another document said before."""
    fresh = [number for number, twin in enumerate(units.twins) if twin < 0]
    ordered = sorted(fresh, key=lambda number: (-round(float(scores[number]), 6), number))
    return sorted(ordered[:size])


def _stored(hits: Sequence[Hit], corpus: Corpus) -> Vectors | None:
    """(hits, d) vectors of the index; None when it was made without an embedder."""
    try:
        return corpus.vectors(corpus.rows_of([hit.chunk.id for hit in hits]))[1]
    except ConfigError:
        return None


def _scaled(hits: Sequence[Hit]) -> list[float]:
    """Retriever scores from 0 to 1; equal scores all become 1."""
    low, high = min((h.score for h in hits), default=0.0), max((h.score for h in hits), default=0.0)
    return [(hit.score - low) / (high - low) if high > low else 1.0 for hit in hits]


def _windows(units: Units, numbers: Sequence[int], vectors: Vectors, lengths: NDArray[np.int64]) -> Vectors:
    """Mean of each vector and those of its neighbours in the pool, weighted by words, of unit length."""
    import numpy as np

    place = {number: at for at, number in enumerate(numbers)}
    weighted = vectors * lengths[:, None]
    total = weighted.copy()
    for at, number in enumerate(numbers):
        before = place.get(units.units[number].before)
        if before is not None:
            total[at] += weighted[before]
            total[before] += weighted[at]
    norms = np.linalg.norm(total, axis=1, keepdims=True)
    windows: Vectors = np.divide(total, norms, out=np.zeros_like(total), where=norms > 0)
    return windows


def _overlap(bags: Sequence[Sequence[str]]) -> Vectors:
    """(n, n) cosines of the sets of words."""
    import numpy as np

    columns: dict[str, int] = {}
    for bag in bags:
        for word in bag:
            columns.setdefault(word, len(columns))
    matrix = np.zeros((len(bags), max(1, len(columns))), dtype=np.float32)
    for row, bag in enumerate(bags):
        matrix[row, [columns[word] for word in bag]] = 1.0
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    unit: Vectors = np.divide(matrix, norms, out=np.zeros_like(matrix), where=norms > 0)
    return unit @ unit.T
