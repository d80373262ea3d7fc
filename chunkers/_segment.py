"""The core of all chunkers that weigh where to cut: atoms of a document, and the best way to group them.

Every segmenting method here is one dynamic program over atoms 1..n with an additive score,

    f[0] = 0,   f[i] = max over lo(i) <= j < i of  f[j] + gain(j, i) + prior[j],

where chunk (j, i) holds the atoms j+1 .. i, `prior[j]` scores a boundary before atom j+1 (prior[0] does not count), and
lo(i) is the smallest j for which the chunk keeps its limits. Ties go to the smallest j. Since an atom alone always
keeps the limits, the result always does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from chunkers._cuts import CutLevels
from chunkers._lines import inner_stops, lines_of
from chunkers._pack import Ruler, split
from rag.protocols import Embedder
from rag.text import may_cut
from rag.types import Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Gain = Callable[[int, int], Floats]
    """`gain(i, low)`: the scores of the chunks (j, i) for j = low .. i-1, as one array."""

__all__ = ["Atoms", "best_cuts", "checked", "coherence_gain", "joined", "reach_back", "size_penalty", "within_limits"]


@dataclass(frozen=True)
class Atoms:
    """The smallest parts of a document that are only cut when they must be: sentences, within all limits.

    Atom i (0-based) is `text[starts[i]:ends[i]]`; together they tile the text. `embedder` is None for methods that
    look at the text alone.
    """

    document: Document
    ruler: Ruler
    ends: tuple[int, ...]
    embedder: Embedder | None = None

    @classmethod
    def of(
        cls, document: Document, ruler: Ruler, embedder: Embedder | None = None, long_chars: int | None = None
    ) -> Atoms:
        """Sentences; one that exceeds the limits of `ruler` is cut at line ends, then at words.

        One with more than `long_chars` characters (None: none) is cut at the stops inside of it before that: to a
        splitter of sentences, all that stands between two quotes or brackets may be one.
        """
        text, finer = document.text, CutLevels(document, ("lines",))
        ends: list[int] = []
        start = 0
        for end in (*CutLevels(document, ("sentences",)).points(0), len(text)):
            inside = inner_stops(text, start, end) if long_chars is not None and end - start > long_chars else []
            for stop in (*(at for at in inside if may_cut(text, at)), end):
                ends.extend([stop] if ruler.fits(start, stop) else split(ruler, finer, start, stop))
                start = stop
        return cls(document, ruler, tuple(ends), embedder)

    def __len__(self) -> int:
        return len(self.ends)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        return (0, *self.ends[:-1])

    @cached_property
    def texts(self) -> tuple[str, ...]:
        return tuple(self.document.text[start:end] for start, end in zip(self.starts, self.ends, strict=True))

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """(n,) tokens of each atom alone."""
        import numpy as np

        pairs = zip(self.starts, self.ends, strict=True)
        return np.array([self.ruler.tokens.count(start, end) for start, end in pairs], dtype=np.int64)

    @cached_property
    def edges(self) -> NDArray[np.int64]:
        """(n + 1,) prefix sums of the tokens."""
        import numpy as np

        return np.concatenate(([0], np.cumsum(self.tokens)))

    @cached_property
    def chars(self) -> NDArray[np.int64]:
        """(n,) characters of each atom."""
        import numpy as np

        return np.array(self.ends, dtype=np.int64) - np.array(self.starts, dtype=np.int64)

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """(n, d) unit vectors: every distinct text is embedded once."""
        import numpy as np

        if self.embedder is None:
            raise ValueError("these atoms were made without an embedder")
        distinct = {text: row for row, text in enumerate(dict.fromkeys(self.texts))}
        matrix = self.embedder.embed(list(distinct))
        return np.ascontiguousarray(matrix[[distinct[text] for text in self.texts]])

    @cached_property
    def sums(self) -> Floats:
        """(n + 1, d) prefix sums of the vectors: `sums[i] - sums[j]` is the sum over the chunk (j, i)."""
        import numpy as np

        sums = np.zeros((len(self) + 1, self.vectors.shape[1]))
        np.cumsum(self.vectors, axis=0, dtype=np.float64, out=sums[1:])
        return sums

    @cached_property
    def similarities(self) -> Floats:
        """(n - 1,) cosines of neighbours."""
        import numpy as np

        cosines: Floats = np.einsum("ij,ij->i", self.vectors[:-1], self.vectors[1:], dtype=np.float64)
        return cosines

    def opens(self, points: list[int]) -> NDArray[np.bool_]:
        """(n,) True for atoms that begin at one of the points; never for the first atom: nothing stands before it."""
        import numpy as np

        return np.isin(np.array(self.starts), np.array(points, dtype=np.int64))

    @cached_property
    def paragraphs(self) -> NDArray[np.bool_]:
        """(n,) True for atoms that open a block or stand after an empty line."""
        cuts = CutLevels(self.document, ("blocks", "parts", "blank-lines"))
        points = sorted({at for level in range(len(cuts)) for at in cuts.points(level)})
        return self.opens(points)

    @cached_property
    def sections(self) -> NDArray[np.bool_]:
        """(n,) True for atoms that open a section: they begin with a heading."""
        cuts = CutLevels(self.document, ("headings",))
        return self.opens(cuts.points(len(cuts) - 1) if len(cuts) else [])

    @cached_property
    def lines(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(n,) True for atoms that open a line, where lines are paragraphs; (n,) True for those that open a title."""
        import numpy as np

        found = lines_of(self.document.text)
        pairs = zip(self.starts, self.texts, strict=True)
        seen = np.array([start + len(text) - len(text.lstrip()) if text.strip() else -1 for start, text in pairs])
        return np.isin(seen, found.paragraphs), np.isin(seen, found.titles)


def reach_back(atoms: Atoms, max_atoms: int | None = None) -> NDArray[np.int64]:
    """(n + 1,) lo(i): the smallest j such that the atoms j+1 .. i together keep the limits; lo(i) <= i - 1.

    Tokens are added up over atoms, which is exact where counts add up and hardly ever too low elsewhere: `checked`
    settles the rest.
    """
    import numpy as np

    edges, ends, starts = atoms.edges, atoms.ends, atoms.starts
    budgets = [atoms.ruler.budget(start) for start in starts]
    low = np.zeros(len(atoms) + 1, dtype=np.int64)
    j = 0
    for i in range(1, len(atoms) + 1):
        if max_atoms is not None:
            j = max(j, i - max_atoms)
        while j < i - 1 and (edges[i] - edges[j] > budgets[j] or ends[i - 1] - starts[j] > atoms.ruler.max_chars):
            j += 1
        low[i] = j
    return low


def joined(atoms: Atoms, cuts: Sequence[int], low: NDArray[np.int64], min_tokens: int) -> list[int]:
    """The cuts without those between two groups of which one is below `min_tokens` and that fit together."""
    edges = atoms.edges
    kept: list[int] = []
    for cut in cuts:
        before, middle = (kept[-2] if len(kept) > 1 else 0), (kept[-1] if kept else 0)
        if kept and min(edges[middle] - edges[before], edges[cut] - edges[middle]) < min_tokens and low[cut] <= before:
            kept[-1] = cut
        else:
            kept.append(cut)
    return kept


def checked(atoms: Atoms, cuts: Sequence[int]) -> list[int]:
    """The cuts, and in a group that does not keep the limits when counted as one, those of greedy packing."""
    done: list[int] = []
    start = 0
    for end in cuts:
        while not (end - start == 1 or atoms.ruler.fits(atoms.starts[start], atoms.ends[end - 1])):
            cut = end - 1
            while cut - start > 1 and not atoms.ruler.fits(atoms.starts[start], atoms.ends[cut - 1]):
                cut -= 1
            done.append(cut)
            start = cut
        done.append(end)
        start = end
    return done


def within_limits(cuts: Sequence[int], strength: Floats, low: NDArray[np.int64]) -> list[int]:
    """The cuts, and where a group is over the limits, more of them where `strength` is largest.

    `strength` is (n - 1,): strength[i] is that of the place after atom i. Of equal ones the first is taken.
    """
    import numpy as np

    done: list[int] = []
    open_groups = list(pairwise((0, *cuts)))[::-1]
    while open_groups:
        start, end = open_groups.pop()
        if low[end] <= start:
            done.append(end)
            continue
        middle = start + 1 + int(np.argmax(strength[start : end - 1]))
        open_groups.extend([(middle, end), (start, middle)])
    return done


def best_cuts(low: NDArray[np.int64], gain: Gain, prior: Floats | None = None) -> list[int]:
    """The boundaries 0 < c_1 < .. < c_k = n of the best segmentation, as numbers of atoms. O(n L) calls inside."""
    import numpy as np

    count = len(low) - 1
    best, back = np.zeros(count + 1), np.zeros(count + 1, dtype=np.int64)
    before = np.zeros(count + 1) if prior is None else np.append(prior, 0.0)
    before[0] = 0.0
    for i in range(1, count + 1):
        first = int(low[i])
        totals = best[first:i] + before[first:i] + gain(i, first)
        at = int(np.argmax(totals))  # the first of equal ones
        best[i], back[i] = totals[at], first + at
    cuts, at = [], count
    while at:
        cuts.append(at)
        at = int(back[at])
    return cuts[::-1]


def coherence_gain(sums: Floats, level: float | None = None) -> Gain:
    """Sum over all pairs inside a chunk of (cosine - level); `level` defaults to the mean over all pairs.

    With that default it is the reward of Chroma's ClusterSemanticChunker, from prefix sums instead of the n x n matrix:
    the sum of the cosines of m unit vectors' pairs is (|V|^2 - m) / 2. A single atom scores 0.
    """
    import numpy as np

    mean = mean_similarity(sums) if level is None else level
    norms = np.einsum("ij,ij->i", sums, sums)

    def gain(i: int, low: int) -> Floats:
        sizes = np.arange(i - low, 0, -1, dtype=np.float64)
        squares = norms[i] + norms[low:i] - 2.0 * (sums[low:i] @ sums[i])
        values: Floats = (squares - sizes - mean * sizes * (sizes - 1.0)) / 2.0
        return values

    return gain


def mean_similarity(sums: Floats) -> float:
    """Mean cosine over all pairs of atoms; 0 for less than two."""
    count = len(sums) - 1
    return float((sums[-1] @ sums[-1] - count) / (count * (count - 1))) if count > 1 else 0.0


def size_penalty(sizes: NDArray[np.int64], target: float) -> Gain:
    """-(w - 1)^2 with w = size of the chunk / target: nothing at the target, -1 for nothing and for twice as much."""
    import numpy as np

    edges = np.concatenate(([0], np.cumsum(sizes))).astype(np.float64)

    def gain(i: int, low: int) -> Floats:
        values: Floats = -(((edges[i] - edges[low:i]) / target - 1.0) ** 2)
        return values

    return gain
