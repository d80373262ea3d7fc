"""Haystack: splitter, SentenceTransformersDocumentEmbedder, in-memory store, save_to_disk.

Settings: RecursiveDocumentSplitter with 1,000 characters and no overlap, cut at paragraphs, lines and words (its
default cuts at sentences too and then needs a download of NLTK data); the in-memory store, since the FAISS one does
not install beside a current faiss-cpu; cosine similarity on unit vectors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PACKAGES = ("haystack-ai", "sentence-transformers-haystack", "sentence-transformers", "transformers", "torch")
MODULES = (
    "haystack",
    "haystack.components.preprocessors",
    "haystack.components.retrievers.in_memory",
    "haystack.components.writers",
    "haystack.document_stores.in_memory",
    "haystack_integrations.components.embedders.sentence_transformers",
    "sentence_transformers",
)


def load(model: str, options: dict[str, Any]) -> Any:
    from haystack import Document
    from haystack.utils import ComponentDevice
    from haystack_integrations.components.embedders.sentence_transformers import (
        SentenceTransformersDocumentEmbedder,
        SentenceTransformersTextEmbedder,
    )

    shared: dict[str, Any] = {
        "model": model,
        "device": ComponentDevice.from_str("cpu"),
        "batch_size": options.get("batch_size", 32),
        "normalize_embeddings": True,
        "progress_bar": False,
    }
    if "dtype" in options:
        shared["model_kwargs"] = {"dtype": options["dtype"]}
    embedder = SentenceTransformersDocumentEmbedder(**shared)
    embedder.warm_up()
    embedder.run(documents=[Document(content="warm up")])
    return embedder, SentenceTransformersTextEmbedder(**shared)


def ingest(encoder: Any, documents: Path, store: Path) -> int:
    memory = _filled(encoder, documents)
    store.mkdir(parents=True, exist_ok=True)
    memory.save_to_disk(str(store / "store.json"))
    return int(memory.count_documents())


def retrieve(encoder: Any, documents: Path, store: Path, questions: list[str], k: int) -> dict[str, Any]:
    from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever

    memory = _filled(encoder, documents)
    chunks = sorted(memory.filter_documents(), key=lambda one: (one.meta["file"], one.meta["split_id"]))
    numbers = {chunk.id: number for number, chunk in enumerate(chunks)}
    retriever = InMemoryEmbeddingRetriever(memory, top_k=k)
    encoder[1].warm_up()
    hits = []
    for question in questions:
        found = retriever.run(query_embedding=encoder[1].run(text=question)["embedding"])["documents"]
        hits.append([numbers[one.id] for one in found])
    return {"chunks": [[chunk.meta["file"], chunk.content] for chunk in chunks], "hits": {"dense": hits}}


def _filled(encoder: Any, documents: Path) -> Any:
    from haystack import Document, Pipeline
    from haystack.components.preprocessors import RecursiveDocumentSplitter
    from haystack.components.writers import DocumentWriter
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    memory = InMemoryDocumentStore(embedding_similarity_function="cosine")
    line = Pipeline()
    splitter = RecursiveDocumentSplitter(
        split_length=1000, split_overlap=0, split_unit="char", separators=["\n\n", "\n", " "]
    )
    line.add_component("split", splitter)
    line.add_component("embed", encoder[0])
    line.add_component("write", DocumentWriter(memory))
    line.connect("split", "embed")
    line.connect("embed", "write")
    texts = [
        Document(content=path.read_text(encoding="utf-8"), meta={"file": path.name})
        for path in sorted(documents.glob("*.txt"))
    ]
    line.run({"split": {"documents": texts}})
    return memory
