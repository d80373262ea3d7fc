"""A view of the corpus as a FAISS index: a published file, and what has changed since it was made.

The newest published file serves every view. Rows of the view that the file lacks are searched exactly beside it; rows
of the file that the view does not have are masked. This is safe because a row never stands for another chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievers._faiss_kinds import Shape, add, all_but, build, faiss_module, lists_for, read, rows_in, sample

if TYPE_CHECKING:
    from rag.protocols import Corpus, Rows, Vectors

_PUBLISH_FROM = 5_000
"""A flat index of fewer rows is quicker to build from the stored vectors than to read back and verify."""
_SHARE = 0.1
"""Share of the view that may be missing or masked before the file is made anew."""
_FREE, _SIDE_ROWS = 1_000, 20_000
"""So many missing rows are always fine; more than so many cost more than the search of the file."""
_GROWN = 1.25
"""An IVF file is grown in place of a new training until the rule asks for so many times its lists."""
_PART_ROWS = 50_000
_SAMPLE = 200
_LEAST_COSINE, _LEAST_COSINE_SQ8 = 0.9999, 0.98
"""Of a sampled vector with the stored one. 8 bits a number keep it above 0.999."""


@dataclass(frozen=True, kw_only=True)
class OpenIndex:
    """`index` holds rows, `gone` those of them that the view has not; `side` are the others, beside the index."""

    index: Any
    gone: Rows
    side: Rows
    side_vectors: Vectors

    @property
    def mask(self) -> tuple[Any, ...]:
        """(selector, what it stands on) that leaves out what is gone; () when nothing is."""
        return all_but(self.gone) if len(self.gone) else ()


def open_index(corpus: Corpus, name: str, shape: Shape) -> OpenIndex:
    """The index of this view: read, or read and amended, or built. What was built or grown is published."""
    index = read(corpus.derived(name), shape)
    if index is not None and index.ntotal == len(corpus):
        return _whole(index)
    path = corpus.derived_of_any(name)
    index = read(path, shape)
    if index is not None:
        found = _amended(corpus, index)
        if found is not None:
            return found
        index = _grown(corpus, read(path, shape, mapped=False), shape)
    if index is None:
        index = build(shape, corpus)
    if shape.kind != "flat" or len(corpus) >= _PUBLISH_FROM:
        corpus.publish(name, lambda path: _write(index, path))
    return _whole(index)


def _write(index: Any, path: Path) -> None:
    """OSError, as from any other writing, when the disk is full or broken."""
    try:
        faiss_module().write_index(index, str(path))
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _whole(index: Any) -> OpenIndex:
    import numpy as np

    none = np.empty(0, dtype=np.int64)
    return OpenIndex(index=index, gone=none, side=none, side_vectors=np.empty((0, index.d), dtype=np.float32))


def _difference(corpus: Corpus, index: Any) -> tuple[Rows, Rows]:
    """(rows of the index that the view has not, rows of the view that the index has not)."""
    import numpy as np

    ours, theirs = corpus.rows(), rows_in(index)
    return np.setdiff1d(theirs, ours, assume_unique=True), np.setdiff1d(ours, theirs, assume_unique=True)


def _amended(corpus: Corpus, index: Any) -> OpenIndex | None:
    """The index with its difference beside it; None when that is too much."""
    if not index.ntotal:
        return None
    gone, side = _difference(corpus, index)
    allowed = max(_FREE, _SHARE * len(corpus))
    if len(gone) > _SHARE * index.ntotal or len(side) > min(allowed, _SIDE_ROWS):
        return None
    return OpenIndex(index=index, gone=gone, side=side, side_vectors=corpus.vectors(side.tolist())[1])


def _grown(corpus: Corpus, index: Any, shape: Shape) -> Any:
    """The index with the difference written into it; None when it must be built anew, since it was trained on too
    small a part of what it would hold. Graphs are always built anew: nothing can be taken out of them.
    """
    if index is None or shape.is_hnsw or (shape.is_ivf and lists_for(len(corpus)) > _GROWN * index.nlist):
        return None
    gone, side = _difference(corpus, index)
    if len(gone):
        index.remove_ids(gone)
    add(index, _parts(corpus, side))
    return index


def _parts(corpus: Corpus, rows: Rows) -> Iterator[tuple[Rows, Vectors]]:
    for at in range(0, len(rows), _PART_ROWS):
        yield corpus.vectors(rows[at : at + _PART_ROWS].tolist())


def held(opened: OpenIndex, *, vectors: bool) -> Iterator[tuple[list[int], None, Vectors | None]]:
    """(rows, None, vectors) of what is searched: the file but for what is masked, and what stands beside it."""
    import numpy as np

    faiss, index = faiss_module(), opened.index
    whole = vectors and hasattr(index, "id_map") and hasattr(faiss.downcast_index(index.index), "get_xb")
    rows = faiss.vector_to_array(index.id_map) if whole else rows_in(index)
    for at in range(0, len(rows), _PART_ROWS):
        part = rows[at : at + _PART_ROWS]
        known = ~np.isin(part, opened.gone)
        matrix = faiss.downcast_index(index.index).reconstruct_n(at, len(part))[known] if whole else None
        yield part[known].tolist(), None, matrix
    yield opened.side.tolist(), None, opened.side_vectors


def problems_of(corpus: Corpus, name: str, shape: Shape) -> list[str]:
    """Where the published file disagrees with the corpus: unreadable, wrong rows, wrong vectors."""
    import numpy as np

    path = corpus.derived_of_any(name)
    if path is None:
        return []
    index = read(path, shape)
    cure = f"Delete {path}; it is made anew when it is next needed"
    if index is None:
        return [f"faiss-dense: {path.name} is no {shape.kind} index of dimension {shape.dimension}. {cure}"]
    rows, ours = rows_in(index), corpus.rows()
    if len(np.unique(rows)) != len(rows):
        return [f"faiss-dense: {path.name} holds {len(rows) - len(np.unique(rows))} rows twice. {cure}"]
    found = []
    if corpus.derived(name) == path and not np.array_equal(rows, ours):
        wrong = len(np.setxor1d(rows, ours, assume_unique=True))
        found.append(f"faiss-dense: {path.name} and the store differ in {wrong} rows of one generation. {cure}")
    some, theirs = sample(index, _SAMPLE)
    known = np.isin(some, ours)
    cosines = (corpus.vectors(some[known].tolist())[1] * theirs[known]).sum(axis=1)
    lowest = _LEAST_COSINE_SQ8 if shape.quantised else _LEAST_COSINE
    wrong = int((cosines < lowest * np.linalg.norm(theirs[known], axis=1)).sum())
    if wrong:
        found.append(
            f"faiss-dense: {wrong} of {known.sum()} sampled vectors in {path.name} are not the store's. {cure}"
        )
    return found
