"""Haystack: splitter, embedder and writer in a pipeline, in-memory store saved at the end, BM25 and vectors joined.

Chunks have at most 1,000 characters, cut at paragraphs, lines and words (its cut at sentences downloads data); the
in-memory store, since its FAISS store does not install beside a current faiss-cpu. CacheChecker, by a hash of the
contents, leaves out documents that the store has already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("haystack-ai", "sentence-transformers-haystack", "sentence-transformers", "torch")
MODULES = (
    "haystack",
    "haystack.components.caching",
    "haystack.components.joiners",
    "haystack.components.preprocessors",
    "haystack.components.retrievers.in_memory",
    "haystack.components.writers",
    "haystack.document_stores.in_memory",
    "haystack_integrations.components.embedders.sentence_transformers",
)
SETTINGS = (
    "RecursiveDocumentSplitter, 1,000 characters; in-memory store, save_to_disk, CacheChecker; DocumentJoiner of BM25 "
    "and vectors, reciprocal rank fusion"
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
    if options.get("dtype"):
        shared["model_kwargs"] = {"dtype": options["dtype"]}
    embedder, asker = SentenceTransformersDocumentEmbedder(**shared), SentenceTransformersTextEmbedder(**shared)
    embedder.warm_up()
    embedder.run(documents=[Document(content="warm up")])
    return embedder, asker


def ingest(encoder: Any, documents: Path, store: Path) -> None:
    from haystack import Document, Pipeline
    from haystack.components.caching import CacheChecker
    from haystack.components.preprocessors import RecursiveDocumentSplitter
    from haystack.components.writers import DocumentWriter

    memory = _open(store)
    texts = {path.name: path.read_bytes().decode() for path in sorted(documents.glob("*"))}
    hashes = {hashlib.sha256(f"{name}\0{text}".encode()).hexdigest(): name for name, text in texts.items()}
    missing = CacheChecker(memory, cache_field="hash").run(items=list(hashes))["misses"]
    if not missing:
        return
    line = Pipeline()
    splitter = RecursiveDocumentSplitter(
        split_length=1000, split_overlap=0, split_unit="char", separators=["\n\n", "\n", " "]
    )
    line.add_component("split", splitter)
    line.add_component("embed", encoder[0])
    line.add_component("write", DocumentWriter(memory))
    line.connect("split", "embed")
    line.connect("embed", "write")
    new = [Document(content=texts[hashes[one]], meta={"file": hashes[one], "hash": one}) for one in missing]
    line.run({"split": {"documents": new}})
    store.mkdir(parents=True, exist_ok=True)
    memory.save_to_disk(str(store / "store.json"))


def rows(encoder: Any, store: Path) -> list[tuple[str, str]]:
    found = sorted(_open(store).filter_documents(), key=lambda one: (one.meta["file"], one.meta["split_id"]))
    return [(one.meta["file"], one.content) for one in found]


def searcher(encoder: Any, store: Path) -> Callable[[str, int], list[tuple[str, str, float]]]:
    from haystack.components.joiners import DocumentJoiner
    from haystack.components.retrievers.in_memory import InMemoryBM25Retriever, InMemoryEmbeddingRetriever

    memory = _open(store)
    dense, lexical = InMemoryEmbeddingRetriever(memory), InMemoryBM25Retriever(memory)
    joiner = DocumentJoiner(join_mode="reciprocal_rank_fusion")
    encoder[1].warm_up()

    def search(question: str, k: int) -> list[tuple[str, str, float]]:
        vector = encoder[1].run(text=question)["embedding"]
        lists = [dense.run(query_embedding=vector, top_k=k), lexical.run(query=question, top_k=k)]
        found = joiner.run(documents=[one["documents"] for one in lists], top_k=k)["documents"]
        return [(one.meta["file"], one.content, float(one.score)) for one in found]

    return search


def _open(store: Path) -> Any:
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    if (store / "store.json").exists():
        return InMemoryDocumentStore.load_from_disk(str(store / "store.json"))
    return InMemoryDocumentStore(embedding_similarity_function="cosine")
