"""Intents: what readers of a document may come to it for, as vectors beside those of its sentences.

Texts come from sources that never see a vector, so that they are embedded in one batch with the sentences. Centroids
are made of the sentences' own vectors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chunkers._intents_sources import Source, evenly, heuristic
from chunkers._segment import Atoms
from rag.protocols import TokenCounter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["Intents", "centroids", "gathered", "intent_count"]

_MAX_TOKENS = 64
_MAX_CHARS = 400
"""A question is not longer than this; a "heading" of a damaged file may be."""
_SPECIAL = 2
"""Tokens that an encoder adds to every text."""
_SHARE = 0.15
"""Tokens of all intents at most, as a share of the tokens of the sentences: one pass over these costs 1.15 at most."""
_SAME = 0.85
_ROUNDS = 12


@dataclass(frozen=True)
class Intents:
    """M intents: `vectors` (M, d) unit rows, `texts` ("" for a centroid) and the `sources` that they came from."""

    texts: tuple[str, ...]
    sources: tuple[str, ...]
    vectors: Floats

    def __len__(self) -> int:
        return len(self.texts)

    def counts(self) -> dict[str, int]:
        """Source -> how many of the intents are its own."""
        return dict(Counter(self.sources))


def intent_count(sentences: int) -> int:
    """10 below 100 sentences, 15 below 200, then growing with the length, 50 at most (code of arXiv 2602.14784)."""
    if sentences < 200:
        return 10 if sentences < 100 else 15
    times = sentences / 200
    return min(50, round(15 * times if sentences < 500 else 15 * times**0.7))


def gathered(atoms: Atoms, sources: Mapping[str, Source | None], count: int, counter: TokenCounter) -> Intents:
    """At most `count` intents of the sources, earlier ones first; no two of them have a cosine over 0.85.

    The one source that is None is "centroids". Texts are embedded together with the sentences, or alone where those
    have their vectors already.
    """
    import numpy as np

    named = _texts(atoms, sources, count, counter)
    rows: Floats = np.asarray(_embedded(atoms, [text for _, text in named]), dtype=np.float64)
    if "centroids" in sources and len(named) < count:
        middles = centroids(atoms.vectors, min(count - len(named), max(1, round(len(atoms) / 10))))
        named, rows = [*named, *[("centroids", "")] * len(middles)], np.vstack([rows, middles])
    kept: list[int] = []
    for at in range(len(named)):
        if not kept or float((rows[kept] @ rows[at]).max()) <= _SAME:
            kept.append(at)
    return Intents(tuple(named[at][1] for at in kept), tuple(named[at][0] for at in kept), rows[kept])


def _texts(
    atoms: Atoms, sources: Mapping[str, Source | None], count: int, counter: TokenCounter
) -> list[tuple[str, str]]:
    """(source, text) within the count and the token share; what one source leaves over goes to the next."""
    found: dict[str, str] = {}
    for done, (source, make) in enumerate(sources.items()):
        share = -(-(count - len(found)) // (len(sources) - done))
        for text in make(atoms, share) if make and share > 0 else ():
            found.setdefault(text, source)
    if not found and "generator" in sources and count:
        found = dict.fromkeys(heuristic(atoms, count), "heuristic")
    longest = min(_MAX_TOKENS, counter.limit or _MAX_TOKENS)
    short = [(source, text) for text, source in found.items() if len(text) <= _MAX_CHARS]
    sized = [(source, text, size) for source, text in short if 0 < (size := counter.count(text)) <= longest]
    first = {text: int(size) for text, size in zip(atoms.texts[::-1], atoms.tokens[::-1], strict=True)}
    budget = _SHARE * sum(first.values())
    keep = len(sized)
    while sum(size + _SPECIAL for *_, size in evenly(sized, keep)) > budget:
        keep -= 1
    return [(source, text) for source, text, _ in evenly(sized, keep)]


def _embedded(atoms: Atoms, texts: list[str]) -> NDArray[np.float32]:
    """(len(texts), d) unit vectors, from the very call that gives the sentences theirs where they have none yet."""
    import numpy as np

    embedder = atoms.embedder
    if embedder is None:
        raise ValueError("these atoms were made without an embedder")
    if "vectors" in vars(atoms):
        return embedder.embed(texts) if texts else np.zeros((0, atoms.vectors.shape[1]), dtype=np.float32)
    distinct = {text: row for row, text in enumerate(dict.fromkeys(atoms.texts))}
    matrix = embedder.embed([*distinct, *texts])
    vars(atoms)["vectors"] = np.ascontiguousarray(matrix[[distinct[text] for text in atoms.texts]])
    return matrix[len(distinct) :]


def centroids(vectors: NDArray[np.float32], count: int) -> Floats:
    """(count, d) unit rows: spherical k-means (Dhillon and Modha, 2001) from evenly spaced sentences, no chance in it.

    They are the document's own topics and no reader's questions: self-intents.
    """
    import numpy as np

    rows = np.asarray(vectors, dtype=np.float64)
    middles = rows[evenly(list(range(len(rows))), count)]
    nearest = np.full(len(rows), -1)
    for _ in range(_ROUNDS):
        before, nearest = nearest, np.argmax(rows @ middles.T, axis=1)
        if np.array_equal(before, nearest):
            break
        sums = np.zeros_like(middles)
        np.add.at(sums, nearest, rows)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        middles = np.where(norms > 0, sums / np.where(norms > 0, norms, 1.0), middles)
    return middles
