"""A small index without models, and what a search in it gives, for the tests of the adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rag import Index, Pipeline
from rag.config import PipelineConfig
from rag.types import Hit

CONFIG: dict[str, Any] = {
    "embedder": "hashing",
    "chunker": {"use": "recursive", "max_tokens": 16},
    "retriever": {"use": "hybrid", "parts": ["faiss-dense", "bm25"]},
    "generator": {"use": "extractive", "min_support": 0.2},
}
HANDBOOK = (
    "# Handbook\n\n## Travel\n\nTravel above 5,000 EUR is approved by the chief financial officer.\n\n"
    "## Holidays\n\nEverybody has thirty days of holiday a year. Unused days expire in March. "
    "\U0001f9d1\u200d\U0001f52c\n"
)
MINUTES = "Minutes of 3 May. The Leipzig office closes in June.\nTravel to Leipzig ends. Dr. Okafor moves to Berlin.\n"
FILES = {"docs/handbook.md": HANDBOOK, "docs/minutes.txt": MINUTES}
REPEATED = "".join(f"The same line again. {'And then. ' * 3}\n" for _ in range(40)) + "The end.\n"
QUESTION = "Who approves travel?"


def make_index(folder: Path) -> Path:
    """`docs/` and `idx/` in `folder`; the path of the index."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    pipeline().index(folder / "docs", folder / "idx").close()
    return folder / "idx"


def pipeline() -> Pipeline:
    return Pipeline(PipelineConfig.from_dict(CONFIG))


def expected(index: Path, k: int | None = None, where: dict[str, Any] | None = None) -> list[Hit]:
    """What Chunkwise itself finds."""
    return pipeline().search(QUESTION, index, k=k, where=where)


def chunk_ids(index: Path, source: str) -> list[str]:
    """The ids that ingestion gave the chunks of this source."""
    with Index.open(index) as opened:
        return [chunk.id for chunk in opened.store.chunks_of(opened.document(source).id)]


def check_metadata(metadata: dict[str, Any], hit: Hit, source: str) -> None:
    """The metadata that every adapter gives a hit."""
    assert metadata["chunk_id"] == hit.chunk.id
    assert metadata["doc_id"] == hit.chunk.doc_id
    assert (metadata["start"], metadata["end"]) == (hit.chunk.span.start, hit.chunk.span.end)
    assert metadata["source"] == source
    assert metadata["section"] == " > ".join(hit.chunk.section)
    assert metadata["parts"] == dict(hit.parts)
    assert metadata["parts"]
    assert (metadata["score"], metadata["rank"]) == (hit.score, hit.rank)
