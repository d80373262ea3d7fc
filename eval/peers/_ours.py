"""Our own pipeline for the driver of the peers: `Pipeline.index` and `Pipeline.search`, nothing left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("chunkwise", "torch", "tokenizers", "numpy", "faiss-cpu")
MODULES = ("faiss", "torch", "rag.ingest", "rag.pipeline", "rag.store.store")
SETTINGS = "the default pipeline"


def load(model: str, options: dict[str, Any]) -> Any:
    """`model` is not used: the default pipeline finds the same weights. `options` may hold the `config`."""
    from rag.config import PipelineConfig
    from rag.pipeline import Pipeline
    from rag.types import Document

    config = PipelineConfig.from_dict(options["config"]) if options.get("config") else PipelineConfig.default()
    pipeline = Pipeline(config)
    chunks = pipeline.chunk(Document(text="warm up", source="warm-up.txt"))
    if pipeline.retriever.uses_vectors:
        pipeline.embedder.embed([chunk.embed_text for chunk in chunks])
    return pipeline


def ingest(encoder: Any, documents: Path, store: Path) -> None:
    with encoder.index(documents, into=store) as index:
        if index.report.failed:
            raise RuntimeError(f"{len(index.report.failed)} files failed, first: {index.report.failed[0]}")


def rows(encoder: Any, store: Path) -> list[tuple[str, int, int]]:
    from rag.index import Index

    if not Index.exists(store):
        return []
    with Index.open(store) as index:
        found = index.corpus.chunks(index.corpus.rows().tolist())
        return [(_name(index, one.doc_id), one.span.start, one.span.end) for one in found]


def searcher(encoder: Any, store: Path) -> Callable[[str, int], list[tuple[str, int, int, float]]]:
    from rag.index import Index

    index = Index.open(store)

    def search(question: str, k: int) -> list[tuple[str, int, int, float]]:
        return [
            (_name(index, hit.chunk.doc_id), hit.chunk.span.start, hit.chunk.span.end, float(hit.score))
            for hit in encoder.search(question, index, k=k)
        ]

    return search


def _name(index: Any, doc_id: str) -> str:
    return str(Path(index.corpus.document(doc_id).source).name)
