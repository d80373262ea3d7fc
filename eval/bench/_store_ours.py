"""Our own contender, run by the same driver as the peers: `Pipeline.index` on a folder, as `rag ingest` calls it.

Nothing is left out: files are found, read and parsed, chunks counted and cut, the full-text index and the audit
columns are written, everything fsynced. With the embedder `hashing` the vectors are computed inside the measured call
(peers look the same vectors up).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PACKAGES = ("chunkwise", "faiss-cpu", "numpy")
MODULES = (
    "faiss",
    "rag.cli.indexing",
    "rag.ingest",
    "rag.pipeline",
    "rag.store.store",
    "rag.store.verify",
)
SETTINGS = "Pipeline.index on the folder, hybrid retriever (vectors and full text), batches as it cuts them itself"
ACKNOWLEDGED = "progress called for a batch: committed and fsynced (SQLite, WAL, synchronous=FULL)"


def load(vectors: Any, options: dict[str, Any]) -> Any:
    """`vectors` is not used: the embedder of the config makes them."""
    from rag.config import PipelineConfig
    from rag.pipeline import Pipeline
    from rag.types import Document

    pipeline = Pipeline(PipelineConfig.from_dict(options["config"]))
    chunks = pipeline.chunk(Document(text="warm up", source="warm-up.txt"))
    pipeline.embedder.embed([chunk.embed_text for chunk in chunks])
    return pipeline


def ingest(encoder: Any, documents: Path, store: Path, tell: Any) -> int:
    with encoder.index(documents, into=store, on_progress=lambda progress: tell.stored(progress.done)) as index:
        return _checked(index.report)


def delete(encoder: Any, documents: Path, store: Path, name: str) -> None:
    with encoder.index(documents, into=store, delete_missing=True) as index:
        _checked(index.report)


def rows(encoder: Any, store: Path) -> dict[str, Any]:
    from rag.index import Index

    with Index.open(store) as index:
        stats = index.store.stats()
        infos = index.store.documents()
        pairs = [(Path(info.source).name, chunk.text) for info in infos for chunk in index.store.chunks_of(info.id)]
        return {"parts": {"chunks": stats["chunks"], "vectors": stats["embedded"], "rows": len(pairs)}, "rows": pairs}


def search(encoder: Any, store: Path, questions: list[str], k: int) -> list[list[tuple[str, str, float]]]:
    from rag.index import Index

    with Index.open(store) as index:
        names = {info.id: Path(info.source).name for info in index.store.documents()}
        found = (encoder.search(question, index, k=k) for question in questions)
        return [[(names[hit.chunk.doc_id], hit.chunk.text, hit.score) for hit in hits] for hits in found]


def verify(encoder: Any, store: Path) -> list[str]:
    from rag.store.verify import verify as check

    return list(check(store).problems)


def _checked(report: Any) -> int:
    if report.failed:
        raise RuntimeError(f"{len(report.failed)} files failed, first: {report.failed[0]}")
    return int(report.embedded)
