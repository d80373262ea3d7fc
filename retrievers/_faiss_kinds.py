"""The kinds of FAISS index, how each is built in bounded memory, read, searched and looked into.

Measured with 384-dimensional vectors that lie like those of MiniLM (eval/bench/_scale_data.py) and real questions; AMD
EPYC, one thread for a search; recall@10 against exact search, after the candidates were ranked by exact cosines:

    rows       kind       build   file    search    recall@10
    10,000     flat       0.1 s    15 MB   1 ms     1
    100,000    flat       1 s     154 MB  18 ms     1
    100,000    hnsw-sq8  36 s      66 MB  0.4 ms    0.987 (ef 128), 0.993 (ef 256)
    100,000    ivf-sq8    3 s      40 MB  0.8 ms    0.990 (632 lists, nprobe 128)
    1,000,000  ivf-sq8   67 s     395 MB  2.4 ms    0.994 (nprobe 128); 0.982 (64, 1.2 ms); 0.996 (256, 4 ms)

Twice as many lists with the same nprobe find less (0.992) and take twice as long to train. Gaussian noise has no
neighbourhoods to find: there nprobe 128 of 632 lists gives 0.44, an exact kind is the one to choose.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.errors import missing_extra

if TYPE_CHECKING:
    from rag.protocols import Corpus, Rows, Vectors

KINDS = ("flat", "hnsw", "ivf", "hnsw-sq8", "ivf-sq8")

FLAT_UNDER = 100_000
"""Below this an exact search takes a few milliseconds."""

_PART_ROWS = 50_000
_POINTS_A_LIST = 40
"""k-means wants 39 points a centroid at least."""
_ITERATIONS = 10
_SQ8_SAMPLE = 50_000
_MMAP_BYTES = 64 * 2**20
"""Files of this size and more are mapped: pages that no search touches stay on disk."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Everything that shapes the file."""

    kind: str
    dimension: int
    hnsw_m: int
    ef_construction: int

    @property
    def is_hnsw(self) -> bool:
        return self.kind.startswith("hnsw")

    @property
    def is_ivf(self) -> bool:
        return self.kind.startswith("ivf")

    @property
    def quantised(self) -> bool:
        """Vectors are kept in 8 bits a number, so the index's own scores are close but not exact."""
        return self.kind.endswith("sq8")


def faiss_module() -> Any:
    """The module `faiss`, or the error that names the extra."""
    try:
        import faiss
    except ImportError as error:
        raise missing_extra("faiss-cpu", "faiss", "The retriever faiss-dense") from error
    return faiss


def lists_for(rows: int) -> int:
    """Inverted lists of an IVF index: 2 * sqrt(rows)."""
    return max(1, min(round(2 * math.sqrt(rows)), rows // _POINTS_A_LIST))


def build(shape: Shape, corpus: Corpus) -> Any:
    """An index of the whole corpus. Memory: the index, a training sample and one part of 50,000 vectors."""
    index = _empty(shape, len(corpus))
    if not index.is_trained:
        count = lists_for(len(corpus)) * _POINTS_A_LIST if shape.is_ivf else _SQ8_SAMPLE
        rows = corpus.rows()
        chosen = rows[:: max(1, len(rows) // count)]
        index.train(corpus.vectors(chosen.tolist())[1])
    add(index, corpus.vector_parts(_PART_ROWS))
    return index


def add(index: Any, parts: Iterable[tuple[Rows, Vectors]]) -> None:
    """Ids of the index are the rows. FAISS works with the threads that it is set to."""
    for rows, matrix in parts:
        index.add_with_ids(matrix, rows)


def _empty(shape: Shape, rows: int) -> Any:
    faiss = faiss_module()
    dimension, metric, eight_bits = shape.dimension, faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_8bit
    if shape.is_ivf:
        coarse, lists = faiss.IndexFlatIP(dimension), lists_for(rows)
        if shape.quantised:  # the vectors themselves are coded, so that lists can be merged and grown
            index = faiss.IndexIVFScalarQuantizer(coarse, dimension, lists, eight_bits, metric, False)
        else:
            index = faiss.IndexIVFFlat(coarse, dimension, lists, metric)
        index.cp.niter = _ITERATIONS
        return index
    if shape.is_hnsw:
        if shape.quantised:
            inner = faiss.IndexHNSWSQ(dimension, eight_bits, shape.hnsw_m, metric)
        else:
            inner = faiss.IndexHNSWFlat(dimension, shape.hnsw_m, metric)
        inner.hnsw.efConstruction = shape.ef_construction
    else:
        inner = faiss.IndexFlatIP(dimension)
    return faiss.IndexIDMap(inner)


def read(path: Path | None, shape: Shape, *, mapped: bool = True) -> Any:
    """The index in `path`, or None when there is none, or it cannot be read, or is not of this shape."""
    if path is None:
        return None
    faiss = faiss_module()
    large = path.stat().st_size >= _MMAP_BYTES and os.name == "posix"  # elsewhere a mapped file cannot be deleted
    flags = faiss.IO_FLAG_MMAP_IFC if mapped and large else 0
    try:
        index = faiss.read_index(str(path), flags)
    except RuntimeError:  # what FAISS raises for a damaged file
        return None
    known = hasattr(index, "invlists") if shape.is_ivf else hasattr(index, "id_map")
    return index if known and index.d == shape.dimension else None


def rows_in(index: Any) -> Rows:
    """The rows that an index holds, sorted."""
    import numpy as np

    faiss = faiss_module()
    if hasattr(index, "id_map"):
        rows = faiss.vector_to_array(index.id_map)
    else:
        lists = index.invlists
        ids = [faiss.rev_swig_ptr(lists.get_ids(at), lists.list_size(at)) for at in _filled(lists, index.nlist)]
        rows = np.concatenate([np.empty(0, dtype=np.int64), *ids])
    return np.sort(rows)


def sample(index: Any, count: int) -> tuple[Rows, Vectors]:
    """About `count` rows spread over the index, and their vectors as the index keeps them."""
    import numpy as np

    faiss = faiss_module()
    found: list[int] = []
    vectors: list[Any] = []
    if hasattr(index, "id_map"):
        ids, inner = faiss.vector_to_array(index.id_map), faiss.downcast_index(index.index)
        for at in range(0, len(ids), max(1, len(ids) // count)):
            found.append(int(ids[at]))
            vectors.append(inner.reconstruct(at))
    else:
        filled = _filled(index.invlists, index.nlist)
        for at in filled[:: max(1, len(filled) // count)]:
            vector = np.empty(index.d, dtype=np.float32)
            index.reconstruct_from_offset(at, 0, faiss.swig_ptr(vector))
            found.append(int(faiss.rev_swig_ptr(index.invlists.get_ids(at), 1)[0]))
            vectors.append(vector)
    matrix = np.array(vectors, dtype=np.float32).reshape(len(vectors), index.d)
    return np.array(found, dtype=np.int64), matrix


def _filled(lists: Any, count: int) -> Sequence[int]:
    return [at for at in range(count) if lists.list_size(at)]


def only(rows: Rows) -> Any:
    """A selector of these rows: a bit for each row number up to the largest."""
    import numpy as np

    chosen = np.zeros(int(rows.max(initial=0)) + 1, dtype=bool)
    chosen[rows] = True
    return faiss_module().IDSelectorBitmap(np.packbits(chosen, bitorder="little"))


def all_but(rows: Rows) -> tuple[Any, ...]:
    """(a selector of all rows but these, what it stands on and must outlive it)."""
    chosen = only(rows)
    return faiss_module().IDSelectorNot(chosen), chosen
