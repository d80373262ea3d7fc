"""The measured steps of the benchmark `scale`, each in a process of its own, so that each has its own peak of memory.

`python -m eval.bench._scale_steps STEP JOB_AS_JSON` prints the figures of one step as the last line. A job names the
store, the material and the number of chunks.
"""

from __future__ import annotations

import json
import resource
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.bench._scale_data import CHUNKS_PER_DOCUMENT, DIMENSION, FINGERPRINT, Material, TableEmbedder, entries, load
from rag.registry import build
from rag.store.schema import FILE_NAME
from rag.store.store import Store

__all__ = ["STEPS"]

Job = Mapping[str, Any]
Figures = dict[str, Any]

K, POOL = 10, 50
"""Hits asked for, and how many the hybrid retriever asks each of its parts for."""
_DOCUMENTS_A_COMMIT = 100
_PART = 50_000
_WARM = 50
_FTS = "SELECT rowid FROM lexical WHERE lexical MATCH ? ORDER BY bm25(lexical) LIMIT ?"


def fill(job: Job) -> Figures:
    """All chunks through `Store.commit`; making them up is timed apart."""
    material, documents = load(Path(job["material"])), job["chunks"] // CHUNKS_PER_DOCUMENT
    made = 0.0
    with Store.create_or_open(Path(job["store"])) as store:
        store.set_manifest({"fingerprint": FINGERPRINT, "dimension": DIMENSION})
        started = time.perf_counter()
        for at in range(0, documents, _DOCUMENTS_A_COMMIT):
            before = time.perf_counter()
            batch = entries(material, at, min(_DOCUMENTS_A_COMMIT, documents - at), job["seed"])
            made += time.perf_counter() - before
            store.commit(entries=batch)
        spent = time.perf_counter() - started - made
        return {"seconds": spent, "rows_per_second": job["chunks"] / spent, "bytes": store.stats()["bytes"]}


def index(job: Job) -> Figures:
    """The dense index: built and published."""
    dense = _retriever("faiss-dense", load(Path(job["material"])))
    with Store.create_or_open(Path(job["store"])) as store, store.corpus() as corpus:
        seconds = _seconds(lambda: dense.open(corpus).close())
        return {"seconds": seconds, "bytes": sum(path.stat().st_size for path in _published(store.directory))}


def search(job: Job) -> Figures:
    """Open, then every question once to each way of searching, in turn, and the found against the exact best."""
    material = load(Path(job["material"]))
    with Store.open(Path(job["store"])) as store:
        opened: dict[str, float] = {}
        started = time.perf_counter()
        corpus = store.corpus()
        opened["corpus"] = time.perf_counter() - started
        searchers = {}
        for name in ("faiss-dense", "bm25", "hybrid"):
            started = time.perf_counter()
            searchers[name] = _retriever(name, material).open(corpus)
            opened[name] = time.perf_counter() - started
        figures: Figures = {"open_seconds": opened, "peak_rss_mb_opened": _peak_rss_mb()}
        for question in material.questions[:_WARM]:
            searchers["hybrid"].search(question, K)
        figures["peak_rss_mb_ours"] = _peak_rss_mb()  # before the raw index is read too
        ways: dict[str, Callable[[str], Any]] = {name: partial(one.search, k=K) for name, one in searchers.items()}
        for share, where in _filters(job["chunks"]).items():
            for name in ("faiss-dense", "hybrid"):
                ways[f"{name}, {share}"] = partial(searchers[name].search, k=K, where=where)
        raw = _Raw(store.directory, material, _words_asked(searchers["bm25"], corpus, material.questions))
        ways |= {"raw faiss": raw.dense, "raw fts5": raw.lexical, "raw both": raw.both}
        figures["milliseconds"] = _interleaved(ways, material.questions)
        figures["recall_at_10"] = _recall(searchers["faiss-dense"], corpus, material)
        corpus.close()
    return figures


def delete(job: Job) -> Figures:
    """Every hundredth document goes in one commit; then the index is opened with what is left masked out."""
    dense = _retriever("faiss-dense", load(Path(job["material"])))
    with Store.create_or_open(Path(job["store"])) as store:
        gone = sorted(store.files())[::100]
        seconds = _seconds(lambda: store.commit(removed=gone))
        before = _published(store.directory)
        with store.corpus() as corpus:
            opening = _seconds(lambda: dense.open(corpus).close())
        rebuilt = before != _published(store.directory)
        return {"documents": len(gone), "seconds": seconds, "open_seconds": opening, "rebuilt": rebuilt}


def compact(job: Job) -> Figures:
    """`rag compact`."""
    from rag.store.compact import compact

    with Store.create_or_open(Path(job["store"])) as store:
        started = time.perf_counter()
        report = compact(store)
        return {"seconds": time.perf_counter() - started, **report.to_dict()}


STEPS: dict[str, Callable[[Job], Figures]] = {
    "fill": fill,
    "index": index,
    "search": search,
    "delete": delete,
    "compact": compact,
}

# ---------------------------------------------------------------------- how it is measured


class _Raw:
    """FAISS and FTS5 called directly, on the same files, with the parameters and the words that the retrievers use."""

    def __init__(self, directory: Path, material: Material, words: Mapping[str, Sequence[str]]) -> None:
        self._table = dict(zip(material.questions, material.asked, strict=True))
        self._match = {q: " OR ".join(f'"{word}"' for word in found) for q, found in words.items()}
        self._index, self._parameters = _raw_index(directory)
        self._db = sqlite3.connect(f"{(directory / FILE_NAME).as_uri()}?mode=ro", uri=True)
        self._db.execute("PRAGMA cache_size=-32768")

    def dense(self, question: str) -> Any:
        return self._index.search(self._table[question][None, :], POOL, params=self._parameters)

    def lexical(self, question: str) -> Any:
        match = self._match[question]
        return self._db.execute(_FTS, (match, POOL)).fetchall() if match else []

    def both(self, question: str) -> Any:
        return self.dense(question), self.lexical(question)


def _raw_index(directory: Path) -> tuple[Any, Any]:
    """(the published index, search parameters); a flat one of the stored vectors where none is published."""
    import faiss

    published = _published(directory)
    if published:
        found = faiss.read_index(str(published[0]))
        nprobe = int(getattr(_retriever("faiss-dense", None), "nprobe", 0))
        parameters: Any = faiss.SearchParametersIVF  # the type stubs name no fields
        return found, parameters(nprobe=nprobe) if hasattr(found, "invlists") else None
    flat = faiss.IndexFlatIP(DIMENSION)
    with Store.open(directory) as store, store.corpus() as corpus:
        flat.add(corpus.vectors()[1])
    return flat, None


def _published(directory: Path) -> list[Path]:
    return sorted((directory / "derived").glob("faiss-*"))


def _retriever(name: str, material: Material | None) -> Any:
    table = dict(zip(material.questions, material.asked, strict=True)) if material else {}
    return build("retriever", name, services={"embedder": TableEmbedder(table=table)})


def _words_asked(searcher: Any, corpus: Any, questions: Sequence[str]) -> dict[str, list[str]]:
    """The words that the retriever bm25 looks up for each question."""
    found: dict[str, list[str]] = {}
    real = corpus.lexical
    for question in questions:
        found[question] = []
        corpus.lexical = lambda words, *rest, into=found[question]: into.extend(words) or []
        searcher.search(question, 1)
    corpus.lexical = real
    return found


def _filters(chunks: int) -> dict[str, dict[str, Any]]:
    documents = max(1, chunks // CHUNKS_PER_DOCUMENT)
    return {
        "filter keeps 10 %": {"source": {"contains": "3/"}},
        "filter keeps 1 %": {"meta.number": {"lt": max(1, documents // 100)}},
    }


def _interleaved(ways: Mapping[str, Callable[[str], Any]], questions: Sequence[str]) -> Figures:
    """Each question to all ways in turn, the first way another one each time."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for way in ways.values():
        way(questions[0])
    for number, question in enumerate(questions):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            spent[name].append(1000 * _seconds(partial(ways[name], question)))
    return {
        name: {"p50": float(np.median(one)), "p95": float(np.quantile(one, 0.95)), "mean": float(np.mean(one))}
        for name, one in spent.items()
    }


def _recall(dense: Any, corpus: Any, material: Material) -> float:
    """Share of the exact ten best chunks that the dense retriever finds; equal cosines count as found."""
    floors = _exact(corpus, material.asked)
    found = [
        sum(hit.score >= floor - 1e-5 for hit in dense.search(question, K)) / K
        for question, floor in zip(material.questions, floors, strict=True)
    ]
    return float(np.mean(found))


def _exact(corpus: Any, asked: NDArray[np.float32]) -> NDArray[np.float32]:
    """The cosine of the tenth best chunk of each question, over all stored vectors."""
    best = np.full((len(asked), K), -2.0, dtype=np.float32)
    for _, matrix in corpus.vector_parts(_PART):
        scores = np.concatenate([best, asked @ matrix.T], axis=1)
        best = -np.partition(-scores, K - 1, axis=1)[:, :K]
    floors: NDArray[np.float32] = best.min(axis=1)
    return floors


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _peak_rss_mb() -> float:
    """Where Linux tells: of this program alone, since getrusage counts the process that started it too."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def _cpu(figures: Figures) -> Iterator[None]:
    started = time.process_time()
    yield
    figures["cpu_seconds"] = time.process_time() - started


def main(step: str, job: str) -> None:
    """Run one step and print its figures."""
    cost: Figures = {}
    with _cpu(cost):
        figures = STEPS[step](json.loads(job))
    print(json.dumps({**figures, **cost, "peak_rss_mb": _peak_rss_mb()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
