"""FAISS: exact parity with NumPy, recall of the approximate indexes, and which files are trusted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError
from rag.types import Chunk, Document
from rag.vectors import as_unit, top_rows
from tests.corpora import MemoryCorpus, topic_corpus

faiss = pytest.importorskip("faiss")

from retrievers.faiss_dense import FaissDenseRetriever  # noqa: E402

DIMENSION = 32


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for a busy machine's cores make small searches slow."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableEmbedder(HashingEmbedder):
    """Looks texts up in a table of vectors: text `7` is row 7."""

    table: Any = None
    asked: list[str] = dataclasses.field(default_factory=list)

    @property
    def dimension(self) -> int:
        return int(self.table.shape[1])

    def embed(self, texts: Any) -> Any:
        self.asked.extend(texts)
        return self.table[[int(text) for text in texts]]


def clustered(count: int, seed: int = 0) -> Any:
    """Unit vectors around 20 centres, as text vectors lie around topics."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, DIMENSION))
    return as_unit(centres[rng.integers(0, 20, count)] + 0.5 * rng.standard_normal((count, DIMENSION)))


def numbered(directory: Path, table: Any, count: int, generation: int = 1) -> tuple[MemoryCorpus, TableEmbedder]:
    """A corpus of `count` chunks with the texts 0, 1, 2...; the rest of the table is for questions."""
    embedder = TableEmbedder(table=table)
    text = "\n".join(str(at) for at in range(count))
    document = Document(text=text, source="numbers.txt")
    chunks, start = [], 0
    for at in range(count):
        end = start + len(str(at))
        chunks.append(Chunk.cut(document, start, end, counter=embedder.counter, chunker="line"))
        start = end + 1
    return MemoryCorpus(directory, [document], chunks, embedder=embedder, generation=generation), embedder


def recall(corpus: MemoryCorpus, retriever: FaissDenseRetriever, table: Any, count: int, where: Any = None) -> float:
    searcher = retriever.open(corpus)
    allowed = corpus.rows(where)
    found = 0
    for question in range(count, len(table)):
        truth = set(allowed[top_rows(table[allowed] @ table[question], 10)].tolist())
        hits = searcher.search(str(question), 10, where)
        rows = corpus.rows_of([hit.chunk.id for hit in hits])
        assert [hit.score for hit in hits] == pytest.approx(table[rows] @ table[question], abs=2e-6)
        found += len(truth & set(rows))
    return found / (10 * (len(table) - count))


def test_flat_equals_numpy(tmp_path: Path) -> None:
    table = clustered(540)
    corpus, embedder = numbered(tmp_path, table, 500)
    searcher = FaissDenseRetriever(embedder=embedder).open(corpus)
    for question in range(500, 540):
        scores = table[:500] @ table[question]
        expected = np.lexsort((np.arange(500), -np.round(scores.astype(np.float64), 6)))[:25].tolist()
        hits = searcher.search(str(question), 25)
        assert corpus.rows_of([hit.chunk.id for hit in hits]) == expected
        assert [hit.score for hit in hits] == pytest.approx(scores[expected], abs=2e-6)


@pytest.mark.parametrize("index", ["hnsw", "ivf", "hnsw-sq8", "ivf-sq8"])
def test_approximate_indexes_find_nearly_all(tmp_path: Path, index: Any) -> None:
    table = clustered(2030)
    corpus, embedder = numbered(tmp_path, table, 2000)
    retriever = FaissDenseRetriever(embedder=embedder, index=index, nprobe=12)
    assert recall(corpus, retriever, table, 2000) >= 0.95


@pytest.mark.parametrize("index", ["flat", "hnsw", "ivf", "hnsw-sq8", "ivf-sq8"])
def test_a_narrow_filter_is_searched_exactly(tmp_path: Path, index: Any) -> None:
    table = clustered(1520)
    corpus, embedder = numbered(tmp_path, table, 1500)
    narrow = np.array([7, 300, 301, 900, 1400])  # 0.3 % of the rows
    corpus.rows = lambda where=None: narrow if where else np.arange(1500)  # type: ignore[method-assign]
    searcher = FaissDenseRetriever(embedder=embedder, index=index).open(corpus)
    for question in range(1500, 1520):
        hits = searcher.search(str(question), 10, {"source": "x"})
        scores = table[narrow] @ table[question]
        assert corpus.rows_of([hit.chunk.id for hit in hits]) == narrow[np.argsort(-scores)].tolist()


@pytest.mark.parametrize("index", ["hnsw", "ivf"])
def test_an_approximate_search_that_runs_dry_is_completed(tmp_path: Path, index: Any) -> None:
    """One list probed, every second row allowed: the lists hold fewer than k rows, the answer does not."""
    table = clustered(810)
    corpus, embedder = numbered(tmp_path, table, 800)
    half = np.arange(0, 800, 2)
    corpus.rows = lambda where=None: half if where else np.arange(800)  # type: ignore[method-assign]
    searcher = FaissDenseRetriever(embedder=embedder, index=index, nprobe=1).open(corpus)
    hits = searcher.search("805", 300, {"source": "x"})
    assert len(hits) == 300
    assert all(row % 2 == 0 for row in corpus.rows_of([hit.chunk.id for hit in hits]))


def test_the_derived_file_is_read_instead_of_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = clustered(310)
    corpus, embedder = numbered(tmp_path, table, 300)
    retriever = FaissDenseRetriever(embedder=embedder, index="hnsw")
    first = retriever.open(corpus).search("305", 10)
    monkeypatch.setattr("retrievers._faiss_files.build", lambda *_: pytest.fail("built again"))
    assert retriever.open(corpus).search("305", 10) == first


def test_a_small_flat_index_writes_no_file(tmp_path: Path) -> None:
    corpus, embedder = numbered(tmp_path, clustered(300), 300)
    FaissDenseRetriever(embedder=embedder).open(corpus)
    assert not list(tmp_path.rglob("*.index"))


@pytest.mark.parametrize("damage", ["garbage", "half", "empty", "other size"])
def test_a_derived_file_is_checked_before_use(tmp_path: Path, damage: str) -> None:
    """Even where the corpus hands out a bad file as good."""
    table = clustered(310)
    corpus, embedder = numbered(tmp_path, table, 300)
    retriever = FaissDenseRetriever(embedder=embedder, index="ivf")
    first = retriever.open(corpus).search("305", 10)
    [path] = tmp_path.rglob("*.index")
    data = path.read_bytes()
    path.write_bytes({"garbage": bytes(len(data)), "half": data[: len(data) // 2]}.get(damage, b""))
    if damage == "other size":
        faiss.write_index(faiss.IndexIDMap2(faiss.IndexFlatIP(DIMENSION)), str(path))
    corpus.derived = lambda name: path  # type: ignore[method-assign]
    assert retriever.open(corpus).search("305", 10) == first


def test_settings_that_shape_the_index_never_share_a_file(tmp_path: Path) -> None:
    corpus, embedder = numbered(tmp_path, clustered(300), 300)
    for change in ({}, {"hnsw_m": 8}, {"ef_construction": 20}, {"index": "ivf"}):
        FaissDenseRetriever(embedder=embedder, **{"index": "hnsw", **change}).open(corpus)  # type: ignore[arg-type]
    assert len(list(tmp_path.rglob("*.index"))) == 4


@pytest.mark.parametrize(("rows", "kind"), [(99_999, "flat"), (100_000, "ivf-sq8"), (5_000_000, "ivf-sq8")])
def test_the_rule_of_auto(rows: int, kind: str) -> None:
    retriever = FaissDenseRetriever(embedder=HashingEmbedder())
    assert retriever._shape(rows).kind == kind
    assert dataclasses.replace(retriever, index="hnsw")._shape(rows).kind == "hnsw"


@pytest.mark.parametrize("share", [0.5, 0.1, 0.04])
@pytest.mark.parametrize("index", ["hnsw-sq8", "ivf-sq8"])
def test_recall_under_a_filter(tmp_path: Path, index: Any, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer rows to find, so more lists and more of the graph are searched."""
    monkeypatch.setattr("retrievers.faiss_dense._EXACT_ROWS", 10)
    table = clustered(2530)
    corpus, embedder = numbered(tmp_path, table, 2500)
    some = np.sort(np.random.default_rng(1).choice(2500, int(share * 2500), replace=False))
    corpus.rows = lambda where=None: some if where else np.arange(2500)  # type: ignore[method-assign]
    retriever = FaissDenseRetriever(embedder=embedder, index=index, nprobe=16)
    assert recall(corpus, retriever, table, 2500, {"source": "x"}) >= 0.95


def test_threads_of_faiss_are_left_as_they_are(tmp_path: Path) -> None:
    faiss.omp_set_num_threads(2)
    corpus, embedder = numbered(tmp_path, clustered(300), 290)
    FaissDenseRetriever(embedder=embedder, index="hnsw").open(corpus).search("295", 5)
    assert faiss.omp_get_max_threads() == 2


def test_another_embedder_is_an_error(tmp_path: Path) -> None:
    corpus = topic_corpus(tmp_path, HashingEmbedder(buckets=64))
    with pytest.raises(ConfigError, match="length 64"):
        FaissDenseRetriever(embedder=HashingEmbedder(buckets=128)).open(corpus)


@pytest.mark.parametrize("wrong", [{"index": "pq"}, {"k": 0}, {"hnsw_m": 1}, {"nprobe": 0}, {"ef_search": 0}])
def test_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FaissDenseRetriever(embedder=HashingEmbedder(), **wrong)
