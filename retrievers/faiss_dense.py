"""Dense retrieval with FAISS (Douze et al., arXiv 2401.08281): inner product of unit vectors, which is the cosine."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from rag.errors import ConfigError
from rag.protocols import Corpus, Embedder, Filter, Retriever, Searcher, service
from rag.types import Hit
from retrievers._audit import compare
from retrievers._dense import check_dimension, exact_best, to_hits
from retrievers._faiss_files import OpenIndex, held, open_index, problems_of
from retrievers._faiss_kinds import FLAT_UNDER, Shape, faiss_module, only

if TYPE_CHECKING:
    from rag.protocols import Rows, Vectors

Kind = Literal["auto", "flat", "hnsw", "ivf", "hnsw-sq8", "ivf-sq8"]

_SPARE = 16
"""Candidates beyond k: ties at the k-th place are ordered by row, and 8-bit vectors may misplace a few."""
_EXACT_SHARE, _EXACT_ROWS = 0.01, 500
"""A filter that keeps less than this share of a graph, or so few rows of any index, is searched exactly."""
_MOST_EF = 4096


@dataclass(frozen=True, kw_only=True)
class FaissDenseRetriever(Retriever):
    """Cosine search over the stored vectors.

    `index="auto"`: exact (flat) under 100,000 rows, then IVF with 2 * sqrt(rows) lists over vectors in 8 bits a number
    (`ivf-sq8`). Flat is exact. HNSW (arXiv 1603.09320), IVF and 8 bits are approximate in which rows they find: with
    the defaults recall@10 is 0.987 to 0.994 (figures in `_faiss_kinds.py`). The scores are true cosines all the same.

    What changed since the file was made is searched exactly beside it or masked, and worked into a new file once it is
    a tenth of the corpus or 20,000 rows.
    """

    embedder: Embedder = service()
    k: int = 40
    index: Kind = "auto"
    hnsw_m: int = 32
    ef_construction: int = 80
    ef_search: int = 128
    nprobe: int = 128

    needs_vectors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.index not in get_args(Kind):
            raise ConfigError(f"faiss-dense: index must be one of {', '.join(get_args(Kind))}, not {self.index!r}")
        if self.hnsw_m < 2:
            raise ConfigError(f"faiss-dense: hnsw_m must be >= 2, not {self.hnsw_m}")
        for name in ("k", "ef_construction", "ef_search", "nprobe"):
            if getattr(self, name) < 1:
                raise ConfigError(f"faiss-dense: {name} must be >= 1, not {getattr(self, name)}")

    def open(self, corpus: Corpus) -> Searcher:
        """Reads the published index and amends it, or builds one and publishes it where that saves time."""
        if not len(corpus):
            return _FaissSearcher(self, corpus, None, self._shape(0))
        _, one = next(iter(corpus.vector_parts(1)))
        check_dimension(one.shape[1], self.embedder.dimension, self.embedder.fingerprint)
        shape = self._shape(len(corpus))
        return _FaissSearcher(self, corpus, open_index(corpus, self._file_name(shape), shape), shape)

    def check(self, corpus: Corpus) -> list[str]:
        """The published file can be read, holds the rows it should, and a sample of its vectors is the store's."""
        if not len(corpus):
            return []
        shape = self._shape(len(corpus))
        return problems_of(corpus, self._file_name(shape), shape)

    def audit(self, corpus: Corpus, *, vectors: bool = True) -> tuple[int, list[str]]:
        """(chunks that a search would find in the file or beside it, what is wrong with the others).

        Vectors are compared where they are kept whole: not those in 8 bits, nor in an IVF file.
        """
        if not len(corpus):
            return 0, []
        shape = self._shape(len(corpus))
        if not vectors and corpus.derived_of_any(self._file_name(shape)) is None:
            return 0, [f"lacks {len(corpus)} chunks"]
        opened = open_index(corpus, self._file_name(shape), shape)
        return compare(corpus, held(opened, vectors=vectors), lambda row, chunk: "")

    def _shape(self, rows: int) -> Shape:
        kind = self.index if self.index != "auto" else "flat" if rows < FLAT_UNDER else "ivf-sq8"
        return Shape(
            kind=kind,
            dimension=self.embedder.dimension,
            hnsw_m=self.hnsw_m,
            ef_construction=self.ef_construction,
        )

    def _file_name(self, shape: Shape) -> str:
        """Everything that shapes the file is in its name, so that another setting never reads it."""
        model = hashlib.blake2b(self.embedder.fingerprint.encode(), digest_size=4).hexdigest()
        graph = f"-{shape.hnsw_m}-{shape.ef_construction}" if shape.is_hnsw else ""
        return f"faiss-{shape.kind}{graph}-{model}.index"


class _FaissSearcher(Searcher):
    def __init__(self, retriever: FaissDenseRetriever, corpus: Corpus, opened: OpenIndex | None, shape: Shape) -> None:
        self._retriever = retriever
        self._corpus = corpus
        self._opened = opened
        self._shape = shape
        self._mask = opened.mask if opened else ()

    def search(self, question: str, k: int, where: Filter | None = None) -> list[Hit]:
        if self._opened is None or k < 1:
            return []
        allowed = self._corpus.rows(where) if where else None
        total = len(self._corpus) if allowed is None else len(allowed)
        if not total:
            return []
        vector = self._retriever.embedder.embed_question(question)
        wanted = min(k + _SPARE, total)
        while True:
            candidates = self._candidates(self._opened, vector, wanted, allowed)
            if len(candidates) < wanted:  # the approximate search ran dry
                candidates = self._corpus.rows() if allowed is None else allowed
            rows, scores = exact_best(self._corpus, candidates, vector, len(candidates))
            # A k-th that is tied with the last one calls for more, since FAISS breaks ties as it likes.
            if len(rows) <= k or len(rows) >= total or scores[k - 1] > scores[-1]:
                return to_hits(self._corpus, rows[:k], scores[:k], "faiss-dense")
            wanted = min(4 * wanted, total)

    def close(self) -> None:
        self._opened = None
        self._mask = ()

    def _candidates(self, opened: OpenIndex, vector: Vectors, wanted: int, allowed: Rows | None) -> Rows:
        """At least `wanted` rows that hold the best ones, unless the approximate search runs dry."""
        import numpy as np

        if allowed is not None and self._is_narrow(len(allowed)):
            return allowed
        share, selector = 1.0, self._mask[0] if self._mask else None
        if allowed is not None:  # these are rows of the view: what is gone from the file is not among them
            share, selector = len(allowed) / len(self._corpus), only(allowed)
        asked = min(wanted, opened.index.ntotal)
        _, found = opened.index.search(vector[None, :], asked, params=self._parameters(asked, share, selector))
        rows = found[0][found[0] >= 0].astype(np.int64)  # FAISS fills missing results with -1
        return np.concatenate([rows, self._beside(opened, vector, wanted, allowed)])

    def _is_narrow(self, allowed: int) -> bool:
        return allowed <= _EXACT_ROWS or (self._shape.is_hnsw and allowed < _EXACT_SHARE * len(self._corpus))

    def _beside(self, opened: OpenIndex, vector: Vectors, wanted: int, allowed: Rows | None) -> Rows:
        """The best rows among those that the file lacks."""
        import numpy as np

        if not len(opened.side):
            return opened.side
        scores = np.einsum("ij,j->i", opened.side_vectors, vector)
        if allowed is not None:
            scores[~np.isin(opened.side, allowed, assume_unique=True)] = -np.inf
        count = min(wanted, int(np.isfinite(scores).sum()))
        if not count:
            return opened.side[:0]
        return opened.side[np.argpartition(-scores, count - 1)[:count]]

    def _parameters(self, wanted: int, share: float, selector: Any) -> Any:
        """A filter thins the lists and the graph out, so more of them is searched."""
        faiss, retriever = faiss_module(), self._retriever
        if self._shape.is_hnsw:
            effort = max(wanted, min(math.ceil(retriever.ef_search / share), _MOST_EF))
            return faiss.SearchParametersHNSW(sel=selector, efSearch=effort)
        if self._shape.is_ivf:
            return faiss.SearchParametersIVF(sel=selector, nprobe=math.ceil(retriever.nprobe / share))
        return faiss.SearchParameters(sel=selector) if selector is not None else None
