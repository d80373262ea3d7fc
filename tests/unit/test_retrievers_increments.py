"""One published FAISS file serves later and earlier states of a real store, with the hits of an index made anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag.embedders.hashing import HashingEmbedder
from rag.store import Entry, FileRecord, Store
from rag.store.corpus import StoreCorpus
from rag.tokens import WordCounter
from rag.types import Chunk, Document
from rag.vectors import as_unit

faiss = pytest.importorskip("faiss")

from retrievers import _faiss_files  # noqa: E402
from retrievers.faiss_dense import FaissDenseRetriever  # noqa: E402

DIMENSION = 24
CHUNKS = 20  # of a document
QUESTIONS = [f"{topic}:{900_000 + topic}" for topic in range(0, 40, 2)]
KINDS = ("flat", "ivf-sq8", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("hnsw", "ivf", "hnsw-sq8")))


def drawn(text: str) -> Any:
    """A unit vector for `3:17`: around the topic before the colon, by the number behind it."""
    topic, _, number = text.partition(":")
    centre = np.random.default_rng([1, int(topic)]).standard_normal(DIMENSION)
    return as_unit(centre + 0.6 * np.random.default_rng([2, int(topic), int(number)]).standard_normal(DIMENSION))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopicEmbedder(HashingEmbedder):
    @property
    def dimension(self) -> int:
        return DIMENSION

    @property
    def fingerprint(self) -> str:
        return "topics"

    def embed_question(self, text: str) -> Any:
        return drawn(text)


EMBEDDER = TopicEmbedder()


def entry(number: int, version: int = 0) -> Entry:
    """Document `number`, whose chunks are of topics number, number + 1, ..."""
    words = [f"{(number + at) % 40}:{1000 * number + at + 100_000 * version}" for at in range(CHUNKS)]
    document = Document(text="\n".join(words), source=f"{number}.md", meta={"number": number})
    starts = [sum(len(word) + 1 for word in words[:at]) for at in range(CHUNKS)]
    chunks = tuple(
        Chunk.cut(document, start, start + len(word), counter=WordCounter(), chunker="line")
        for start, word in zip(starts, words, strict=True)
    )
    record = FileRecord(
        origin=f"/{number}", source=document.source, content_hash="", size_bytes=1, mtime_ns=0, recipe=""
    )
    vectors = {chunk.key: drawn(chunk.text) for chunk in chunks}
    return Entry(
        file=dataclasses.replace(record, doc_id=document.id),
        document=document,
        chunks=chunks,
        vectors=vectors,
        fingerprint="topics",
    )


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for a busy machine's cores make small searches slow."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """1,600 chunks; shares count at this size, and flat files are published."""
    monkeypatch.setattr(_faiss_files, "_FREE", 0)
    monkeypatch.setattr(_faiss_files, "_PUBLISH_FROM", 1)
    with Store.create_or_open(tmp_path) as opened:
        opened.set_manifest({"fingerprint": "topics", "dimension": DIMENSION})
        opened.commit(entries=[entry(number) for number in range(80)])
        yield opened


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done to open an index: "build" or "grow"."""
    done: list[str] = []
    real_build, real_grow = _faiss_files.build, _faiss_files._grown

    def build(*given: Any) -> Any:
        done.append("build")
        return real_build(*given)

    def grow(*given: Any) -> Any:
        found = real_grow(*given)
        done.extend(["grow"] if found is not None else [])
        return found

    monkeypatch.setattr(_faiss_files, "build", build)
    monkeypatch.setattr(_faiss_files, "_grown", grow)
    return done


def found(
    corpus: StoreCorpus, retriever: FaissDenseRetriever, where: Any = None, k: int = 10
) -> list[list[tuple[str, float]]]:
    searcher = retriever.open(corpus)
    hits = [[(hit.chunk.id, hit.score) for hit in searcher.search(question, k, where)] for question in QUESTIONS]
    searcher.close()
    return hits


def exact(corpus: StoreCorpus, where: Any = None, k: int = 10) -> list[list[tuple[str, float]]]:
    """By NumPy, from the stored vectors."""
    rows = corpus.rows(where)
    matrix = corpus.vectors(rows.tolist())[1].astype(np.float64)
    answers = []
    for question in QUESTIONS:
        scores = (matrix @ drawn(question).astype(np.float64)).round(6)
        order = np.lexsort((rows, -scores))[:k]
        chunks = corpus.chunks(rows[order].tolist())
        answers.append([(chunk.id, float(score)) for chunk, score in zip(chunks, scores[order], strict=True)])
    return answers


def overlap(hits: Sequence[Any], truth: Sequence[Any]) -> float:
    return sum(len(set(a) & set(b)) / len(b) for a, b in zip(hits, truth, strict=True)) / len(truth)


def small_change(store: Store) -> None:
    """Two documents gone, three new ones, two changed: under a tenth of all rows."""
    store.commit(
        removed=[f"/{number}" for number in range(0, 20, 10)],
        entries=[*(entry(number) for number in range(200, 203)), entry(7, version=1), entry(8, version=1)],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_store_is_searched_without_a_new_index(store: Store, work: list[str], kind: Any) -> None:
    retriever = FaissDenseRetriever(embedder=EMBEDDER, index=kind, nprobe=12)
    with store.corpus() as corpus:
        found(corpus, retriever)
    assert work == ["build"]
    small_change(store)
    with store.corpus() as corpus:
        amended, amended_even = found(corpus, retriever), found(corpus, retriever, {"meta.number": {"lt": 50}})
        assert work == ["build"]
        truth = exact(corpus)
        fresh = overlap(found_anew(corpus, retriever), truth)
        assert overlap(amended, truth) >= max(0.95, fresh - 0.01)
        assert overlap(amended_even, exact(corpus, {"meta.number": {"lt": 50}})) >= 0.95
        if kind == "flat":
            assert amended == truth
            assert found(corpus, retriever, k=57) == exact(corpus, k=57)


def found_anew(corpus: StoreCorpus, retriever: FaissDenseRetriever) -> list[list[tuple[str, float]]]:
    """With a build, and nothing read or published."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreCorpus, "derived", lambda *_: None)
        patch.setattr(StoreCorpus, "derived_of_any", lambda *_: None)
        patch.setattr(StoreCorpus, "publish", lambda *_: None)
        return found(corpus, retriever)


@pytest.mark.parametrize(
    ("kind", "how"), [("flat", "grow"), ("ivf-sq8", "grow"), pytest.param("hnsw", "build", marks=pytest.mark.slow)]
)
def test_a_larger_change_is_worked_into_a_new_file(store: Store, work: list[str], kind: Any, how: str) -> None:
    retriever = FaissDenseRetriever(embedder=EMBEDDER, index=kind, nprobe=12)
    with store.corpus() as corpus:
        found(corpus, retriever)
    store.commit(removed=["/1", "/2"], entries=[entry(number) for number in range(300, 312)])
    with store.corpus() as corpus:
        hits = found(corpus, retriever)
        assert work == ["build", how]
        assert overlap(hits, exact(corpus)) >= 0.95
        assert found(corpus, retriever) == hits
        assert work == ["build", how], "what was published is read"
        assert retriever.check(corpus) == []


def test_lists_are_trained_again_when_the_store_has_outgrown_them(store: Store, work: list[str]) -> None:
    retriever = FaissDenseRetriever(embedder=EMBEDDER, index="ivf", nprobe=12)
    with store.corpus() as corpus:
        found(corpus, retriever)
    store.commit(entries=[entry(number) for number in range(300, 380)])
    with store.corpus() as corpus:
        assert overlap(found(corpus, retriever), exact(corpus)) >= 0.95
    assert work == ["build", "build"]


@pytest.mark.parametrize("kind", ["flat", "ivf-sq8"])
def test_an_older_view_reads_a_newer_file(store: Store, work: list[str], kind: Any) -> None:
    """Rows that the view cannot see are masked, rows that are gone meanwhile are searched beside the file."""
    retriever = FaissDenseRetriever(embedder=EMBEDDER, index=kind, nprobe=12)
    with store.corpus() as old:
        truth = exact(old)
        small_change(store)
        with store.corpus() as new:
            found(new, retriever)
        assert work == ["build"]
        hits = found(old, retriever)
        assert overlap(hits, truth) >= 0.95
        assert hits == truth or kind != "flat"
    assert work == ["build"]


def test_hits_do_not_depend_on_the_way_to_a_state(store: Store, tmp_path: Path) -> None:
    """Six small changes, each searched: after every one the flat index gives what exact search gives."""
    retriever = FaissDenseRetriever(embedder=EMBEDDER, index="flat")
    for step in range(6):
        removed = [f"/{number}" for number in range(step, 80, 20)]
        store.commit(removed=removed, entries=[entry(400 + 3 * step + at) for at in range(3)])
        with store.corpus() as corpus:
            assert found(corpus, retriever) == exact(corpus)


def test_all_rows_gone_or_new(store: Store) -> None:
    retriever = FaissDenseRetriever(embedder=EMBEDDER, index="ivf-sq8")
    with store.corpus() as corpus:
        found(corpus, retriever)
    store.commit(removed=list(store.files()))
    with store.corpus() as corpus:
        assert found(corpus, retriever) == [[]] * len(QUESTIONS)
    store.commit(entries=[entry(500)])
    with store.corpus() as corpus:
        assert found(corpus, retriever) == exact(corpus)


@pytest.mark.parametrize("kind", KINDS)
def test_check_finds_foreign_rows_and_vectors(store: Store, kind: Any) -> None:
    retriever = FaissDenseRetriever(embedder=EMBEDDER, index=kind)
    with store.corpus() as corpus:
        assert retriever.check(corpus) == [], "nothing is published yet"
        retriever.open(corpus).close()
        assert retriever.check(corpus) == []
    small_change(store)
    with store.corpus() as corpus:
        assert retriever.check(corpus) == [], "an older file that is amended is no problem"
    store.commit(entries=[entry(number) for number in range(300, 320)])
    with store.corpus() as corpus:
        shape = retriever._shape(len(corpus))
        index = _faiss_files.build(shape, Shifted(corpus))
        name = retriever._file_name(shape)
        path = corpus.publish(name, lambda path: faiss.write_index(index, str(path)))
        assert path is not None
        problems = retriever.check(corpus)
        assert any("sampled vectors" in problem for problem in problems)
        corpus.publish(name, lambda path: path.write_bytes(b"no index"))
        (problem,) = retriever.check(corpus)
        assert str(path.parent) in problem


class Shifted:
    """A corpus whose vectors stand at other rows: what must not happen."""

    def __init__(self, corpus: StoreCorpus) -> None:
        self.corpus = corpus

    def __len__(self) -> int:
        return len(self.corpus)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.corpus, name)

    def vector_parts(self, size: int) -> Any:
        for rows, matrix in self.corpus.vector_parts(size):
            yield rows, np.roll(matrix, 7, axis=0)


def test_check_finds_a_missing_row(store: Store) -> None:
    retriever = FaissDenseRetriever(embedder=EMBEDDER, index="flat")
    with store.corpus() as corpus:
        shape = retriever._shape(len(corpus))
        index = _faiss_files.build(shape, corpus)
        index.remove_ids(corpus.rows()[:3])
        name = retriever._file_name(shape)
        corpus.publish(name, lambda path: faiss.write_index(index, str(path)))
        (problem,) = retriever.check(corpus)
        assert "3 rows" in problem
        assert found(corpus, retriever) == exact(corpus), "and the search does not mind"
