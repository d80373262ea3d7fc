"""Our own contender, run by the same driver as the peers: the real `Pipeline.index`, nothing left out.

Parsers, chunker, encoder, durable SQLite store and the published search indexes are all inside the measured call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PACKAGES = ("chunkwise", "torch", "tokenizers", "numpy", "faiss-cpu")
MODULES = (
    "faiss",
    "torch",
    "rag.ingest",
    "rag.pipeline",
    "rag.store.store",
)


def load(model: str, options: dict[str, Any]) -> Any:
    """`model` is not used: the default pipeline finds the same bundled weights. `options` holds the pipeline config."""
    from rag.config import PipelineConfig
    from rag.pipeline import Pipeline
    from rag.types import Document

    config = PipelineConfig.from_dict(options["config"]) if "config" in options else PipelineConfig.default()
    pipeline = Pipeline(config)
    chunks = pipeline.chunk(Document(text="warm up", source="warm-up.txt"))
    if pipeline.retriever.uses_vectors:
        pipeline.embedder.embed([chunk.embed_text for chunk in chunks])
    return pipeline


def ingest(encoder: Any, documents: Path, store: Path) -> int:
    with encoder.index(documents, into=store) as index:
        _check(index.report)
        return int(index.report.chunks)


def retrieve(encoder: Any, documents: Path, store: Path, questions: list[str], k: int) -> dict[str, Any]:
    """The pipeline's own retriever, and the dense one alone, over one index. Places are the chunks' own spans."""
    from rag.pipeline import Pipeline

    dense = Pipeline(encoder.config.merged({"retriever": "faiss-dense"}, where="benchmark"))
    chunks: list[list[Any]] = []
    numbers: dict[str, int] = {}
    with encoder.index(documents, into=store) as index:
        _check(index.report)
        for path in sorted(documents.glob("*.txt")):
            document = index.document(str(path.resolve()))
            if document.text != path.read_bytes().decode():
                raise RuntimeError(f"the parser changed the text of {path.name}, so places cannot be compared")
            for chunk in index.store.chunks_of(document.id):
                numbers[chunk.id] = len(chunks)
                chunks.append([path.name, chunk.span.start, chunk.span.end])
        hits = {
            ranking: [[numbers[hit.chunk.id] for hit in pipeline.search(one, index, k=k)] for one in questions]
            for ranking, pipeline in (("dense", dense), ("default", encoder))
        }
        return {"chunks": chunks, "hits": hits}


def _check(report: Any) -> None:
    if report.failed:
        raise RuntimeError(f"{len(report.failed)} files failed, first: {report.failed[0]}")
