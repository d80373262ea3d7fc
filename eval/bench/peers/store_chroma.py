"""Chroma: PersistentClient, one collection, `upsert` with ids made of document and position.

It has no notion of a document that changed: an upsert embeds and writes everything again, and rows whose ids are not
written any more stay. Its vector index is written to disk every 1,000 rows (its default); until then its write-ahead
log in SQLite has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PACKAGES = ("chromadb", "numpy")
MODULES = ("chromadb", "chromadb.utils.embedding_functions", "numpy")
SETTINGS = "PersistentClient, cosine, upsert with stable ids, one call a batch"
ACKNOWLEDGED = "upsert returned: committed in its SQLite file"


def load(vectors: Any, options: dict[str, Any]) -> Any:
    from chromadb import Documents, EmbeddingFunction
    from chromadb.utils.embedding_functions import register_embedding_function

    @register_embedding_function
    class Lookup(EmbeddingFunction[Documents]):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            pass

        def __call__(self, input: Documents) -> Any:
            return vectors.embed(list(input))

        @staticmethod
        def name() -> str:
            return "lookup"

        def get_config(self) -> dict[str, Any]:
            return {}

        @staticmethod
        def build_from_config(config: dict[str, Any]) -> Any:
            return Lookup()

    return Lookup(), int(options["batch"])


def ingest(encoder: Any, documents: Path, store: Path, tell: Any) -> None:
    collection = _collection(encoder, store)
    files = sorted(documents.glob("*.txt"))
    for at in range(0, len(files), encoder[1]):
        batch = files[at : at + encoder[1]]
        rows = [(path.name, n, text) for path in batch for n, text in enumerate(path.read_text("utf-8").split("\n\n"))]
        collection.upsert(
            ids=[f"{name}#{number}" for name, number, _ in rows],
            documents=[text for _, _, text in rows],
            metadatas=[{"source": name} for name, _, _ in rows],
        )
        tell.stored(at + len(batch))


def delete(encoder: Any, documents: Path, store: Path, name: str) -> None:
    _collection(encoder, store).delete(where={"source": name})


def rows(encoder: Any, store: Path) -> dict[str, Any]:
    collection = _collection(encoder, store)
    count = collection.count()
    found = collection.get(include=["documents", "metadatas", "embeddings"])
    pairs = [(meta["source"], text) for meta, text in zip(found["metadatas"], found["documents"], strict=True)]
    return {"parts": {"count": count, "rows": len(pairs), "vectors": len(found["embeddings"])}, "rows": pairs}


def search(encoder: Any, store: Path, questions: list[str], k: int) -> list[list[tuple[str, str, float]]]:
    found = _collection(encoder, store).query(query_texts=questions, n_results=k)
    return [
        [(meta["source"], text, distance) for meta, text, distance in zip(metas, texts, distances, strict=True)]
        for metas, texts, distances in zip(found["metadatas"], found["documents"], found["distances"], strict=True)
    ]


def _collection(encoder: Any, store: Path) -> Any:
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(path=str(store), settings=Settings(anonymized_telemetry=False))
    return client.get_or_create_collection(
        "documents", embedding_function=encoder[0], configuration={"hnsw": {"space": "cosine"}}
    )
