"""What the prompts of `rag bench attention` have as priors: the scores of a retriever for each text, question by
question. Vectors are kept in a folder by content, so that a text is embedded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Near", "by_retriever"]

Near = Callable[[str, Sequence[str]], list[float]]
"""From a question and texts, the retriever's score of each."""

MINILM = {"use": "minilm", "overlong": "window"}


def by_retriever(folder: Path | None = None, retriever: Any = "bridge", embedder: Any = MINILM) -> Near:
    """Scores of a retriever that searches an index of the texts alone, each a document. A text that it does not find
    comes behind all others. `bridge` follows what the best hits name, as questions over several documents need."""
    from eval.bench._compress_contexts import opened
    from eval.chunks.vectors import CachedEmbedder
    from rag import Pipeline, PipelineConfig

    config = {"chunker": {"use": "recursive"}, "embedder": embedder, "retriever": retriever}
    pipeline = Pipeline(PipelineConfig.from_dict(config))
    pipeline.embedder = CachedEmbedder(inner=pipeline.embedder, folder=folder)

    def score(question: str, texts: Sequence[str]) -> list[float]:
        names = [f"{number:05d}.txt" for number in range(len(texts))]
        with opened(pipeline, dict(zip(names, texts, strict=True))) as index:
            hits = pipeline.search(question, index, k=4 * len(texts))
            found = [(Path(index.corpus.document(hit.chunk.doc_id).source).name, hit.score) for hit in hits]
        best: dict[str, float] = {}
        for name, value in found:
            best[name] = max(best.get(name, value), value)
        least = min(best.values(), default=0.0)
        return [round(best.get(name, least - 0.01), 6) for name in names]

    return score
