"""Dense retrieval with FAISS (Douze et al., arXiv 2401.08281): inner product of unit vectors, which is the cosine."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rag.errors import ConfigError, missing_extra
from rag.protocols import Corpus, Embedder, Filter, Retriever, Searcher, service
from rag.types import Hit
from retrievers._dense import SCORE_DIGITS, best, check_dimension, exact_best, to_hits

if TYPE_CHECKING:
    from rag.protocols import Rows, Vectors
    from retrievers._dense import Scores

_FLAT_UNDER = 100_000
_HNSW_UP_TO = 1_000_000
_PUBLISH_FROM = 5_000
"""A flat index of fewer rows is quicker to build from the stored vectors than to read back and verify."""
_EXACT_SHARE = 0.01
"""A filter that keeps less than this share is searched exactly: a graph or list search would starve."""
_SPARE = 16
"""Results asked for beyond k, so that ties at the k-th place can be ordered by row."""


@dataclass(frozen=True, kw_only=True)
class FaissDenseRetriever(Retriever):
    """Cosine search over the stored vectors.

    `index="auto"`: exact (flat) under 100,000 rows, HNSW up to 1,000,000, IVF with 4 * sqrt(rows) lists above.
    Flat is exact. HNSW (arXiv 1603.09320) and IVF are approximate; their scores are true cosines all the same.
    """

    embedder: Embedder = service()
    k: int = 40
    index: Literal["auto", "flat", "hnsw", "ivf"] = "auto"
    hnsw_m: int = 32
    ef_construction: int = 80
    ef_search: int = 64
    nprobe: int = 32

    needs_vectors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.index not in ("auto", "flat", "hnsw", "ivf"):
            raise ConfigError(f"faiss-dense: index must be auto, flat, hnsw or ivf, not {self.index!r}")
        if self.hnsw_m < 2:
            raise ConfigError(f"faiss-dense: hnsw_m must be >= 2, not {self.hnsw_m}")
        for name in ("k", "ef_construction", "ef_search", "nprobe"):
            if getattr(self, name) < 1:
                raise ConfigError(f"faiss-dense: {name} must be >= 1, not {getattr(self, name)}")

    def open(self, corpus: Corpus) -> Searcher:
        """Reads the derived index of this generation, or builds it and publishes it where that saves time."""
        if not len(corpus):
            return _FaissSearcher(self, corpus, None, "flat")
        kind = self._kind(len(corpus))
        name = self._file_name(kind)
        index = self._read(corpus.derived(name), len(corpus))
        if index is None:
            index = self._build(kind, *corpus.vectors())
            if kind != "flat" or len(corpus) >= _PUBLISH_FROM:
                corpus.publish(name, lambda path: _faiss().write_index(index, str(path)))
        return _FaissSearcher(self, corpus, index, kind)

    def _kind(self, rows: int) -> str:
        if self.index != "auto":
            return self.index
        return "flat" if rows < _FLAT_UNDER else "hnsw" if rows <= _HNSW_UP_TO else "ivf"

    def _file_name(self, kind: str) -> str:
        """Everything that shapes the file is in its name, so that another setting never reads it."""
        model = hashlib.blake2b(self.embedder.fingerprint.encode(), digest_size=4).hexdigest()
        shape = f"-{self.hnsw_m}-{self.ef_construction}" if kind == "hnsw" else ""
        return f"faiss-{kind}{shape}-{model}.index"

    def _read(self, path: Path | None, rows: int) -> Any:
        """The index in `path`, or None when there is none or it is not an index of this corpus."""
        if path is None:
            return None
        try:
            index = _faiss().read_index(str(path))
        except RuntimeError:  # what FAISS raises for a damaged file
            return None
        return index if (index.d, index.ntotal) == (self.embedder.dimension, rows) else None

    def _build(self, kind: str, rows: Rows, matrix: Vectors) -> Any:
        """matrix is (n, dim); ids of the index are the rows. FAISS builds with the threads that it is set to."""
        faiss = _faiss()
        count, dimension = matrix.shape
        check_dimension(dimension, self.embedder.dimension, self.embedder.fingerprint)
        if kind == "hnsw":
            inner = faiss.IndexHNSWFlat(dimension, self.hnsw_m, faiss.METRIC_INNER_PRODUCT)
            inner.hnsw.efConstruction = self.ef_construction
        elif kind == "ivf":
            lists = max(1, min(round(4 * math.sqrt(count)), count // 39))  # k-means wants 39 points a centroid
            inner = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, lists, faiss.METRIC_INNER_PRODUCT)
            inner.train(matrix)
        else:
            inner = faiss.IndexFlatIP(dimension)
        index = faiss.IndexIDMap2(inner)
        index.add_with_ids(matrix, rows)
        return index


class _FaissSearcher(Searcher):
    def __init__(self, retriever: FaissDenseRetriever, corpus: Corpus, index: Any, kind: str) -> None:
        self._retriever = retriever
        self._corpus = corpus
        self._index = index
        self._kind = kind

    def search(self, question: str, k: int, where: Filter | None = None) -> list[Hit]:
        if self._index is None or k < 1:
            return []
        allowed = self._corpus.rows(where) if where else None
        if allowed is not None and not len(allowed):
            return []
        vector = self._retriever.embedder.embed_question(question)
        total = self._index.ntotal if allowed is None else len(allowed)
        few = self._kind != "flat" and total < _EXACT_SHARE * self._index.ntotal
        rows, scores = (None, None) if few else self._nearest(vector, k, total, allowed)
        if rows is None or scores is None or len(rows) < min(k, total):  # the approximate search ran dry
            everything = self._corpus.rows() if allowed is None else allowed
            rows, scores = exact_best(self._corpus, everything, vector, k)
        return to_hits(self._corpus, rows, scores, "faiss-dense")

    def close(self) -> None:
        self._index = None

    def _nearest(self, vector: Vectors, k: int, total: int, allowed: Rows | None) -> tuple[Rows, Scores]:
        """Asks for more until the k-th score is not tied with the last one, since FAISS breaks ties as it likes."""
        wanted = min(k + _SPARE, total)
        while True:
            scores, rows = self._index.search(vector[None, :], wanted, params=self._parameters(wanted, allowed))
            found = rows[0] >= 0  # FAISS fills missing results with -1
            kept, cosines = rows[0][found], scores[0][found]
            tied = len(kept) > k and abs(float(cosines[k - 1] - cosines[-1])) < 10.0**-SCORE_DIGITS
            if wanted >= total or len(kept) < wanted or not tied:
                return best(kept, cosines, k)
            wanted = min(4 * wanted, total)

    def _parameters(self, wanted: int, allowed: Rows | None) -> Any:
        faiss = _faiss()
        selector = None if allowed is None else faiss.IDSelectorBatch(allowed)
        if self._kind == "hnsw":
            return faiss.SearchParametersHNSW(sel=selector, efSearch=max(self._retriever.ef_search, wanted))
        if self._kind == "ivf":
            return faiss.SearchParametersIVF(sel=selector, nprobe=self._retriever.nprobe)
        return faiss.SearchParameters(sel=selector) if selector is not None else None


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise missing_extra("faiss-cpu", "faiss", "The retriever faiss-dense") from error
    return faiss
